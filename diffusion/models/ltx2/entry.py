"""Where a stream enters and leaves the blocks: tokens, modulations, rotations and masks in, velocity out.

Source: specs of LTX-2, sections a.4 and a.5.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.adaln import (
    AdaLayerNormSingle,
    DistinctTimesteps,
    Modulation,
    distinct,
    make_adaln,
    modulate,
)
from braid.diffusion.models.ltx2.attention import self_attention_bias, text_bias
from braid.diffusion.models.ltx2.block import StreamState
from braid.diffusion.models.ltx2.linear import Linear, make_linear
from braid.diffusion.models.ltx2.pieces import by_rows
from braid.diffusion.models.ltx2.rope import Rotation, make_rotation
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig
from braid.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Stream:
    """What the transformer is given of one stream."""

    latents: Tensor
    """(B, T, in_channels)."""
    sigma: Tensor
    """(B,) float32 in [0, 1]; 0 for a stream that is given and not denoised."""
    timesteps: Tensor
    """(B, T) or (B, T, 1) float32: denoise_mask * sigma. May stay on the CPU, which spares a wait on a GPU."""
    positions: Tensor
    """(B, num_axes, T, 2) float32: starts and ends; seconds, then rows and columns in pixels."""
    context: Tensor
    """(B, num_text_tokens, context width)."""
    context_mask: Tensor | None = None
    """(B, num_text_tokens) integers: 1 is seen. Floats are added to the scores as they are."""
    attention_mask: Tensor | None = None
    """(B, T, T) in [0, 1]: by how much a token sees another."""
    keyframes_mask: Tensor | None = None
    """(B, T) or (B, T, 1): above 0 where a token's latent is a single picture (2.5)."""
    enabled: bool = True
    """False keeps the stream's hidden states as they enter, for the other stream to see."""

    def sample(self, index: int) -> Stream:
        """One sample of the batch, as a batch of one."""
        here = slice(index, index + 1)

        def one(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[here]

        return Stream(
            latents=self.latents[here],
            sigma=self.sigma[here],
            timesteps=self.timesteps[here],
            positions=self.positions[here],
            context=self.context[here],
            context_mask=one(self.context_mask),
            attention_mask=one(self.attention_mask),
            keyframes_mask=one(self.keyframes_mask),
            enabled=self.enabled,
        )


def check_streams(config: TransformerConfig, streams: AudioVideo[Stream]) -> int:
    """The number of samples.

    Raises:
        InvalidRequest: a stream that the model has not, none at all, or a tensor of the wrong shape.
    """
    num_samples = {len(stream.latents) for stream in streams.present()}
    if len(num_samples) != 1:
        raise InvalidRequest(f"the streams must have one batch size; they have {sorted(num_samples) or 'no stream'}")
    pairs = (("video", config.streams.video, streams.video), ("audio", config.streams.audio, streams.audio))
    for name, expected, stream in pairs:
        if stream is not None and expected is None:
            raise InvalidRequest(f"{name} was given to a transformer that has no {name} stream")
        if stream is not None and expected is not None:
            _check_stream(name, config, expected, stream)
    return num_samples.pop()


def _check_stream(name: str, config: TransformerConfig, expected: StreamConfig, stream: Stream) -> None:
    if stream.latents.dim() != 3 or 0 in stream.latents.shape:
        raise InvalidRequest(f"{name} latents must be (B, T, C), none of them 0, not {tuple(stream.latents.shape)}")
    size, tokens, _ = stream.latents.shape
    text = stream.context.shape[1] if stream.context.dim() == 3 else 0
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "latents": ((size, tokens, expected.in_channels),),
        "sigma": ((size,),),
        "timesteps": ((size, tokens), (size, tokens, 1)),
        "positions": ((size, len(expected.max_pos), tokens, 2),),
        "context": ((size, text, config.caption_channels or expected.context_dim),),
        "context_mask": ((size, text), (size, 1, 1, text), (size, 1, tokens, text)),
        "attention_mask": ((size, tokens, tokens),),
        "keyframes_mask": ((size, tokens), (size, tokens, 1)),
    }
    for field, allowed in shapes.items():
        value = getattr(stream, field)
        if value is not None and tuple(value.shape) not in allowed:
            wanted = " or ".join(str(shape) for shape in allowed)
            raise InvalidRequest(f"{name} {field} must be {wanted}, not {tuple(value.shape)}")


