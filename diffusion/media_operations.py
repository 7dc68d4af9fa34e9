"""Carrying out the operations around denoising: encoders, upsampler and decoders, one job at a time, in pieces.

Each leases what its network needs for its largest piece before it begins, and waits while others hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from braid.diffusion.components import Components
from braid.diffusion.finite import require_finite
from braid.diffusion.models.ltx2.parts import SECTIONS, Part
from braid.diffusion.operations import (
    DecodeAudio,
    DecodedFrames,
    DecodeFrames,
    EncodeAudio,
    EncodeImage,
    EncodeVideo,
    ProjectText,
    PromptEmbeds,
    UpsampleLatents,
    Waveform,
)
from braid.diffusion.pieces import Meter, Pieces, in_pieces, piece, room_for
from braid.diffusion.stage_memory import StageMemory
from braid.diffusion.weight_bytes import UPSAMPLER
from braid.errors import MemoryPressure
from braid.llm_core.memory.arena import Arena

Result = TypeVar("Result")
NUM_COLOURS = 3


class _Held(ExitStack):
    """A network in use and its workspace."""

    num_bytes = 0
    """Leased beside the weights."""


class MediaOperations:
    """One method an operation, each for `InPieces`.

    Args:
        memory: has predicted what a job needs when that was judged; to predict anew can take half a second.
    """

    def __init__(self, components: Components, memory: StageMemory, arena: Arena, meter: Meter) -> None:
        self._components = components
        self._memory = memory
        self._arena = arena
        self._meter = meter
        self._predicted: dict[tuple[object, ...], int] = {}

    def project_text(self, operation: ProjectText) -> Pieces[PromptEmbeds]:
        """`ProjectText`."""
        hidden_states = operation.text.hidden_states
        shape = tuple(hidden_states.shape)
        network, held = yield from self._take(
            Part.TEXT_PROJECTION, shape, lambda _: self._memory.project_text(hidden_states.dtype)
        )
        with held:
            work = network.pieces(
                hidden_states.to(self._components.device), operation.text.attention_mask.to(self._components.device)
            )
            embeds: PromptEmbeds = yield from self._run("project_text", work, held.num_bytes)
        return embeds

    # -- into latents --------------------------------------------------------------------------------------------------

    def encode_image(self, operation: EncodeImage) -> Pieces[Tensor]:
        """`EncodeImage`."""
        from braid.multimodal.images import cover
        from braid.multimodal.media import recompress

        image = operation.image
        if operation.crf:
            image = yield from self._run("recompress", recompress(image, operation.crf))
        fitted = partial(cover, image, operation.height, operation.width)
        frame: Tensor = yield from piece(self._meter, "prepare_image", image.numel(), fitted)
        return (yield from self._encode_frames(frame))

    def encode_video(self, operation: EncodeVideo) -> Pieces[Tensor]:
        """`EncodeVideo`."""
        frames: Tensor = yield from self._run("prepare_video", _as_input(operation.frames))
        return (yield from self._encode_frames(frames))

    def _encode_frames(self, frames: Tensor) -> Pieces[Tensor]:
        """Frames (1, 3, F, H, W) in [-1, 1] to latents."""
        num_frames, height, width = frames.shape[2:]
        shape = num_frames, height, width
        network, held = yield from self._take(
            Part.VIDEO_ENCODER, shape, lambda _: self._memory.encode_frames(shape, frames.dtype)
        )
        with held:
            work = network.pieces(frames.to(self._components.device))
            latents: Tensor = yield from self._run("encode_video", work, held.num_bytes)
        return latents

    def encode_audio(self, operation: EncodeAudio) -> Pieces[Tensor]:
        """`EncodeAudio`."""
        from braid.diffusion.models.ltx2.audio_mel import read_mel_front_end

        front_end = read_mel_front_end(self._components.checkpoint.config.section(SECTIONS[Part.AUDIO_ENCODER]))
        num_samples = operation.waveform.numel()
        mel: Tensor = yield from piece(
            self._meter, "mel", num_samples, lambda: front_end(operation.waveform[None], operation.sample_rate)
        )
        num_frames = mel.shape[2]
        network, held = yield from self._take(
            Part.AUDIO_ENCODER, (num_frames,), lambda encoder: encoder.predicted_bytes(num_frames, self._dtype(mel))
        )
        with held:
            work = network.pieces(mel.to(self._components.device))
            latents: Tensor = yield from self._run("encode_audio", work, held.num_bytes)
        return latents

    # -- between latents -----------------------------------------------------------------------------------------------

    def upsample(self, operation: UpsampleLatents) -> Pieces[Tensor]:
        """`UpsampleLatents`."""
        num_frames, height, width = operation.latents.shape[2:]
        shape = num_frames, height, width
        network, held = yield from self._take(
            UPSAMPLER, shape, lambda _: self._memory.upsample(shape, operation.latents.dtype)
        )
        with held:
            latents: Tensor = yield from self._run("upsample", network.pieces(operation.latents), held.num_bytes)
        return latents

    # -- out of latents ------------------------------------------------------------------------------------------------

    def decode_frames(self, operation: DecodeFrames) -> Pieces[DecodedFrames]:
        """`DecodeFrames`: the tiles of one group, some frames or rows of a layer a piece."""
        from braid.diffusion.models.ltx2.video_vae import frames_in_pieces

        plan = self._plan(operation.latents)
        tile = next(plan.tiles(0))
        num_frames, height, width = (part.end - part.start for part in (tile.frames, tile.row, tile.column))
        tile_shape = num_frames, height, width
        sums = 2 * NUM_COLOURS * 4 * plan.height * plan.width * (plan.group_frames(0).stop - plan.group_frames(0).start)
        network, held = yield from self._take(
            Part.VIDEO_DECODER,
            (tile_shape, sums),
            lambda _: sums + self._memory.decode_tile(tile_shape, operation.latents.dtype),
        )
        with held:
            generator = _generator(network, plan, operation)
            work = network.decode_group(
                operation.latents, plan, operation.group, carry=operation.carry, generator=generator
            )
            pixels, carry = yield from self._run("decode_tile", work, held.num_bytes)
            frames = yield from self._run("to_pixels", frames_in_pieces(pixels), held.num_bytes)
        return DecodedFrames(frames, carry, plan.num_groups)

    def _plan(self, latents: Tensor) -> Any:
        from braid.diffusion.models.ltx2.tiling import automatic_sizes, make_plan

        geometry = self._components.checkpoint.geometry.video
        factors = {"time_factor": geometry.time_factor, "space_factor": geometry.space_factor}
        num_frames, height, width = latents.shape[2:]
        return make_plan((num_frames, height, width), automatic_sizes(height, width, **factors), **factors)

    def decode_audio(self, operation: DecodeAudio) -> Pieces[Waveform]:
        """`DecodeAudio`: decoder, then vocoder."""
        num_latents = operation.latents.shape[2]
        decoder, held = yield from self._take(
            Part.AUDIO_DECODER, (num_latents,), lambda _: self._memory.decode_audio(num_latents)
        )
        with held:
            work = decoder.pieces(operation.latents.float())
            mel: Tensor = yield from self._run("decode_audio", work, held.num_bytes)
        vocoder, held = yield from self._take(
            Part.VOCODER, (num_latents,), lambda _: self._memory.vocode(num_latents)
        )
        with held:
            samples: Tensor = yield from self._run("vocode", vocoder.pieces(mel), held.num_bytes)
        require_finite("the samples of the vocoder", samples)
        return Waveform(samples[0].float().cpu(), self._components.checkpoint.geometry.output_sample_rate)

    # -- memory and pieces ---------------------------------------------------------------------------------------------

    def _run(self, kind: str, work: Generator[int | None, None, Result], num_bytes: int = 0) -> Pieces[Result]:
        return in_pieces(self._meter, kind, work, num_bytes=num_bytes)

    def _take(
        self, part: Part | str, shape: object, predict: Callable[[Any], int]
    ) -> Pieces[tuple[Any, _Held]]:
        """A network and the workspace of one use of it, together: whoever waits for them holds neither."""
        key = (part, shape)
        while True:
            stack = _Held()
            try:
                if key not in self._predicted or not self._components.is_resident(part):
                    yield self._meter.segment("load", 1)
                network = stack.enter_context(self._components.using(part))
                if key not in self._predicted:
                    self._predicted[key] = predict(network)
                stack.num_bytes = self._predicted[key]
                lease = self._arena.lease(f"work of the {part}", stack.num_bytes, kind="workspace")
                stack.enter_context(lease)
                return network, stack
            except MemoryPressure:
                stack.close()
            except BaseException:
                stack.close()
                raise
            needed_bytes = self._memory.weights.of(part).on_device + self._predicted.get(key, 0)
            yield room_for(self._arena, f"work of the {part}", needed_bytes)

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        """In which networks compute: that of all of them, or that of what they are given."""
        return self._components.dtype or tensor.dtype


def _as_input(frames: Tensor) -> Generator[int, None, Tensor]:
    """(F, H, W, 3) uint8 as (1, 3, F, H, W) float32 in [-1, 1], some frames a piece."""
    from braid.diffusion.models.ltx2.tiling import pieces_of_frames, work_of_frames

    made = torch.empty(1, NUM_COLOURS, *frames.shape[:3])
    for some in pieces_of_frames(made):
        yield work_of_frames(made[:, :, some])
        made[:, :, some] = frames[some].permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
    return made


def _generator(network: Any, plan: Any, operation: DecodeFrames) -> torch.Generator | None:
    """Where the decoder draws noise: the clip's generator, after what the groups before have drawn."""
    if not network.needs_noise:
        return None
    generator = torch.Generator()
    if operation.generator is not None:
        generator.set_state(operation.generator)
    network.skip_noise(plan, operation.group, generator)
    return generator
