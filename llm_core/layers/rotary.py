"""Rotary position embedding: inverse frequencies, and the table of angles as `kernels.ops.rope` wants them.

Interleaved pairs do not occur here: the rows of q and k are put in half-split order when weights are loaded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from braid.llm_core.models.config import ModelConfig, RopeScaling

CHUNK_POSITIONS = 1024
"""The table grows by this many rows, so that a row is computed by one call of one shape however long the table is."""


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling) -> Tensor:
    """(head_dim / 2,) float32 radians a position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "divisors":
        return frequencies / torch.tensor(scaling.divisors, dtype=torch.float32)
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    return frequencies


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies are divided by the factor, fast ones kept, those between blended.

    Source: Llama 3.1's release, `use_scaled_rope`.
    """
    rotations = scaling.original_context_length * frequencies / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((rotations - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def layer_frequencies(config: ModelConfig, *, is_sliding: bool) -> Tensor:
    """The inverse frequencies of a global or a sliding layer: a local base is never scaled."""
    if is_sliding and config.rope_local_theta is not None:
        return inverse_frequencies(config.rope_local_theta, config.head_dim, RopeScaling())
    return inverse_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)


class RotaryTable:
    """Cosines and sines by position, computed as far as they have been needed.

    Args:
        frequencies: (head_dim / 2,) of `layer_frequencies`.
    """

    def __init__(self, frequencies: Tensor, device: torch.device) -> None:
        self._frequencies = frequencies
        self._table = torch.empty((0, 1, 2, 2 * len(frequencies)), device=device)

    @property
    def num_bytes(self) -> int:
        return self._table.nbytes

    def rows(self, positions: Tensor, *, max_position: int) -> tuple[Tensor, Tensor]:
        """(num_tokens, 1, head_dim) float32 cosines, and sines with the first half negated.

        Args:
            positions: (num_tokens,) int64 on the table's device, none above `max_position`.
        """
        self._grow(max_position + 1)
        cos, sin = self._table.index_select(0, positions).unbind(2)
        return cos.contiguous(), sin.contiguous()

    def _grow(self, num_positions: int) -> None:
        chunks = [self._table]
        for start in range(len(self._table), num_positions, CHUNK_POSITIONS):
            chunks.append(self._chunk(start).to(self._table.device))
        if len(chunks) > 1:
            self._table = torch.cat(chunks)

    def _chunk(self, start: int) -> Tensor:
        """Angles are float32 products, as models were trained with; their cosines are then exact to the last bit."""
        positions = torch.arange(start, start + CHUNK_POSITIONS, dtype=torch.float32)
        angles = torch.outer(positions, self._frequencies).double()
        cos, sin = angles.cos(), angles.sin()
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)  # (positions, 2, head_dim)
        return table.float().unsqueeze(1)
