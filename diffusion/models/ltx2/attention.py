"""Attention of LTX-2: queries and keys normalised over all heads together, a gate per head, and masks.

Everything here works on some rows of queries against all keys, so that a caller can cut it by rows.
Source: specs of LTX-2, section a.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.linear import Linear, make_linear
from braid.diffusion.models.ltx2.rope import Rotation, rotate


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Widths of one attention."""

    query_dim: int
    context_dim: int
    inner_dim: int
    num_heads: int


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention's weights and what is done with them."""

    shape: AttentionShape
    eps: float
    to_q: Linear
    to_k: Linear
    to_v: Linear
    to_out: Linear
    q_norm: Tensor
    k_norm: Tensor
    to_gate_logits: Linear | None

    @property
    def num_gates(self) -> int:
        """How many tensors `gates` gives: 1 or 0."""
        return 0 if self.to_gate_logits is None else 1

    def queries(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, T, query_dim) to (B, T, inner_dim)."""
        return self._normed(self.to_q(x), self.q_norm, rotation)

    def keys(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(B, S, context_dim) to (B, S, inner_dim)."""
        return self._normed(self.to_k(x), self.k_norm, rotation)

    def gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, num_heads) of the input that queries are made of, in (0, 2); nothing where heads are not gated."""
        return () if self.to_gate_logits is None else (2 * self.to_gate_logits(x).sigmoid(),)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Softmax of queries (B, T, inner_dim) over all keys: (B, T, inner_dim).

        Args:
            bias: (B, 1, T or 1, S), added to the scores.
        """
        q, k, v = (torch.unflatten(x, -1, (self.shape.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

    def project(self, x: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        """The attended values (B, T, inner_dim), gated per head, to (B, T, query_dim)."""
        for gate in gates:
            x = (torch.unflatten(x, -1, (self.shape.num_heads, -1)) * gate.unsqueeze(-1)).flatten(2)
        return self.to_out(x)

    def _normed(self, x: Tensor, weight: Tensor, rotation: Rotation | None) -> Tensor:
        x = functional.rms_norm(x, (self.shape.inner_dim,), weight, self.eps)
        return x if rotation is None else rotate(x, rotation)

    def macs_per_query(self, num_keys: int) -> int:
        """Multiply-adds of one row from attending to projection."""
        return self.shape.inner_dim * (2 * num_keys + self.shape.query_dim)


def make_attention(
    weights: Mapping[str, Tensor], name: str, shape: AttentionShape, eps: float, dtype: torch.dtype
) -> Attention:
    """The attention called `name`; it is gated where the weights have a gate. Norms are brought to `dtype`."""
    is_gated = f"{name}.to_gate_logits.weight" in weights
    return Attention(
        shape=shape,
        eps=eps,
        to_q=make_linear(weights, f"{name}.to_q"),
        to_k=make_linear(weights, f"{name}.to_k"),
        to_v=make_linear(weights, f"{name}.to_v"),
        to_out=make_linear(weights, f"{name}.to_out.0"),
        q_norm=weights[f"{name}.q_norm.weight"].to(dtype),
        k_norm=weights[f"{name}.k_norm.weight"].to(dtype),
        to_gate_logits=make_linear(weights, f"{name}.to_gate_logits") if is_gated else None,
    )


def text_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, S) of 1 for tokens that are seen and 0 for others, as a bias of scores (B, 1, 1, S).

    A mask of floats is a bias already, (B, S) or (B, 1, 1 or T, S).
    """
    if mask is None:
        return None
    if not mask.is_floating_point():
        mask = (mask - 1).to(dtype) * torch.finfo(dtype).max
    return (mask[:, None, None] if mask.dim() == 2 else mask).to(dtype)


def self_attention_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, T, T) in [0, 1], by how much row sees column, as a bias of scores (B, 1, T, T): its logarithm."""
    if mask is None:
        return None
    info = torch.finfo(dtype)
    seen = mask.clamp(min=info.tiny).log().to(dtype)
    return torch.where(mask > 0, seen, torch.full_like(seen, info.min)).unsqueeze(1)
