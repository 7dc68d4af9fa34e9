from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from braid.errors import CannotFit, InvalidRequest, MemoryPressure, NotFound
from braid.llm_core.memory.arena import Arena
from braid.lora.adapter import AdapterUse
from braid.lora.apply import finish
from braid.lora.store import AdapterStore
from braid.lora.targets import Targets
from braid.lora.variants import KIND, MergedWeights
from braid.tests.lora.lora_rig import all_same_bits, copy_of, merged_with, run_counted, store_with, tiny_weights

Rig = tuple[dict[str, Tensor], AdapterStore, Targets]
A, B, C = ([AdapterUse(name, 0.5)] for name in "abc")
SIZE = 17 * 24 * 2
"""Bytes of the one weight that a, b and c change."""


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, dict.fromkeys("abc", ("dense16",)) | {"big": ()})
    return weights, store, targets


def variants(rig: Rig, budget_bytes: int = 10 * SIZE) -> tuple[MergedWeights, Arena]:
    weights, store, targets = rig
    arena = Arena(budget_bytes)
    return MergedWeights(weights, targets, store, arena), arena


def test_a_variant_is_merged_once_leased_and_shared(rig: Rig) -> None:
    merged_weights, arena = variants(rig)
    first, second = merged_weights.acquire(A), merged_weights.acquire(A)
    assert first.weights is second.weights
    assert all_same_bits(dict(first.weights), dict(merged_with(*rig, ("a", 0.5))))
    assert arena.usage().by_kind == {KIND: SIZE} and arena.usage().leased_bytes == SIZE
    first.release()
    first.release()
    assert merged_weights.reclaimable_bytes() == 0
    kept = second.weights
    second.release()
    assert merged_weights.reclaimable_bytes() == SIZE
    assert merged_weights.acquire(A).weights is kept


def test_the_base_costs_nothing_and_is_itself(rig: Rig) -> None:
    merged_weights, arena = variants(rig)
    for uses in ([], [AdapterUse("a", 0.0)]):
        held = merged_weights.acquire(uses)
        assert held.weights is rig[0]
        held.release()
    assert arena.usage().by_kind == {}


def test_other_strengths_and_orders_are_other_variants(rig: Rig) -> None:
    merged_weights, arena = variants(rig)
    for uses in (A, [AdapterUse("a", 0.25)], A + B, B + A):
        merged_weights.acquire(uses)
    assert arena.usage().leased_bytes == 4 * SIZE


def test_unused_variants_go_when_memory_is_short_the_oldest_first(rig: Rig) -> None:
    merged_weights, arena = variants(rig, budget_bytes=3 * SIZE)
    in_use = merged_weights.acquire(A)
    kept = merged_weights.acquire(B)
    kept.release()
    merged_weights.acquire(C).release()
    again = merged_weights.acquire(B)
    again.release()
    lease = arena.lease("someone else", SIZE, kind="kv")
    assert merged_weights.reclaimable_bytes() == SIZE
    assert merged_weights.acquire(B).weights is not rig[0]  # c went, b was used later
    with pytest.raises(MemoryPressure, match="LoRA variants"):
        merged_weights.acquire(C)
    lease.release()
    in_use.release()
    assert arena.usage().leased_bytes == 2 * SIZE


def test_what_can_never_fit_is_refused_with_both_numbers_before_any_work(rig: Rig) -> None:
    merged_weights, arena = variants(rig, budget_bytes=SIZE)
    with pytest.raises(CannotFit) as raised:
        next(merged_weights.acquiring([AdapterUse("big", 1.0)]))
    assert (raised.value.needed_bytes > SIZE, raised.value.budget_bytes) == (True, SIZE)
    with pytest.raises(NotFound):
        merged_weights.acquire([AdapterUse("unknown", 1.0)])
    assert arena.usage().by_kind == {}


def test_an_abandoned_merge_gives_its_bytes_back(rig: Rig) -> None:
    merged_weights, arena = variants(rig)
    pieces = merged_weights.acquiring(A)
    next(pieces)
    assert arena.usage().leased_bytes == SIZE and merged_weights.reclaimable_bytes() == 0
    pieces.close()
    assert arena.usage().by_kind == {}


def test_two_who_want_the_same_share_the_work_and_either_may_leave(rig: Rig) -> None:
    merged_weights, arena = variants(rig, budget_bytes=100_000)
    big = [AdapterUse("big", 0.5)]
    held, steps = run_counted(merged_weights.acquiring(big))
    held.release()
    merged_weights.reclaim(100_000)
    assert arena.usage().by_kind == {}
    first, second = merged_weights.acquiring(big), merged_weights.acquiring(big)
    for _ in range(len(steps) // 4):
        next(first)
        next(second)
    first.close()
    held, left = run_counted(second)
    assert len(left) < len(steps) * 3 // 4
    assert all_same_bits(dict(held.weights), dict(merged_with(*rig, ("big", 0.5))))
    assert merged_weights.acquire(big).weights is held.weights


def test_a_merge_that_fails_fails_for_all_who_wait_and_leaves_nothing(rig: Rig) -> None:
    merged_weights, arena = variants(rig)
    loud = [AdapterUse("a", 3e38)]
    first, second = merged_weights.acquiring(loud), merged_weights.acquiring(loud)
    next(first)
    next(second)
    with pytest.raises(InvalidRequest, match="beyond"):
        finish(first)
    with pytest.raises(InvalidRequest, match="beyond"):
        finish(second)
    assert arena.usage().by_kind == {}
    merged_weights.acquire(A)


def test_variants_of_a_removed_adapter_go_as_soon_as_nobody_uses_them(rig: Rig, tmp_path: Path) -> None:
    merged_weights, arena = variants(rig)
    weights, store, _ = rig
    held = merged_weights.acquire(A)
    before = copy_of(held.weights)
    store.remove("a")
    store.add("a", tmp_path / "b.safetensors")
    other = merged_weights.acquire(A)
    assert all_same_bits(copy_of(held.weights), before)
    assert not all_same_bits(copy_of(other.weights), before)
    assert arena.usage().leased_bytes == 2 * SIZE
    held.release()
    assert arena.usage().leased_bytes == SIZE
    assert all_same_bits(weights, tiny_weights())


def test_closing_gives_everything_back(rig: Rig) -> None:
    merged_weights, arena = variants(rig)
    merged_weights.acquire(A).release()
    merged_weights.close()
    assert arena.usage().by_kind == {}
    assert arena.reclaimable_bytes() == 0


class Net:
    """Refers to one tensor of its weights."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weight = weights["dense16.weight"]


def test_a_network_is_built_once_for_each_variant_and_goes_with_it(rig: Rig) -> None:
    merged_weights, _ = variants(rig)
    base, first, second = (merged_weights.acquire(uses) for uses in ([], A, A))
    network = first.network(Net)
    assert first.network(Net) is second.network(Net) is network
    assert network.weight is first.weights["dense16.weight"]
    assert base.network(Net).weight is rig[0]["dense16.weight"]
    tensor = weakref.ref(network.weight)
    for held in (base, first, second):
        held.release()
    del network
    assert tensor() is not None
    merged_weights.reclaim(1)
    assert tensor() is None  # nothing keeps the memory of a variant that is gone
