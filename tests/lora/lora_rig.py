"""Tiny models with every kind of layer, and LoRA files for them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from braid.lora.adapter import AdapterUse
from braid.lora.apply import MergeStep, Result, merged
from braid.lora.layout import Fused
from braid.lora.store import ActiveAdapters, AdapterStore
from braid.lora.targets import Targets
from braid.lora.variants import HeldWeights

FP8 = torch.float8_e4m3fn
FUSED: Fused = {
    "fused.to_qkv": (("fused.to_q", 20), ("fused.to_k", 12), ("fused.to_v", 16)),
    "fused8.to_qkv": (("fused8.to_q", 20), ("fused8.to_k", 12), ("fused8.to_v", 16)),
    "fused8s.to_qkv": (("fused8s.to_q", 20), ("fused8s.to_k", 12), ("fused8s.to_v", 16)),
    "fused8one.to_qkv": (("fused8one.to_q", 20), ("fused8one.to_k", 12), ("fused8one.to_v", 16)),
}
"""Fused in bfloat16, in fp8 without a scale, with a scale for each part, and with one scale."""
IN_FEATURES = 24


def tiny_weights(seed: int = 0) -> dict[str, Tensor]:
    """Every kind of layer, and tensors that no adapter may change."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "dense32.weight": normal(40, IN_FEATURES),
        "dense32.bias": normal(40),
        "dense16.weight": normal(17, IN_FEATURES).bfloat16(),
        "cast8.weight": normal(9, IN_FEATURES).to(FP8),
        "cast8.bias": normal(9).to(FP8),
        "scaled8.weight": (normal(30, IN_FEATURES) * 90).to(FP8),
        "scaled8.weight_scale": torch.tensor([0.013]),
        "fused.to_qkv.weight": normal(48, IN_FEATURES).bfloat16(),
        "fused8.to_qkv.weight": normal(48, IN_FEATURES).to(FP8),
        "fused8s.to_qkv.weight": (normal(48, IN_FEATURES) * 90).to(FP8),
        "fused8s.to_qkv.weight_scale": torch.tensor([0.01, 0.02, 0.03]),
        "fused8one.to_qkv.weight": (normal(48, IN_FEATURES) * 90).to(FP8),
        "fused8one.to_qkv.weight_scale": torch.tensor(0.01),
        "column_major.weight": normal(IN_FEATURES, 33).bfloat16().t(),
        "norm.weight": normal(8),
        "scale_shift_table": normal(6, 8),
    }


def targets_of(weights: Mapping[str, Tensor]) -> Targets:
    present = {name: parts for name, parts in FUSED.items() if f"{name}.weight" in weights}
    return Targets(weights, present)


def random_factors(
    modules: Mapping[str, tuple[int, int]], *, seed: int = 0, rank: int = 3, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """By module and side, as a file names them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (out_features, in_features) in modules.items():
        tensors[f"diffusion_model.{module}.lora_A.weight"] = torch.randn((rank, in_features), generator=generator)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = torch.randn((out_features, rank), generator=generator)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata or {}))
    return path


def store_with(
    folder: Path, weights: Mapping[str, Tensor], modules: Mapping[str, Sequence[str]], **factors: int
) -> tuple[AdapterStore, Targets]:
    """A store of adapters by name, each changing the modules named (all of them if none are)."""
    targets = targets_of(weights)
    store = AdapterStore(targets)
    for index, (name, some) in enumerate(modules.items()):
        shapes = {module: targets.modules[module] for module in some or targets.modules}
        store.add(name, write_lora(folder / f"{name}.safetensors", random_factors(shapes, seed=index + 1, **factors)))
    return store, targets


def active(store: AdapterStore, *uses: tuple[str, float]) -> ActiveAdapters:
    return store.active([AdapterUse(name, strength) for name, strength in uses])


def merged_with(
    weights: Mapping[str, Tensor], store: AdapterStore, targets: Targets, *uses: tuple[str, float]
) -> Mapping[str, Tensor]:
    return merged(weights, targets, active(store, *uses))


def copy_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own memory, the same strides."""
    return {name: torch.empty_like(tensor).copy_(tensor) for name, tensor in weights.items()}


def same_bits(first: Tensor, second: Tensor) -> bool:
    return (
        (first.dtype, first.shape, first.stride()) == (second.dtype, second.shape, second.stride())
        and bits(first) == bits(second)
    )  # fmt: skip


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())


def all_same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return list(first) == list(second) and all(same_bits(first[name], second[name]) for name in first)


def run_counted(pieces: Generator[MergeStep, None, Result]) -> tuple[Result, list[MergeStep]]:
    """The result and all steps."""
    steps = []
    while True:
        try:
            steps.append(next(pieces))
        except StopIteration as stop:
            result: Result = stop.value
            return result, steps


def abandon_after(pieces: Generator[MergeStep, None, HeldWeights], num_steps: int) -> None:
    """Close a generator that has done some of its work, or release what it gave."""
    for _ in range(num_steps + 1):
        try:
            next(pieces)
        except StopIteration as stop:
            stop.value.release()
            return
    pieces.close()
