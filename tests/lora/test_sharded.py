"""Merging shards gives the shards of the merged whole. Two processes, gloo, DTensor."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid.lora import factors as factors_module
from braid.lora.apply import finish
from braid.lora.factors import Factors, StoredWeight, blocks, merge_weight
from braid.lora.layout import Part, WeightLayout
from braid.tests.lora.lora_rig import FP8, same_bits

PROCESS = """
    import sys
    from pathlib import Path

    import torch
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    from braid.lora import factors
    from braid.tests.lora.lora_rig import (
        bits, merged_with, store_with, targets_of, tiny_weights,
    )
    from braid.lora.adapter import AdapterUse
    from braid.lora.resident import ResidentWeights

    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    factors.MIN_BLOCK_ROWS, factors.BLOCK_ELEMENTS = 4, 4 * 24
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    own = folder / f"rank{rank}"
    own.mkdir()

    whole = tiny_weights()
    store, targets = store_with(own, whole, {"all": (), "few": ("dense16", "fused.to_k", "scaled8")})
    uses = ("all", 0.7), ("few", -1.3)
    expected = merged_with(whole, store, targets, *uses)

    def placed(placement):
        def of(name, tensor):
            one = Replicate() if tensor.dim() != 2 or name.endswith("_scale") else placement
            return distribute_tensor(tensor, mesh, [one], src_data_rank=None)
        return {name: of(name, tensor) for name, tensor in whole.items()}

    for placement in (Shard(0), Shard(1), Replicate()):
        base = placed(placement)
        before = {name: bits(tensor.to_local()) for name, tensor in base.items()}
        result = merged_with(base, store, targets_of(base), *uses)
        for name, tensor in result.items():
            local, ours = base[name].to_local(), tensor.to_local()
            assert tensor.placements == base[name].placements and tensor.shape == base[name].shape, name
            assert (ours.shape, ours.stride(), ours.dtype) == (local.shape, local.stride(), local.dtype), name
            theirs = distribute_tensor(expected[name], mesh, base[name].placements, src_data_rank=None).to_local()
            assert bits(ours) == bits(theirs), (placement, name)
            assert bits(local) == before[name], name

        copies = {name: DTensor.from_local(t.to_local().clone(), mesh, t.placements, run_check=False, shape=t.shape,
                                           stride=t.stride()) for name, t in base.items()}
        resident = ResidentWeights(copies, base, targets_of(base), store)
        resident.acquire([AdapterUse(*use) for use in uses]).release()
        assert all(bits(copies[name].to_local()) == bits(result[name].to_local()) for name in base)
        resident.acquire([]).release()
        assert all(bits(copies[name].to_local()) == before[name] for name in base)
    distributed.destroy_process_group()
    print("all equal")
"""


@pytest.mark.slow
def test_merged_shards_are_the_shards_of_the_merged_whole(tmp_path: Path) -> None:
    code = textwrap.dedent(PROCESS)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    assert all("all equal" in output for output in outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize(
    "window", [(slice(0, 7), slice(0, 24)), (slice(7, 31), slice(3, 9)), (slice(48, 48), slice(0, 24))]
)
def test_any_window_of_a_fused_weight_gets_its_slice(
    dtype: torch.dtype, window: tuple[slice, slice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors_module, "MIN_BLOCK_ROWS", 4)
    monkeypatch.setattr(factors_module, "BLOCK_ELEMENTS", 5 * 24)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((48, 24), generator=generator).to(dtype)
    parts = (Part("q", 0, 20), Part("k", 20, 12), Part("v", 32, 16))
    factors = {
        part.module: [Factors(torch.randn((3, 24), generator=generator), torch.randn((part.num_rows, 3)), 0.6)]
        for part in parts
        if part.module != "k"
    }
    whole = WeightLayout(parts, 24, slice(0, 48), slice(0, 24))
    part = WeightLayout(parts, 24, *window)
    assert len(list(blocks(whole, factors, torch.device("cpu")))) > len(parts)

    def merge(stored: Tensor, layout: WeightLayout) -> Tensor:
        return finish(merge_weight(StoredWeight(stored), layout, factors)).weight

    expected = merge(weight, whole)[window].contiguous()
    assert same_bits(merge(weight[window].contiguous(), part), expected)
