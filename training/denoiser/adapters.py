"""Low-rank adapters in training: factors beside weights that stay as they are.

The rule is that of `lora`: weight + up @ down * alpha / rank, with alpha equal to the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

PREFIX = "diffusion_model."
DOWN, UP = "lora_A.weight", "lora_B.weight"


def adapted_layers(weights: Mapping[str, Tensor]) -> list[str]:
    """Matrices of attentions and feed-forwards of all blocks, by name without `.weight`."""
    return [
        name.removesuffix(".weight")
        for name, value in weights.items()
        if name.startswith("transformer_blocks.")
        and name.endswith(".weight")
        and value.dim() == 2
        and "to_gate_logits" not in name
    ]


def initial_factors(weights: Mapping[str, Tensor], rank: int, generator: Generator) -> dict[str, Tensor]:
    """Downward factors at random and upward ones zero: at first nothing changes."""
    factors: dict[str, Tensor] = {}
    for layer in adapted_layers(weights):
        rows, columns = weights[f"{layer}.weight"].shape
        factors[f"{layer}.{DOWN}"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
        factors[f"{layer}.{UP}"] = torch.zeros(rows, rank)
    return factors


def adapted(weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A new mapping, through which gradients go to the factors."""
    result = dict(weights)
    for name, up in factors.items():
        if name.endswith(UP):
            layer = name.removesuffix(f".{UP}")
            result[f"{layer}.weight"] = weights[f"{layer}.weight"] + up @ factors[f"{layer}.{DOWN}"]
    return result


def write_adapter(path: Path, factors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """In the form of LTX-2's own adapters, bfloat16."""
    tensors = {
        f"{PREFIX}{name}": value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in factors.items()
    }
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()})
