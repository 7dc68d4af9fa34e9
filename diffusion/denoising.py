"""Carrying out `Denoise`: the passes of one evaluation through the transformer, in bounded pieces, and their sum.

Passes and samples run one after the other, each of one request alone: the bits of an evaluation are then the same
whoever else is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from braid.diffusion.guidance import Pass, combine, passes_needed
from braid.diffusion.latents import AudioVideo, LatentState, each
from braid.diffusion.models.ltx2.perturbation import ISOLATED, UNPERTURBED, Perturbation
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream, denoised
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig
from braid.diffusion.operations import Denoise
from braid.diffusion.pieces import MACS_A_UNIT, Meter, Pieces, piece, room_for
from braid.diffusion.sampling_state import Estimates
from braid.errors import InvalidRequest, MemoryPressure
from braid.llm_core.memory.arena import Arena
from braid.lora.adapter import AdapterUse
from braid.lora.variants import HeldWeights, WeightVariants

COPIES_OF_HIDDEN_STATES = 16
"""Hidden states, normed, queries, keys, values, rotated, attended, both directions' snapshots, the wide feed-forward's
rows and modulations: of each stream, at once."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """What an evaluation holds while it runs; all of it is given back when `stack` is closed."""

    weights: HeldWeights
    stack: ExitStack


class Denoiser:
    """Args:
    config: of the transformer.
    variants: gives its weights with adapters.
    variant_bytes: what they come to beside the base.
    max_piece_macs: see `LTX2Transformer`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        variants: WeightVariants,
        variant_bytes: Callable[[tuple[AdapterUse, ...]], int],
        arena: Arena,
        meter: Meter,
        *,
        max_piece_macs: int | None = None,
    ) -> None:
        self._config = config
        self._variants = variants
        self._variant_bytes = variant_bytes
        self._arena = arena
        self._meter = meter
        self._max_piece_macs = max_piece_macs

    def run(self, operation: Denoise) -> Pieces[AudioVideo[Tensor] | Estimates]:
        """For `InPieces`."""
        taken = yield from self._take(operation)
        with taken.stack:
            transformer = yield from piece(
                self._meter, "begin_denoising", self._config.num_layers, partial(taken.weights.network, self._build)
            )
            passes = passes_needed(operation.guidance, needs_unconditional=operation.needs_unconditional)
            estimates: dict[Pass, AudioVideo[Tensor]] = {}
            for kind in passes:
                estimates[kind] = yield from self._pass(transformer, operation, kind)
            num_values = len(passes) * sum(stream.latents.numel() for stream in operation.streams.present())
            return (yield from piece(self._meter, "guide", num_values, lambda: _sum(operation, estimates)))

    def _build(self, weights: Mapping[str, Tensor]) -> LTX2Transformer:
        return LTX2Transformer(self._config, weights, max_piece_macs=self._max_piece_macs)

    # -- what must be held ---------------------------------------------------------------------------------------------

    def _take(self, operation: Denoise) -> Pieces[_Taken]:
        """Weights and workspace together. Whoever waits for them holds neither."""
        num_bytes = forward_bytes(self._config, operation.streams)
        while True:
            stack = ExitStack()
            try:
                held = yield from self._merged(operation.adapters)
                stack.callback(held.release)
                stack.enter_context(self._arena.lease("denoising", num_bytes, kind="workspace"))
                return _Taken(held, stack)
            except MemoryPressure:
                stack.close()
            except BaseException:
                stack.close()
                raise
            yield room_for(self._arena, "denoising", num_bytes + self._variant_bytes(operation.adapters))

    def _merged(self, adapters: tuple[AdapterUse, ...]) -> Pieces[HeldWeights]:
        """The weights with adapters; merged piece by piece, if they are not there already."""
        with closing(self._variants.acquiring(adapters)) as merging:
            try:
                step = next(merging)
                while True:
                    yield self._meter.segment("merge", step.num_bytes)
                    with self._meter.measured("merge", step.num_bytes):
                        step = next(merging)
            except StopIteration as stop:
                held: HeldWeights = stop.value
                return held

    # -- one pass ------------------------------------------------------------------------------------------------------

    def _pass(
        self, transformer: LTX2Transformer, operation: Denoise, kind: Pass
    ) -> Pieces[AudioVideo[Tensor]]:
        """x0 estimates of one pass."""
        streams = _inputs(operation, kind)
        with closing(transformer.begin(streams, _perturbation(operation, kind))) as forward:
            while forward.next_units is not None:
                units = max(1, forward.next_units // MACS_A_UNIT)
                yield self._meter.segment("denoise", units)
                with self._meter.measured("denoise", units), torch.inference_mode():
                    forward.advance()
            velocities = forward.result()
        return each(lambda stream, velocity: denoised(stream.latents, stream.timesteps, velocity), streams, velocities)


def _inputs(operation: Denoise, kind: Pass) -> AudioVideo[Stream]:
    embeds = operation.negative_prompt_embeds if kind is Pass.UNCONDITIONAL else operation.prompt_embeds
    if embeds is None:
        raise InvalidRequest(
            "guidance_scale is not 1 and there is no negative prompt; give negative_prompt or negative_prompt_embeds",
            param="negative_prompt",
        )
    return each(
        lambda stream, context, is_enabled: _input(stream, operation.sigma, context, is_enabled is not False),
        operation.streams,
        AudioVideo(embeds.video, embeds.audio),
        operation.is_enabled,
    )


def _input(state: LatentState, sigma: float, context: Tensor, is_enabled: bool) -> Stream:
    own_sigma = 0.0 if state.is_frozen else sigma
    return Stream(
        latents=state.latents,
        sigma=torch.full((state.latents.shape[0],), own_sigma, dtype=torch.float32, device=state.latents.device),
        timesteps=state.denoise_mask * own_sigma,
        positions=state.positions,
        context=context.to(state.latents),
        attention_mask=state.attention_mask,
        enabled=is_enabled,
    )


def _perturbation(operation: Denoise, kind: Pass) -> Perturbation:
    if kind is Pass.ISOLATED:
        return ISOLATED
    if kind is not Pass.PERTURBED:
        return UNPERTURBED
    video, audio = operation.guidance.video, operation.guidance.audio
    return Perturbation(
        video_self_attention=() if video is None else video.stg_blocks,
        audio_self_attention=() if audio is None else audio.stg_blocks,
    )


def _sum(operation: Denoise, estimates: Mapping[Pass, AudioVideo[Tensor]]) -> AudioVideo[Tensor] | Estimates:
    """All passes as one estimate of each stream."""
    video = {kind: found.video for kind, found in estimates.items() if found.video is not None}
    audio = {kind: found.audio for kind, found in estimates.items() if found.audio is not None}
    guided = each(combine, operation.guidance, AudioVideo(video, audio))
    if operation.needs_unconditional:
        return Estimates(guided, estimates[Pass.UNCONDITIONAL])
    return guided


def forward_bytes(config: TransformerConfig, streams: AudioVideo[LatentState]) -> int:
    """What one evaluation keeps and needs beside the weights, at most: an estimate from shapes alone."""
    def of(stream: LatentState, config: StreamConfig | None) -> int:
        assert config is not None
        batch, num_tokens, channels = stream.latents.shape
        mask = 0 if stream.attention_mask is None else 2 * stream.attention_mask.nbytes
        return batch * stream_bytes(num_tokens, channels, config.width, stream.latents.dtype) + mask

    return sum(each(of, streams, config.streams).present())


def stream_bytes(num_tokens: int, channels: int, width: int, dtype: torch.dtype) -> int:
    """The same of one stream of one request: hidden states, and the estimates of four passes and their sum."""
    return num_tokens * (width * COPIES_OF_HIDDEN_STATES + 5 * channels) * dtype.itemsize
