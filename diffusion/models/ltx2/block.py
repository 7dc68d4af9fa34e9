"""One transformer block: self-attention, text, the other stream, feed-forward; cut into pieces by rows of tokens.

Source: specs of LTX-2, section a.4, whose formulas the functions follow line by line.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.adaln import Modulation, modulate, static_modulation
from braid.diffusion.models.ltx2.attention import Attention, AttentionShape, make_attention
from braid.diffusion.models.ltx2.linear import Linear, make_linear
from braid.diffusion.models.ltx2.perturbation import Perturbation, contains
from braid.diffusion.models.ltx2.pieces import Pieces, by_rows
from braid.diffusion.models.ltx2.rope import Rotation
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig


@dataclass(slots=True)
class StreamState:
    """One stream on its way through the blocks; `x` is replaced, never written to."""

    x: Tensor
    """(B, T, width)."""
    context: Tensor
    """(B, S, context_dim)."""
    context_bias: Tensor | None
    self_bias: Tensor | None
    rotation: Rotation
    cross_rotation: Rotation | None
    """By time alone; None in a model of one stream."""
    modulation: Modulation
    prompt_modulation: Modulation | None
    cross_modulation: Modulation | None
    cross_gate: Modulation | None
    embeddings: Modulation
    """Of the timesteps, before they become modulation: what the output is modulated with."""
    is_enabled: bool
    """A stream that is not keeps its hidden states; the other one still sees them."""


@dataclass(frozen=True, slots=True)
class StreamBlock:
    """A block's weights of one stream."""

    table: Tensor
    prompt_table: Tensor | None
    cross_table: Tensor | None
    self_attention: Attention
    text_attention: Attention
    ff_in: Linear
    ff_out: Linear
    width: int
    eps: float

    def norm(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (self.width,), None, self.eps)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Block:
    """A block's weights; cross-modal attentions are None in a model of one stream."""

    index: int
    streams: AudioVideo[StreamBlock]
    audio_to_video: Attention | None
    video_to_audio: Attention | None


def run_block(
    block: Block, states: AudioVideo[StreamState], perturbations: Sequence[Perturbation], max_macs: int
) -> Pieces:
    """Take both streams through a block.

    Args:
        states: their `x` is replaced.
        perturbations: one for each sample of the batch.
        max_macs: of one piece, roughly.
    """
    skipped = AudioVideo(
        [contains(item.video_self_attention, block.index) for item in perturbations],
        [contains(item.audio_self_attention, block.index) for item in perturbations],
    )
    enabled = _enabled_streams(block, states, skipped)
    for weights, state, is_skipped in enabled:
        yield from _self_attention(weights, state, is_skipped, max_macs)
        yield from _text_attention(weights, state, max_macs)
    yield from _exchange(block, states, perturbations, max_macs)
    for weights, state, _ in enabled:
        yield from _feed_forward(weights, state, max_macs)


def _enabled_streams(
    block: Block, states: AudioVideo[StreamState], skipped: AudioVideo[list[bool]]
) -> list[tuple[StreamBlock, StreamState, list[bool]]]:
    """Weights, state and which samples skip self-attention, of each stream that moves."""
    both = (
        (block.streams.video, states.video, skipped.video),
        (block.streams.audio, states.audio, skipped.audio),
    )
    return [
        (weights, state, skips)
        for weights, state, skips in both
        if weights is not None and state is not None and skips is not None and state.is_enabled
    ]


def _self_attention(weights: StreamBlock, state: StreamState, is_skipped: list[bool], max_macs: int) -> Pieces:
    """x += gate0 SelfAttn(rms(x) (1 + scale1) + shift0); a sample that skips it projects its values instead."""
    attention, modulation = weights.self_attention, state.modulation.plus(weights.table)
    is_attending = not all(is_skipped)

    def project(x: Tensor, rows: slice) -> tuple[Tensor, ...]:
        x = modulate(weights.norm(x), modulation, rows, shift=0, scale=1)
        values = (attention.to_v(x), *attention.gates(x))
        if not is_attending:
            return values
        rotation = state.rotation.rows(rows)
        return (*values, attention.queries(x, rotation), attention.keys(x, rotation))

    num_samples, num_tokens, width = state.x.shape
    num_products = 3 if is_attending else 1
    projected = yield from by_rows(state.x, num_samples * num_products * width * width, max_macs, project)
    v, gates = projected[0], projected[1 : 1 + attention.num_gates]

    def attend(x: Tensor, rows: slice) -> tuple[Tensor]:
        attended = v[:, rows]
        if is_attending:
            q, k = projected[-2:]
            bias = None if state.self_bias is None else state.self_bias[:, :, rows]
            attended = _unless(is_skipped, attention.attend(q[:, rows], k, v, bias), attended)
        out = attention.project(attended, tuple(gate[:, rows] for gate in gates))
        return (torch.addcmul(x, modulation.of_tokens(2, rows), out),)

    num_keys = num_tokens if is_attending else 0
    (state.x,) = yield from by_rows(state.x, num_samples * attention.macs_per_query(num_keys), max_macs, attend)


