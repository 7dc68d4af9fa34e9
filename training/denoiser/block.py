"""One transformer block at once: what `ltx2.block.run_block` cuts into pieces, as plain functions.

Compilers follow plain functions and gradients, and not generators; a test holds the two together.
Source: specs of LTX-2, section a.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.adaln import Modulation, modulate
from braid.diffusion.models.ltx2.attention import Attention
from braid.diffusion.models.ltx2.block import Block, StreamBlock, StreamState
from braid.diffusion.models.ltx2.rope import Rotation

WHOLE = slice(None)


def run_whole_block(
    block: Block, video: StreamState | None, audio: StreamState | None
) -> tuple[Tensor | None, Tensor | None]:
    """Hidden states (B, T, width) of both streams behind the block; the states stay as they are."""
    video_x = None if video is None else _attended(_there(block.streams.video), video)
    audio_x = None if audio is None else _attended(_there(block.streams.audio), audio)
    if video is not None and audio is not None and video_x is not None and audio_x is not None:
        picture = _Side.of(_there(block.streams.video), video, video_x)
        sound = _Side.of(_there(block.streams.audio), audio, audio_x)
        assert block.audio_to_video is not None and block.video_to_audio is not None
        video_x = _looked(block.audio_to_video, picture, sound, 0)
        audio_x = _looked(block.video_to_audio, sound, picture, 2)
    return (
        None if video is None or video_x is None else _fed(_there(block.streams.video), video, video_x),
        None if audio is None or audio_x is None else _fed(_there(block.streams.audio), audio, audio_x),
    )


def _there(weights: StreamBlock | None) -> StreamBlock:
    assert weights is not None, "the transformer has no such stream"
    return weights


def _attended(weights: StreamBlock, state: StreamState) -> Tensor:
    """Behind self-attention and the text."""
    modulation = state.modulation.plus(weights.table)
    attention = weights.self_attention
    normed = modulate(weights.norm(state.x), modulation, WHOLE, shift=0, scale=1)
    out = _attention(attention, normed, normed, state.rotation, state.rotation)
    x = torch.addcmul(state.x, modulation.of_tokens(2, WHOLE), out)
    assert state.prompt_modulation is not None and weights.prompt_table is not None
    prompt = state.prompt_modulation.plus(weights.prompt_table)
    context = modulate(state.context, prompt, WHOLE, shift=0, scale=1)
    normed = modulate(weights.norm(x), modulation, WHOLE, shift=6, scale=7)
    out = _attention(weights.text_attention, normed, context, None, None)
    return torch.addcmul(x, modulation.of_tokens(8, WHOLE), out)


def _attention(
    attention: Attention, x: Tensor, at: Tensor, own: Rotation | None, others: Rotation | None
) -> Tensor:
    queries, keys = attention.queries(x, own), attention.keys(at, others)
    return attention.project(attention.attend(queries, keys, attention.to_v(at), None), attention.gates(x))


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two streams that look at each other."""

    x: Tensor
    normed: Tensor
    modulation: Modulation
    gate: Modulation
    rotation: Rotation

    @classmethod
    def of(cls, weights: StreamBlock, state: StreamState, x: Tensor) -> _Side:
        assert weights.cross_table is not None and state.cross_rotation is not None
        assert state.cross_modulation is not None and state.cross_gate is not None
        modulation = state.cross_modulation.plus(weights.cross_table[:4])
        gate = state.cross_gate.plus(weights.cross_table[4:])
        return cls(x, weights.norm(x), modulation, gate, state.cross_rotation)

    def modulated(self, first_row: int) -> Tensor:
        """In these tables the scale comes first."""
        return modulate(self.normed, self.modulation, WHOLE, shift=first_row + 1, scale=first_row)


def _looked(attention: Attention, to: _Side, at: _Side, first_row: int) -> Tensor:
    """One stream's x after it attended to the other's; both turned by time."""
    out = _attention(attention, to.modulated(first_row), at.modulated(first_row), to.rotation, at.rotation)
    return torch.addcmul(to.x, to.gate.of_tokens(0, WHOLE), out)


def _fed(weights: StreamBlock, state: StreamState, x: Tensor) -> Tensor:
    modulation = state.modulation.plus(weights.table)
    hidden = weights.ff_in(modulate(weights.norm(x), modulation, WHOLE, shift=3, scale=4))
    out = weights.ff_out(functional.gelu(hidden, approximate="tanh"))
    return torch.addcmul(x, modulation.of_tokens(5, WHOLE), out)
