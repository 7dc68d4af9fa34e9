"""Adaptive layer norm: what a timestep does to a token, computed once per distinct timestep.

A video has one to three distinct timesteps (generated, kept, softly held tokens) and tens of thousands of tokens. The
network from timestep to modulation therefore sees each distinct value once, and tokens look their rows up.
Source: specs of LTX-2, sections a.4 and g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.linear import Linear, make_linear
from braid.diffusion.models.ltx2.transformer_config import NUM_SINUSOIDS

ROW_TILE = 8
"""Distinct timesteps are padded to a multiple of this, so that their number does not choose the kernel of a product."""


@dataclass(frozen=True, slots=True)
class DistinctTimesteps:
    """The values that occur among tokens, and which token has which."""

    values: Tensor
    """(num_distinct,) ascending."""
    index: Tensor | None
    """(B, T) into `values`; None where all tokens have the one value."""


def distinct(timesteps: Tensor) -> DistinctTimesteps:
    """Find the distinct values of (B, T). On a GPU this waits for the device once; timesteps may stay on the CPU."""
    values, index = torch.unique(timesteps, return_inverse=True)
    return DistinctTimesteps(values, None if len(values) == 1 else index)


@dataclass(frozen=True, slots=True)
class Modulation:
    """Rows of shifts, scales or gates for each distinct timestep."""

    rows: Tensor
    """(num_distinct, num_rows, width)."""
    index: Tensor | None
    """As in `DistinctTimesteps`; (B, 1) where a sample's tokens share theirs."""

    def plus(self, table: Tensor) -> Modulation:
        """With a block's own (num_rows, width) added."""
        return Modulation(self.rows + table, self.index)

    def of_tokens(self, row: int, tokens: slice, *, plus: float = 0.0) -> Tensor:
        """One row of some tokens, (B or 1, T' or 1, width), with a number added."""
        values = self.rows[:, row] + plus if plus else self.rows[:, row]
        if self.index is None:
            return values.unsqueeze(0)
        return values[self.index if self.index.shape[1] == 1 else self.index[:, tokens]]


def static_modulation(table: Tensor) -> Modulation:
    """A table that no timestep changes."""
    return Modulation(table.unsqueeze(0), None)


def modulate(x: Tensor, modulation: Modulation, tokens: slice, *, shift: int, scale: int) -> Tensor:
    """x (1 + scale) + shift, the rows being those of `tokens`."""
    shifts = modulation.of_tokens(shift, tokens)
    return torch.addcmul(shifts, x, modulation.of_tokens(scale, tokens, plus=1.0))


def sinusoids(timesteps: Tensor) -> Tensor:
    """(n,) to (n, 256) float32: cosines, then sines."""
    half = NUM_SINUSOIDS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) * -math.log(10000) / half
    angles = timesteps.float()[:, None] * exponents.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@dataclass(frozen=True, slots=True)
class AdaLayerNormSingle:
    """The network from a timestep to `num_rows` rows of modulation."""

    linear_1: Linear
    linear_2: Linear
    linear: Linear
    width: int
    num_rows: int

    def __call__(self, timesteps: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """(n,) timesteps, already scaled, to the rows (n, num_rows, width) and the embedding (n, width)."""
        padding = -len(timesteps) % ROW_TILE
        waves = sinusoids(functional.pad(timesteps, (0, padding))).to(device, dtype)
        embedding = self.linear_2(functional.silu(self.linear_1(waves)))
        rows = self.linear(functional.silu(embedding)).reshape(-1, self.num_rows, self.width)
        return rows[: len(timesteps)], embedding[: len(timesteps)]

    def num_macs(self, num_timesteps: int) -> int:
        """Multiply-adds of a call."""
        padded = num_timesteps + -num_timesteps % ROW_TILE
        return padded * self.width * (NUM_SINUSOIDS + self.width + self.num_rows * self.width)


def make_adaln(weights: Mapping[str, Tensor], name: str, width: int, num_rows: int) -> AdaLayerNormSingle:
    """The unit called `name`."""
    embedder = f"{name}.emb.timestep_embedder"
    return AdaLayerNormSingle(
        make_linear(weights, f"{embedder}.linear_1"),
        make_linear(weights, f"{embedder}.linear_2"),
        make_linear(weights, f"{name}.linear"),
        width,
        num_rows,
    )
