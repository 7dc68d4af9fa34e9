"""Rotary positions of LTX-2: angles from where tokens are in seconds and pixels, and the rotation of queries and keys.

Source: specs of LTX-2, section a.5. Angles are laid out over the whole inner width, frequency major and axis minor, so
different heads see different frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.transformer_config import RopeType


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of a number of tokens.

    split: (B, T, num_heads, head_dim / 2), element d turns with d + head_dim / 2 of its head.
    interleaved: (B, T, inner width), element 2d turns with 2d + 1.
    """

    cos: Tensor
    sin: Tensor
    rope_type: RopeType

    def rows(self, rows: slice) -> Rotation:
        """Of some of the tokens."""
        return Rotation(self.cos[:, rows], self.sin[:, rows], self.rope_type)

    def to(self, dtype: torch.dtype) -> Rotation:
        return Rotation(self.cos.to(dtype), self.sin.to(dtype), self.rope_type)


def frequencies(inner_dim: int, num_axes: int, theta: float, *, is_double: bool) -> Tensor:
    """(inner_dim // (2 num_axes),) float32: pi/2 theta^(j / (K - 1)), computed in float64 or float32."""
    dtype = torch.float64 if is_double else torch.float32
    exponents = torch.linspace(0.0, 1.0, inner_dim // (2 * num_axes), dtype=dtype)
    return (torch.pow(theta, exponents) * (math.pi / 2)).float()


def make_rotation(
    positions: Tensor,
    inner_dim: int,
    num_heads: int,
    max_pos: tuple[float, ...],
    *,
    theta: float = 10000.0,
    rope_type: RopeType = "split",
    is_double: bool = True,
) -> Rotation:
    """The rotation of tokens at `positions`, in float32.

    Args:
        positions: (B, num_axes, T, 2), start and end of each token; its middle counts.
        inner_dim: width of queries and keys, all heads together.
        max_pos: the position of each axis that becomes 1.
    """
    limits = torch.tensor(max_pos, dtype=torch.float32, device=positions.device)[:, None]
    middles = positions.float().mean(dim=-1) / limits  # (B, num_axes, T)
    freqs = frequencies(inner_dim, len(max_pos), theta, is_double=is_double).to(positions.device)
    angles = (2 * middles - 1).transpose(1, 2).unsqueeze(2) * freqs.unsqueeze(-1)  # (B, T, K, num_axes)
    return _lay_out(angles.flatten(2), inner_dim, num_heads, rope_type)


def _lay_out(angles: Tensor, inner_dim: int, num_heads: int, rope_type: RopeType) -> Rotation:
    """Tables of the full width: slots at the front for which no frequency is left are not turned."""
    if rope_type == "interleaved":
        angles = angles.repeat_interleave(2, dim=-1)
    width = inner_dim if rope_type == "interleaved" else inner_dim // 2
    angles = torch.nn.functional.pad(angles, (width - angles.shape[-1], 0))  # an angle of 0: cosine 1, sine 0
    if rope_type == "split":
        angles = torch.unflatten(angles, -1, (num_heads, -1))
    return Rotation(angles.cos(), angles.sin(), rope_type)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """(B, T, inner width) queries or keys, turned; in the dtype of x."""
    return _rotate_split(x, rotation) if rotation.rope_type == "split" else _rotate_interleaved(x, rotation)


def _rotate_split(x: Tensor, rotation: Rotation) -> Tensor:
    cos, sin = rotation.cos, rotation.sin
    first, second = torch.unflatten(x, -1, (cos.shape[-2], 2, cos.shape[-1])).unbind(
        -2
    )  # (B, T, num_heads, head_dim / 2)
    turned = (torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin))
    return torch.cat(turned, dim=-1).flatten(2)


def _rotate_interleaved(x: Tensor, rotation: Rotation) -> Tensor:
    even, odd = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return torch.addcmul(x * rotation.cos, torch.stack((-odd, even), dim=-1).flatten(2), rotation.sin)