def _text_attention(weights: StreamBlock, state: StreamState, max_macs: int) -> Pieces:
    """x += gate8 CrossAttn(rms(x) (1 + scale7) + shift6, context); without text AdaLN as they are."""
    attention, modulation = weights.text_attention, state.modulation.plus(weights.table)
    prompt = _prompt_modulation(weights, state)

    def keys_and_values(context: Tensor, rows: slice) -> tuple[Tensor, ...]:
        if prompt is not None:
            context = modulate(context, prompt, rows, shift=0, scale=1)
        return attention.keys(context, None), attention.to_v(context)

    num_samples, num_keys, context_dim = state.context.shape
    macs = num_samples * 2 * context_dim * weights.width
    k, v = yield from by_rows(state.context, macs, max_macs, keys_and_values)

    def attend(x: Tensor, rows: slice) -> tuple[Tensor]:
        normed = weights.norm(x)
        if prompt is not None:
            normed = modulate(normed, modulation, rows, shift=6, scale=7)
        attended = attention.attend(attention.queries(normed, None), k, v, state.context_bias)
        out = attention.project(attended, attention.gates(normed))
        return (x + out if prompt is None else torch.addcmul(x, modulation.of_tokens(8, rows), out),)

    macs = num_samples * (weights.width**2 + attention.macs_per_query(num_keys))
    (state.x,) = yield from by_rows(state.x, macs, max_macs, attend)


def _prompt_modulation(weights: StreamBlock, state: StreamState) -> Modulation | None:
    """Shift (row 0) and scale (row 1) of the context; None in models without text AdaLN."""
    if weights.prompt_table is None:
        return None
    if state.prompt_modulation is None:
        return static_modulation(weights.prompt_table)
    return state.prompt_modulation.plus(weights.prompt_table)


