"""What training starts from: every tensor of the transformer and the connectors, by official name.

Residual branches begin small and the output at zero, so that the first steps change little at a time.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Generator, Tensor

from braid.diffusion.models.ltx2 import layout
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig, expected_tensors
from braid.training.denoiser.configs import Shape

FIRST_GATE = 0.1
GATE_ROWS = {9: (2, 5, 8), 5: (4,)}
"""Which rows of a block's table are gates, by how many rows it has."""
ZERO_ENDINGS = ("adaln_single.linear.weight", "to_gate_logits.weight", "bias")
"""Modulations begin as the tables have them, and heads ungated: 2 sigmoid(0) is 1."""


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Of every trained tensor."""
    transformer = expected_tensors(TransformerConfig.from_metadata(shape.section))
    found = dict(transformer)
    for name, sizes in layout.text_tensors(Section(Path("braid-tiny"), "transformer", shape.section)).items():
        unknown = shape.num_registers if name.endswith("learnable_registers") else shape.text.width
        found[name] = tuple(unknown if size is None else size for size in sizes)
    return found


def initial_weights(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """float32, on the CPU."""
    return {name: _initial(name, sizes, generator) for name, sizes in tensor_shapes(shape).items()}


def _initial(name: str, sizes: tuple[int, ...], generator: Generator) -> Tensor:
    if name.endswith("_norm.weight"):
        return torch.ones(sizes)
    if "scale_shift_table" in name:
        return _table(name, sizes)
    if name.endswith(ZERO_ENDINGS) or name in ("proj_out.weight", "audio_proj_out.weight"):
        return torch.zeros(sizes)
    if name.endswith("learnable_registers"):
        return torch.rand(sizes, generator=generator) * 2 - 1
    return torch.randn(sizes, generator=generator) / math.sqrt(sizes[1])


def _table(name: str, sizes: tuple[int, ...]) -> Tensor:
    table = torch.zeros(sizes)
    if name.startswith("transformer_blocks.") and "prompt" not in name:
        table[list(GATE_ROWS[sizes[0]])] = FIRST_GATE
    return table
