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
from braid.diffusion.models.ltx2.forward_memory import StreamShape
from braid.diffusion.models.ltx2.perturbation import ISOLATED, UNPERTURBED, Perturbation
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream, denoised
from braid.diffusion.operations import Denoise
from braid.diffusion.pieces import MACS_A_UNIT, Meter, Pieces, in_pieces, piece, room_for
from braid.diffusion.sampling_state import Estimates
from braid.diffusion.stage_memory import StageMemory
from braid.diffusion.transformer_source import MakeTransformer, TransformerSource
from braid.errors import InvalidRequest, MemoryPressure
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Wait
from braid.lora.adapter import AdapterUse
from braid.lora.variants import HeldWeights, WeightVariants


@dataclass(frozen=True, slots=True)
class _Taken:
    """What an evaluation holds while it runs; all of it is given back when `stack` is closed."""

    make_transformer: MakeTransformer
    num_bytes: int
    """Leased beside the weights."""
    stack: ExitStack


class Denoiser:
    """Args:
    source: makes the transformer of the weights with an operation's adapters, which come from `variants`.
    variant_bytes: what they come to beside the base.
    memory: knows what an evaluation takes beside the weights.
    arena: of the device.
    variants_arena: where merged weights are leased: `arena`, or that of the host.
    """

    def __init__(
        self,
        source: TransformerSource,
        variants: WeightVariants,
        variant_bytes: Callable[[tuple[AdapterUse, ...]], int],
        memory: StageMemory,
        arena: Arena,
        meter: Meter,
        *,
        variants_arena: Arena,
    ) -> None:
        self._source = source
        self._variants = variants
        self._variant_bytes = variant_bytes
        self._memory = memory
        self._arena = arena
        self._meter = meter
        self._variants_arena = variants_arena

    def run(self, operation: Denoise) -> Pieces[AudioVideo[Tensor] | Estimates]:
        """For `InPieces`."""
        taken = yield from self._take(operation)
        with taken.stack:
            transformer = yield from in_pieces(
                self._meter, "begin_denoising", taken.make_transformer(), num_bytes=taken.num_bytes
            )
            passes = passes_needed(operation.guidance, needs_unconditional=operation.needs_unconditional)
            estimates: dict[Pass, AudioVideo[Tensor]] = {}
            for kind in passes:
                estimates[kind] = yield from self._pass(transformer, operation, kind, taken.num_bytes)
            num_values = len(passes) * sum(stream.latents.numel() for stream in operation.streams.present())
            combined = partial(_sum, operation, estimates)
            return (yield from piece(self._meter, "guide", num_values, combined, num_bytes=taken.num_bytes))

    # -- what must be held ---------------------------------------------------------------------------------------------

    def _take(self, operation: Denoise) -> Pieces[_Taken]:
        """Weights and workspace together. Whoever waits for them holds neither."""
        num_bytes = self._work_bytes(operation)
        while True:
            stack = ExitStack()
            try:
                held = yield from self._merged(operation.adapters)
                stack.callback(held.release)
                make_transformer = stack.enter_context(self._source.hold(held))
                stack.enter_context(self._arena.lease("denoising", num_bytes, kind="workspace"))
                return _Taken(make_transformer, num_bytes, stack)
            except MemoryPressure:
                stack.close()
            except BaseException:
                stack.close()
                raise
            yield self._room(num_bytes + self._source.room_bytes, self._variant_bytes(operation.adapters))

    def _room(self, num_bytes: int, variant_bytes: int) -> Wait:
        """Where an evaluation and its merged weights lie, which may be two places."""
        if self._variants_arena is self._arena:
            return room_for(self._arena, "denoising", num_bytes + variant_bytes)
        on_device = room_for(self._arena, "denoising", num_bytes)
        on_host = room_for(
            self._variants_arena, "weights in the host's memory", variant_bytes + self._source.host_room_bytes
        )
        return Wait(lambda: on_device.is_over() and on_host.is_over())

    def _work_bytes(self, operation: Denoise) -> int:
        """Of one evaluation beside the weights."""
        streams, embeds = operation.streams, operation.prompt_embeds
        shapes = each(_shape, streams, AudioVideo(embeds.video, embeds.audio))
        latents = next(streams.present()).latents
        return latents.shape[0] * self._memory.evaluation(shapes, operation.guidance, latents.dtype)

    def _merged(self, adapters: tuple[AdapterUse, ...]) -> Pieces[HeldWeights]:
        """The weights with adapters; merged piece by piece, if they are not there already."""
        with closing(self._variants.acquiring(adapters)) as merging:
            try:
                step = next(merging)
                leased_bytes = self._variant_bytes(adapters)
                while True:
                    yield self._meter.segment("merge", step.num_bytes, num_bytes=leased_bytes)
                    with self._meter.measured("merge", step.num_bytes):
                        step = next(merging)
            except StopIteration as stop:
                held: HeldWeights = stop.value
                return held

    # -- one pass ------------------------------------------------------------------------------------------------------

    def _pass(
        self, transformer: LTX2Transformer, operation: Denoise, kind: Pass, num_bytes: int
    ) -> Pieces[AudioVideo[Tensor]]:
        """x0 estimates of one pass."""
        streams = _inputs(operation, kind)
        with closing(transformer.begin(streams, _perturbation(operation, kind))) as forward:
            while forward.next_units is not None:
                units = max(1, forward.next_units // MACS_A_UNIT)
                yield self._meter.segment("denoise", units, num_bytes=num_bytes)
                with self._meter.measured("denoise", units), torch.inference_mode():
                    forward.advance()
            velocities = forward.result()
        return each(lambda stream, velocity: denoised(stream.latents, stream.timesteps, velocity), streams, velocities)


def _shape(state: LatentState, context: Tensor | None) -> StreamShape:
    num_text_tokens = 0 if context is None else context.shape[1]
    return StreamShape(state.latents.shape[1], num_text_tokens, has_attention_mask=state.attention_mask is not None)


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