def _exchange(
    block: Block, states: AudioVideo[StreamState], perturbations: Sequence[Perturbation], max_macs: int
) -> Pieces:
    """Video looks at audio and audio at video, each at the other as it was before."""
    if block.audio_to_video is None or block.video_to_audio is None:
        return
    video, audio = _Side.of(block.streams.video, states.video), _Side.of(block.streams.audio, states.audio)
    if video is None or audio is None:
        return
    skipped = [contains(item.audio_to_video, block.index) for item in perturbations]
    video_x = yield from _look(block.audio_to_video, video, audio, 0, skipped, max_macs)
    skipped = [contains(item.video_to_audio, block.index) for item in perturbations]
    audio_x = yield from _look(block.video_to_audio, audio, video, 2, skipped, max_macs)
    video.state.x, audio.state.x = video_x, audio_x


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two streams that look at each other."""

    weights: StreamBlock
    state: StreamState
    modulation: Modulation
    gate: Modulation
    rotation: Rotation

    @classmethod
    def of(cls, weights: StreamBlock | None, state: StreamState | None) -> _Side | None:
        """None where the stream is absent, or was given alone."""
        if weights is None or state is None or weights.cross_table is None:
            return None
        if state.cross_modulation is None or state.cross_gate is None or state.cross_rotation is None:
            return None
        modulation, gate = state.cross_modulation.plus(weights.cross_table[:4]), weights.cross_table[4:]
        return cls(weights, state, modulation, state.cross_gate.plus(gate), state.cross_rotation)

    def normed(self, x: Tensor, rows: slice, first_row: int) -> Tensor:
        """rms(x) (1 + scale) + shift; in these tables the scale comes first."""
        return modulate(self.weights.norm(x), self.modulation, rows, shift=first_row + 1, scale=first_row)


def _look(
    attention: Attention, to: _Side, at: _Side, first_row: int, is_skipped: list[bool], max_macs: int
) -> Generator[int, None, Tensor]:
    """One stream's x after it attended to the other's: x + gate Attn(own, other); both turned by time."""
    if all(is_skipped) or not to.state.is_enabled:
        return to.state.x

    def keys_and_values(x: Tensor, rows: slice) -> tuple[Tensor, ...]:
        x = at.normed(x, rows, first_row)
        return attention.keys(x, at.rotation.rows(rows)), attention.to_v(x)

    num_samples, num_keys, _ = at.state.x.shape
    shape = attention.shape
    macs = num_samples * 2 * shape.context_dim * shape.inner_dim
    k, v = yield from by_rows(at.state.x, macs, max_macs, keys_and_values)

    def attend(x: Tensor, rows: slice) -> tuple[Tensor]:
        normed = to.normed(x, rows, first_row)
        attended = attention.attend(attention.queries(normed, to.rotation.rows(rows)), k, v, None)
        out = attention.project(attended, attention.gates(normed))
        return (_unless(is_skipped, torch.addcmul(x, to.gate.of_tokens(0, rows), out), x),)

    macs = num_samples * (shape.query_dim * shape.inner_dim + attention.macs_per_query(num_keys))
    (x,) = yield from by_rows(to.state.x, macs, max_macs, attend)
    return x


def _feed_forward(weights: StreamBlock, state: StreamState, max_macs: int) -> Pieces:
    """x += gate5 FF(rms(x) (1 + scale4) + shift3)."""
    modulation = state.modulation.plus(weights.table)

    def feed(x: Tensor, rows: slice) -> tuple[Tensor]:
        hidden = weights.ff_in(modulate(weights.norm(x), modulation, rows, shift=3, scale=4))
        out = weights.ff_out(functional.gelu(hidden, approximate="tanh"))
        return (torch.addcmul(x, modulation.of_tokens(5, rows), out),)

    (state.x,) = yield from by_rows(state.x, state.x.shape[0] * 8 * weights.width**2, max_macs, feed)


def _unless(is_skipped: list[bool], done: Tensor, otherwise: Tensor) -> Tensor:
    """(B, T, C) of `done`, but of `otherwise` for the samples that skip it."""
    if not any(is_skipped):
        return done
    return torch.where(torch.tensor(is_skipped, device=done.device)[:, None, None], otherwise, done)


def make_block(config: TransformerConfig, weights: Mapping[str, Tensor], index: int, dtype: torch.dtype) -> Block:
    """Block `index` of official weights; tables and norms are brought to `dtype`, linear weights stay as they are."""
    prefix = f"transformer_blocks.{index}."
    video, audio = config.streams.video, config.streams.audio
    streams = AudioVideo(
        None if video is None else _make_stream(config, video, weights, prefix, "", dtype),
        None if audio is None else _make_stream(config, audio, weights, prefix, "audio_", dtype),
    )
    if video is None or audio is None:
        return Block(index, streams, None, None)
    inner, heads, eps = config.cross_inner_dim, audio.num_heads, config.norm_eps
    a2v = AttentionShape(video.width, audio.width, inner, heads)
    v2a = AttentionShape(audio.width, video.width, inner, heads)
    return Block(
        index,
        streams,
        make_attention(weights, f"{prefix}audio_to_video_attn", a2v, eps, dtype),
        make_attention(weights, f"{prefix}video_to_audio_attn", v2a, eps, dtype),
    )


def _make_stream(
    config: TransformerConfig,
    stream: StreamConfig,
    weights: Mapping[str, Tensor],
    block: str,
    modality: str,
    dtype: torch.dtype,
) -> StreamBlock:
    """One stream's part of a block; `modality` is the "audio_" of its names."""
    prefix = block + modality
    cross_table = f"{block}scale_shift_table_a2v_ca_{'audio' if modality else 'video'}"
    own = AttentionShape(stream.width, stream.width, stream.width, stream.num_heads)
    text = AttentionShape(stream.width, stream.context_dim, stream.width, stream.num_heads)
    return StreamBlock(
        table=weights[f"{prefix}scale_shift_table"].to(dtype),
        prompt_table=weights[f"{prefix}prompt_scale_shift_table"].to(dtype) if config.has_text_adaln else None,
        cross_table=weights[cross_table].to(dtype) if config.has_both_streams else None,
        self_attention=make_attention(weights, f"{prefix}attn1", own, config.norm_eps, dtype),
        text_attention=make_attention(weights, f"{prefix}attn2", text, config.norm_eps, dtype),
        ff_in=make_linear(weights, f"{prefix}ff.net.0.proj"),
        ff_out=make_linear(weights, f"{prefix}ff.net.2"),
        width=stream.width,
        eps=config.norm_eps,
    )
