from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid.errors import InvalidRequest, MemoryPressure
from braid.lora.adapter import AdapterUse
from braid.lora.resident import ResidentWeights
from braid.tests.lora.lora_rig import (
    abandon_after,
    all_same_bits,
    copy_of,
    merged_with,
    run_counted,
    same_bits,
    store_with,
    tiny_weights,
)

A, B = [AdapterUse("a", 0.5)], [AdapterUse("b", -0.25)]


class Rig:
    def __init__(self, folder: Path) -> None:
        self.source = tiny_weights()
        self.copies = copy_of(self.source)
        self.store, self.targets = store_with(folder, self.source, {"a": (), "b": ("dense16", "scaled8")})
        self.resident = ResidentWeights(self.copies, self.source, self.targets, self.store)

    def merged(self, *uses: tuple[str, float]) -> dict[str, Tensor]:
        return dict(merged_with(self.source, self.store, self.targets, *uses))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_copies_change_in_place_and_the_source_does_not(rig: Rig) -> None:
    addresses = {name: tensor.data_ptr() for name, tensor in rig.copies.items()}
    held = rig.resident.acquire(A)
    assert all_same_bits(dict(held.weights), rig.merged(("a", 0.5)))
    held.release()
    held = rig.resident.acquire(B)
    assert all_same_bits(dict(held.weights), rig.merged(("b", -0.25)))
    held.release()
    rig.resident.acquire([]).release()
    assert all_same_bits(rig.copies, rig.source)
    assert run_counted(rig.resident.acquiring([]))[1] == []
    assert all_same_bits(rig.source, tiny_weights())
    assert {name: tensor.data_ptr() for name, tensor in rig.copies.items()} == addresses


def test_only_weights_that_differ_are_written_again(rig: Rig) -> None:
    rig.resident.acquire(B).release()
    held, steps = run_counted(rig.resident.acquiring(B))
    held.release()
    assert steps == []
    _, steps = run_counted(rig.resident.acquiring([*B, AdapterUse("a", 0.0)]))
    assert {step.key for step in steps} == {target.key for target in rig.targets.targets}  # a's empty product rounds


def test_other_adapters_wait_until_the_copies_are_free(rig: Rig) -> None:
    held, same = rig.resident.acquire(A), rig.resident.acquire(A)
    held.release()
    held.release()
    for uses in (B, []):
        with pytest.raises(MemoryPressure, match="second set of merged weights") as raised:
            rig.resident.acquire(uses)
        assert raised.value.needed_bytes > 0
    assert all_same_bits(rig.copies, rig.merged(("a", 0.5)))
    same.release()
    rig.resident.acquire(B).release()


def test_a_swap_abandoned_at_any_point_is_made_good(rig: Rig) -> None:
    held, steps = run_counted(rig.resident.acquiring(A))
    held.release()
    for stop in range(len(steps)):
        abandon_after(rig.resident.acquiring(B if stop % 2 else []), stop)
        if stop % 3:
            rig.resident.acquire(A).release()
            assert all_same_bits(rig.copies, rig.merged(("a", 0.5)))
        else:
            rig.resident.acquire([]).release()
            assert all_same_bits(rig.copies, rig.source)


def test_a_merge_that_fails_leaves_copies_that_can_be_restored(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="beyond"):
        rig.resident.acquire([AdapterUse("a", 3e38)])
    assert not all_same_bits(rig.copies, rig.source)
    rig.resident.acquire([]).release()
    assert all_same_bits(rig.copies, rig.source)


def test_copies_that_are_their_own_source_are_refused(rig: Rig) -> None:
    with pytest.raises(ValueError, match="is its source"):
        ResidentWeights(rig.source, rig.source, rig.targets, rig.store)
    other = rig.copies | {"dense16.weight": rig.copies["dense16.weight"].float()}
    with pytest.raises(ValueError, match=r"dense16\.weight"):
        ResidentWeights(other, rig.source, rig.targets, rig.store)


@pytest.mark.gpu
def test_copies_on_a_gpu_are_merged_there_and_restored(rig: Rig) -> None:
    copies = {name: tensor.to("cuda", copy=True) for name, tensor in rig.source.items()}
    base = dict(copies)
    resident = ResidentWeights(copies, rig.source, rig.targets, rig.store)
    beside = merged_with({k: t.clone() for k, t in copies.items()}, rig.store, rig.targets, ("a", 0.5), ("b", -0.25))
    held = resident.acquire(A + B)
    on_cpu = rig.merged(("a", 0.5), ("b", -0.25))
    for name, tensor in held.weights.items():
        assert same_bits(tensor.cpu(), beside[name].cpu()), name
        assert torch.allclose(tensor.cpu().float(), on_cpu[name].float(), rtol=0.13, atol=0.05), name
    assert not same_bits(copies["dense16.weight"].cpu(), rig.source["dense16.weight"])
    held.release()
    resident.acquire([]).release()
    assert all(same_bits(copies[name].cpu(), rig.source[name]) for name in base)


def test_a_network_of_copies_serves_all_adapters(rig: Rig) -> None:
    held = rig.resident.acquire(A)
    network = held.network(lambda weights: (weights["dense16.weight"],))
    held.release()
    held = rig.resident.acquire([])
    assert held.network(lambda weights: (weights["dense16.weight"],)) is network
    assert all_same_bits({"": network[0]}, {"": rig.source["dense16.weight"]})