@dataclass(frozen=True, slots=True)
class StreamEnds:
    """One stream's weights outside the blocks."""

    config: StreamConfig
    patchify: Linear
    proj_out: Linear
    out_table: Tensor
    adaln: AdaLayerNormSingle
    prompt_adaln: AdaLayerNormSingle | None
    cross_adaln: AdaLayerNormSingle | None
    cross_gate_adaln: AdaLayerNormSingle | None
    caption_projection: tuple[Linear, Linear] | None
    keyframes_embedding: Tensor | None


def make_ends(config: TransformerConfig, weights: Mapping[str, Tensor], dtype: torch.dtype) -> AudioVideo[StreamEnds]:
    """The weights outside the blocks, of the streams that the config has; small tables are brought to `dtype`."""
    video, audio = config.streams.video, config.streams.audio
    return AudioVideo(
        None if video is None else _make_end(config, video, weights, "", dtype),
        None if audio is None else _make_end(config, audio, weights, "audio_", dtype),
    )


def _make_end(
    config: TransformerConfig, stream: StreamConfig, weights: Mapping[str, Tensor], prefix: str, dtype: torch.dtype
) -> StreamEnds:
    def adaln(name: str, num_rows: int, *, exists: bool) -> AdaLayerNormSingle | None:
        return make_adaln(weights, name, stream.width, num_rows) if exists else None

    modality, gate = ("audio", "v2a") if prefix else ("video", "a2v")
    captions = [f"{prefix}caption_projection.linear_{index}" for index in (1, 2)]
    keyframes = weights["keyframes_abs_pos_embedding"] if config.has_keyframes_embedding and not prefix else None
    return StreamEnds(
        config=stream,
        patchify=make_linear(weights, f"{prefix}patchify_proj"),
        proj_out=make_linear(weights, f"{prefix}proj_out"),
        out_table=weights[f"{prefix}scale_shift_table"].to(dtype),
        adaln=make_adaln(weights, f"{prefix}adaln_single", stream.width, config.num_modulation_rows),
        prompt_adaln=adaln(f"{prefix}prompt_adaln_single", 2, exists=config.has_text_adaln and config.has_prompt_adaln),
        cross_adaln=adaln(f"av_ca_{modality}_scale_shift_adaln_single", 4, exists=config.has_both_streams),
        cross_gate_adaln=adaln(f"av_ca_{gate}_gate_adaln_single", 1, exists=config.has_both_streams),
        caption_projection=(
            None
            if config.caption_channels is None
            else (make_linear(weights, captions[0]), make_linear(weights, captions[1]))
        ),
        keyframes_embedding=None if keyframes is None else keyframes.to(dtype),
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """Takes one stream of a forward into the blocks and out of them."""

    config: TransformerConfig
    ends: StreamEnds
    stream: Stream
    other: Stream | None
    dtype: torch.dtype
    device: torch.device
    max_macs: int

    def enter(self) -> Generator[int, None, StreamState]:
        """The state before the first block."""
        stream, config = self.stream, self.config
        yield stream.timesteps.numel()  # so that beginning a forward computes nothing yet
        timesteps = self._distinct(stream.timesteps.flatten(1))
        sigmas = self._distinct(stream.sigma[:, None])
        modulation, embeddings = yield from self._adaln(self.ends.adaln, timesteps, config.timestep_scale)
        prompt = yield from self._rows(self.ends.prompt_adaln, sigmas, config.timestep_scale)
        cross, gate = yield from self._cross_modulations(timesteps)
        context = yield from self._context()
        x = yield from self._tokens()
        return StreamState(
            x=x,
            context=context,
            context_bias=text_bias(self._moved(stream.context_mask), self.dtype),
            self_bias=self_attention_bias(self._moved(stream.attention_mask), self.dtype),
            rotation=self._rotation(stream.positions, self.ends.config.width, self.ends.config.max_pos),
            cross_rotation=self._cross_rotation(),
            modulation=modulation,
            prompt_modulation=prompt,
            cross_modulation=cross,
            cross_gate=gate,
            embeddings=embeddings,
            is_enabled=stream.enabled,
        )

    def leave(self, state: StreamState) -> Generator[int, None, Tensor]:
        """The velocity (B, T, out_channels) after the last block."""
        width, modulation = self.ends.config.width, state.embeddings.plus(self.ends.out_table)

        def project(x: Tensor, rows: slice) -> tuple[Tensor]:
            normed = functional.layer_norm(x, (width,), eps=self.config.norm_eps)
            return (self.ends.proj_out(modulate(normed, modulation, rows, shift=0, scale=1)),)

        macs = len(state.x) * width * self.ends.config.out_channels
        (velocity,) = yield from by_rows(state.x, macs, self.max_macs, project)
        return velocity

    def _moved(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(self.device)

    def _distinct(self, timesteps: Tensor) -> DistinctTimesteps:
        found = distinct(timesteps)
        return DistinctTimesteps(found.values, self._moved(found.index))

    def _adaln(
        self, unit: AdaLayerNormSingle, timesteps: DistinctTimesteps, scale: float
    ) -> Generator[int, None, tuple[Modulation, Modulation]]:
        """The unit's rows, and its embedding as a single row."""
        yield unit.num_macs(len(timesteps.values))
        rows, embeddings = unit(timesteps.values * scale, self.dtype, self.device)
        return Modulation(rows, timesteps.index), Modulation(embeddings.unsqueeze(1), timesteps.index)

    def _rows(
        self, unit: AdaLayerNormSingle | None, timesteps: DistinctTimesteps, scale: float
    ) -> Generator[int, None, Modulation | None]:
        if unit is None:
            return None
        rows, _ = yield from self._adaln(unit, timesteps, scale)
        return rows

    def _cross_modulations(
        self, timesteps: DistinctTimesteps
    ) -> Generator[int, None, tuple[Modulation | None, Modulation | None]]:
        """Scales and shifts, and the gate, of attention to the other stream, by the config's rule."""
        if self.other is None:
            return None, None
        other_sigma, rule = self._distinct(self.other.sigma[:, None]), self.config.cross_modal_rule
        of_rows = other_sigma if rule == "other_sigma" else timesteps
        of_gate = timesteps if rule == "own_tokens" else other_sigma
        rows = yield from self._rows(self.ends.cross_adaln, of_rows, self.config.timestep_scale)
        gate = yield from self._rows(self.ends.cross_gate_adaln, of_gate, self.config.cross_gate_timestep_scale)
        return rows, gate

    def _context(self) -> Generator[int, None, Tensor]:
        """The prompt embeddings, projected where the transformer does that (2.0)."""
        context = self.stream.context.to(self.device, self.dtype)
        if self.ends.caption_projection is None:
            return context
        linear_1, linear_2 = self.ends.caption_projection

        def project(rows: Tensor, _: slice) -> tuple[Tensor]:
            return (linear_2(functional.gelu(linear_1(rows), approximate="tanh")),)

        width = self.ends.config.width
        macs = len(context) * width * (context.shape[-1] + width)
        (projected,) = yield from by_rows(context, macs, self.max_macs, project)
        return projected

    def _tokens(self) -> Generator[int, None, Tensor]:
        """The latents as hidden states; single pictures are marked where the model knows them."""
        latents = self.stream.latents.to(self.device, self.dtype)

        def patchify(rows: Tensor, _: slice) -> tuple[Tensor]:
            return (self.ends.patchify(rows),)

        macs = len(latents) * latents.shape[-1] * self.ends.config.width
        (x,) = yield from by_rows(latents, macs, self.max_macs, patchify)
        mask, embedding = self._moved(self.stream.keyframes_mask), self.ends.keyframes_embedding
        if mask is None or embedding is None:
            return x
        is_marked = (mask.flatten(1) > 0).unsqueeze(-1)
        return x + is_marked.to(self.dtype) * embedding

    def _rotation(self, positions: Tensor, inner_dim: int, max_pos: tuple[float, ...]) -> Rotation:
        return make_rotation(
            positions.to(self.device),
            inner_dim,
            self.ends.config.num_heads,
            max_pos,
            theta=self.config.rope_theta,
            rope_type=self.config.rope_type,
            is_double=self.config.has_double_precision_rope,
        ).to(self.dtype)

    def _cross_rotation(self) -> Rotation | None:
        if self.other is None:
            return None
        seconds = self.stream.positions[:, :1]
        return self._rotation(seconds, self.config.cross_inner_dim, (self.config.cross_max_pos,))
