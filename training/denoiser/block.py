"""One transformer block at once: what `ltx2.block.run_block` cuts into pieces, as plain functions of tensors.

Compilers follow tensors and named tuples, and not generators nor the objects that serve; a test holds the two together.
It is the block of 2.3: heads gated, text modulated. Source: specs of LTX-2, section a.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Weights = Mapping[str, Tensor]


class Turns(NamedTuple):
    """Of queries and keys, (1, T, num_heads, head_dim / 2) each."""

    cos: Tensor
    sin: Tensor


class Rows(NamedTuple):
    """Modulation before the block's own table is added."""

    free: Tensor
    """(B, num_rows, width) of each sample's noise level."""
    held: Tensor
    """(1, num_rows, width) of level 0."""

    def plus(self, table: Tensor) -> Rows:
        return Rows(self.free + table, self.held + table)

    def of_tokens(self, row: int, is_free: Tensor) -> Tensor:
        """(B, T, width)."""
        return torch.where(is_free, self.free[:, row, None], self.held[:, row, None])


class StreamInputs(NamedTuple):
    """One stream of a batch on its way through the blocks."""

    x: Tensor
    """(B, T, width)."""
    context: Tensor
    """(B, S, width)."""
    is_free: Tensor
    """(B, T, 1) bool."""
    turns: Turns
    rows: Rows
    prompt: Tensor
    """(B, 2, width)."""
    cross_turns: Turns | None = None
    """These three are None where the other stream is absent."""
    cross: Rows | None = None
    gate: Tensor | None = None
    """(B, 1, width) of the other stream's level."""


def run_whole_block(
    weights: Weights, video: StreamInputs | None, audio: StreamInputs | None, num_heads: int, eps: float
) -> tuple[Tensor | None, Tensor | None]:
    """Hidden states (B, T, width) of both streams behind the block, whose weights have no prefix."""
    maths = _Maths(num_heads, eps)
    video_x = None if video is None else _attended(weights, "", video, maths)
    audio_x = None if audio is None else _attended(weights, "audio_", audio, maths)
    if video is not None and audio is not None and video_x is not None and audio_x is not None:
        video, audio = video._replace(x=video_x), audio._replace(x=audio_x)
        video_x = _looked(weights, ("audio_to_video_attn", "video", "audio"), video, audio, 0, maths)
        audio_x = _looked(weights, ("video_to_audio_attn", "audio", "video"), audio, video, 2, maths)
    return (
        None if video is None or video_x is None else _fed(weights, "", video, video_x, maths),
        None if audio is None or audio_x is None else _fed(weights, "audio_", audio, audio_x, maths),
    )


class _Maths(NamedTuple):
    num_heads: int
    eps: float

    def norm(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], None, self.eps)

    def attention(
        self, weights: Weights, name: str, x: Tensor, at: Tensor, own: Turns | None, others: Turns | None
    ) -> Tensor:
        """x looks at `at`: (B, T, width of x)."""
        queries = self._heads(_normed(weights, f"{name}.to_q", f"{name}.q_norm", x, self.eps), own)
        keys = self._heads(_normed(weights, f"{name}.to_k", f"{name}.k_norm", at, self.eps), others)
        values = torch.unflatten(_linear(weights, f"{name}.to_v", at), -1, (self.num_heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)  # (B, T, H, D)
        gates = 2 * _linear(weights, f"{name}.to_gate_logits", x).sigmoid()
        return _linear(weights, f"{name}.to_out.0", (attended * gates[..., None]).flatten(2))

    def _heads(self, x: Tensor, turns: Turns | None) -> Tensor:
        """(B, T, inner) to (B, num_heads, T, head_dim), turned; element d turns with d + head_dim / 2."""
        if turns is None:
            return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2)
        first, second = torch.unflatten(x, -1, (self.num_heads, 2, -1)).unbind(-2)
        turned = (first * turns.cos - second * turns.sin, second * turns.cos + first * turns.sin)
        return torch.cat(turned, -1).transpose(1, 2)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _normed(weights: Weights, layer: str, norm: str, x: Tensor, eps: float) -> Tensor:
    """All heads together."""
    projected = _linear(weights, layer, x)
    return functional.rms_norm(projected, projected.shape[-1:], weights[f"{norm}.weight"], eps)


def _modulated(x: Tensor, rows: Rows, is_free: Tensor, *, shift: int, scale: int) -> Tensor:
    return x * (1 + rows.of_tokens(scale, is_free)) + rows.of_tokens(shift, is_free)


def _attended(weights: Weights, prefix: str, stream: StreamInputs, maths: _Maths) -> Tensor:
    """Behind self-attention and the text."""
    rows, x, is_free = stream.rows.plus(weights[f"{prefix}scale_shift_table"]), stream.x, stream.is_free
    normed = _modulated(maths.norm(x), rows, is_free, shift=0, scale=1)
    out = maths.attention(weights, f"{prefix}attn1", normed, normed, stream.turns, stream.turns)
    x = x + rows.of_tokens(2, is_free) * out
    prompt = stream.prompt + weights[f"{prefix}prompt_scale_shift_table"]
    context = stream.context * (1 + prompt[:, 1, None]) + prompt[:, 0, None]
    normed = _modulated(maths.norm(x), rows, is_free, shift=6, scale=7)
    return x + rows.of_tokens(8, is_free) * maths.attention(weights, f"{prefix}attn2", normed, context, None, None)


def _looked(
    weights: Weights, names: tuple[str, str, str], to: StreamInputs, at: StreamInputs, first_row: int, maths: _Maths
) -> Tensor:
    """One stream's x after it looked at the other's; both are turned by time.

    Args:
        names: of the attention and of both streams.
    """
    name, own, other = names
    assert to.gate is not None
    own_table = weights[f"scale_shift_table_a2v_ca_{own}"]
    own_x = _crossing(own_table, to, first_row, maths)
    other_x = _crossing(weights[f"scale_shift_table_a2v_ca_{other}"], at, first_row, maths)
    out = maths.attention(weights, name, own_x, other_x, to.cross_turns, at.cross_turns)
    return to.x + (to.gate + own_table[4:]) * out


def _crossing(table: Tensor, stream: StreamInputs, first_row: int, maths: _Maths) -> Tensor:
    """In these tables the scale comes first."""
    assert stream.cross is not None
    rows = stream.cross.plus(table[:4])
    return _modulated(maths.norm(stream.x), rows, stream.is_free, shift=first_row + 1, scale=first_row)


def _fed(weights: Weights, prefix: str, stream: StreamInputs, x: Tensor, maths: _Maths) -> Tensor:
    rows, is_free = stream.rows.plus(weights[f"{prefix}scale_shift_table"]), stream.is_free
    normed = _modulated(maths.norm(x), rows, is_free, shift=3, scale=4)
    hidden = functional.gelu(_linear(weights, f"{prefix}ff.net.0.proj", normed), approximate="tanh")
    return x + rows.of_tokens(5, is_free) * _linear(weights, f"{prefix}ff.net.2", hidden)
