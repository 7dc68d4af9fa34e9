"""What a job will hold on the device at each of its stages, decided before it starts, and the refusal of those that
can never have it.

Source: architecture.md, 1.3; specs of LTX-2, section g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from braid.diffusion.job import Job
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.forward_memory import StreamShape
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.tiling import automatic_sizes, make_plan
from braid.diffusion.positions import VideoGrid
from braid.diffusion.stage_memory import StageMemory
from braid.diffusion.weight_bytes import UPSAMPLER
from braid.errors import CannotFit

SHORT_PROMPT_TOKENS = 1024
"""Of prompts whose embeds are computed by a checkpoint that does not say how long they are."""


class Offload(StrEnum):
    """What of the networks stays on the device while it is not used."""

    NONE = "none"
    """The transformer always; others as long as nobody needs their bytes."""
    CPU = "cpu"
    """Whatever is not used now yields: also the transformer, to decoders."""
    STREAM = "stream"
    """As CPU; and of the transformer's blocks only those that are computed with, and the next."""


@dataclass(frozen=True, slots=True)
class StagePeak:
    """The most that one stage of a job takes."""

    name: str
    part: str
    """The network that it uses."""
    weight_bytes: int
    """Of all networks on the device meanwhile, those that could be given back left out."""
    work_bytes: int
    """Activations, results and buffers."""

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.work_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Of one job. Counts everything that the diffusion side holds: compare it with the whole budget that it may use."""

    offload: Offload
    stages: tuple[StagePeak, ...]
    held_bytes: int
    """Latents and what goes with them, from the first stage to the last; on a CPU also the frames of the result."""
    lasting_bytes: int
    """Of the transformer, on the device before and after the job."""
    host_bytes: int
    """What is moved to the device from merged weights and staged blocks; more is used where there is room."""
    resident: tuple[str, ...]
    """Networks that stay on the device throughout."""
    streamed: tuple[str, ...]
    """Networks of which a part at a time is there."""
    budget_bytes: int
    host_budget_bytes: int | None

    @property
    def highest(self) -> StagePeak:
        return max(self.stages, key=lambda stage: stage.num_bytes)

    @property
    def largest_bytes(self) -> int:
        """The most that an operation takes beside what is held and what stays on the device."""
        return self.highest.num_bytes - self.lasting_bytes

    @property
    def peak_bytes(self) -> int:
        return self.held_bytes + self.highest.num_bytes

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.budget_bytes and self.fits_host

    @property
    def fits_host(self) -> bool:
        return self.host_budget_bytes is None or self.host_bytes <= self.host_budget_bytes


@dataclass(frozen=True, slots=True)
class AdapterBytes:
    """Of the weights that a job's adapters replace, in the stage where they are most."""

    total: int = 0
    outside: int = 0
    """Of those, what belongs to no block of the transformer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a job may use, and what goes with it."""

    budget_bytes: int
    """For the diffusion side, on the device: the arena's budget less what others never give back."""
    host_budget_bytes: int | None = None
    """On the host, beside what always is there; None where nothing is moved from there."""
    offload: Offload = Offload.NONE
    adapters: AdapterBytes = AdapterBytes()


def plan(job: Job, memory: StageMemory, terms: Terms) -> MemoryPlan:
    """Stage by stage, from shapes alone."""
    offload, sizes = terms.offload, memory.weights
    is_streamed = offload is Offload.STREAM and any(layout.num_bytes for layout in sizes.layouts)
    lasting = lasting_bytes(memory, offload)

    def weights(part: Part | str) -> int:
        if part is not Part.TRANSFORMER:
            return lasting + sizes.of(part).on_device
        if is_streamed:
            return lasting + sizes.slots_bytes + terms.adapters.outside
        return sizes.of(part).on_device + (terms.adapters.total if offload is Offload.NONE else 0)

    stages = tuple(
        StagePeak(name, str(part), weights(part), work_bytes) for name, part, work_bytes in _stages(job, memory)
    )
    return MemoryPlan(
        offload=offload,
        stages=stages,
        held_bytes=_held_bytes(job) + (frame_bytes(job) if memory.device_type == "cpu" else 0),
        lasting_bytes=lasting,
        host_bytes=_host_bytes(memory, terms, is_streamed=is_streamed),
        resident=(str(Part.TRANSFORMER),) if offload is Offload.NONE else (),
        streamed=(str(Part.TRANSFORMER),) if is_streamed else (),
        budget_bytes=terms.budget_bytes,
        host_budget_bytes=terms.host_budget_bytes,
    )


def _host_bytes(memory: StageMemory, terms: Terms, *, is_streamed: bool) -> int:
    if terms.offload is Offload.NONE:
        return 0
    return terms.adapters.total + (memory.weights.stages_bytes if is_streamed else 0)


def in_effect(offload: Offload, memory: StageMemory) -> Offload:
    """What is done of what is asked: where networks compute in the host's memory, there is nothing to move."""
    return Offload.NONE if memory.device_type == "cpu" else offload


def lasting_bytes(memory: StageMemory, offload: Offload) -> int:
    """What of the transformer is on the device from the model's loading to its end."""
    if offload is Offload.CPU:
        return 0
    return memory.weights.of(Part.TRANSFORMER).on_device if offload is Offload.NONE else memory.weights.outside_bytes


def check(job: Job, memory: StageMemory, terms: Terms) -> MemoryPlan:
    """The plan of a job that fits.

    Raises:
        CannotFit: with both numbers, the stage that needs most, and what would fit: fewer frames, a smaller picture,
            another way of offloading.
    """
    def planned(job: Job, offload: Offload = terms.offload) -> MemoryPlan:
        return plan(job, memory, replace(terms, offload=offload))

    found = planned(job)
    if found.fits:
        return found
    if not found.fits_host:
        assert found.host_budget_bytes is not None
        raise CannotFit(
            "holding in the host's memory what the adapters change",
            needed_bytes=found.host_bytes,
            budget_bytes=found.host_budget_bytes,
            param="adapters",
        )
    num_frames = _frames_that_fit(job, planned)
    others = [other for other in _beyond(terms.offload, memory) if planned(job, other).fits]
    smaller = None if num_frames else _size_that_fits(job, planned)
    advice = [f"num_frames={num_frames}"] if num_frames else []
    advice += [f"width={smaller.width}, height={smaller.height}"] if smaller is not None else []
    advice += [f"offload={other.value!r}" for other in others[:1]]
    fits = f"{' or '.join(advice)} would fit" if advice else "no number of frames of this size would fit"
    raise CannotFit(
        f"{job.width}x{job.height} with num_frames={job.num_frames} ({fits}; most is needed to {found.highest.name})",
        needed_bytes=found.peak_bytes,
        budget_bytes=terms.budget_bytes,
        param="num_frames" if num_frames else "height",
    )


Plan = Callable[[Job], MemoryPlan]


# -- what would fit ----------------------------------------------------------------------------------------------------


def _beyond(offload: Offload, memory: StageMemory) -> list[Offload]:
    """What holds less on the device than `offload`; on a CPU there is nothing to offload from."""
    every = list(Offload)
    return [] if memory.device_type == "cpu" else every[every.index(offload) + 1 :]


def _frames_that_fit(job: Job, planned: Plan) -> int:
    """The most frames of this size, 0 if there is no number."""
    factor = job.geometry.video.time_factor
    low, high = -1, (job.num_frames - 1) // factor
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if planned(replace(job, num_frames=middle * factor + 1)).fits else (low, middle)
    return low * factor + 1 if low >= 0 else 0


def _size_that_fits(job: Job, planned: Plan) -> Job | None:
    """The same clip at about a half or a quarter of its sides."""
    multiple = job.geometry.size_multiple(is_two_stage=True)
    for divisor in (2, 4):
        height, width = (max(multiple, side // divisor // multiple * multiple) for side in (job.height, job.width))
        smaller = replace(job, height=height, width=width)
        if planned(smaller).fits:
            return smaller
    return None


# -- stages ------------------------------------------------------------------------------------------------------------

Stage = tuple[str, Part | str, int]
"""(what is done, with which network, bytes beside weights)."""


def _stages(job: Job, memory: StageMemory) -> Iterator[Stage]:
    yield from _encoding(job, memory)
    has_video = job.has_video and memory.checkpoint.transformer_config().streams.video is not None
    if has_video and _is_two_stage(job):
        yield _denoising("denoise the first stage", job, memory, job.small_grid)
        grid = job.small_grid
        yield "upsample", UPSAMPLER, memory.upsample((grid.frames, grid.height, grid.width), job.dtype)
    yield _denoising("denoise", job, memory, job.grid() if has_video else None)
    if job.params.output_type == "frames":
        yield from _decoding(job, memory, has_video=has_video)


def _is_two_stage(job: Job) -> bool:
    from braid.diffusion.pipelines.choice import PIPELINES

    return PIPELINES[job.pipeline].num_stages > 1


def _encoding(job: Job, memory: StageMemory) -> Iterator[Stage]:
    checkpoint, params = memory.checkpoint, job.params
    if params.prompt_embeds is None and checkpoint.has(Part.TEXT_PROJECTION):
        yield "project the prompt", Part.TEXT_PROJECTION, memory.project_text(job.dtype)
    if not checkpoint.has(Part.VIDEO_ENCODER):
        return
    if any(image.image is not None for image in params.images):
        yield "encode images", Part.VIDEO_ENCODER, memory.encode_frames((1, job.height, job.width), job.dtype)
    if params.video is not None:
        num_frames, height, width = params.video.shape[:3]
        yield "encode the clip", Part.VIDEO_ENCODER, memory.encode_frames((num_frames, height, width), job.dtype)


def _denoising(name: str, job: Job, memory: StageMemory, grid: VideoGrid | None) -> Stage:
    config, num_text_tokens = memory.checkpoint.transformer_config(), _num_text_tokens(job, memory)
    video = audio = None
    if grid is not None:
        num_tokens = grid.num_tokens + len(job.params.images) * grid.tokens_per_frame
        video = StreamShape(num_tokens, num_text_tokens)
    if job.has_audio and config.streams.audio is not None:
        audio = StreamShape(job.num_audio_tokens, num_text_tokens)
    return name, Part.TRANSFORMER, memory.evaluation(AudioVideo(video, audio), job.guidance, job.dtype)


def _num_text_tokens(job: Job, memory: StageMemory) -> int:
    embeds = job.params.prompt_embeds
    given = None if embeds is None else next((e for e in (embeds.video, embeds.audio) if e is not None), None)
    if given is not None:
        return given.shape[1]
    if memory.checkpoint.has(Part.TEXT_PROJECTION):
        return memory.checkpoint.text_encoder().max_length
    return SHORT_PROMPT_TOKENS


def _decoding(job: Job, memory: StageMemory, *, has_video: bool) -> Iterator[Stage]:
    if has_video and memory.checkpoint.has(Part.VIDEO_DECODER):
        yield "decode frames", Part.VIDEO_DECODER, _tile_bytes(job, memory)
    if not job.has_audio or job.params.waveform is not None:
        return
    if memory.checkpoint.has(Part.AUDIO_DECODER):
        yield "decode sound", Part.AUDIO_DECODER, memory.decode_audio(job.num_audio_tokens)
        if memory.checkpoint.has(Part.VOCODER):
            yield "vocode", Part.VOCODER, memory.vocode(job.num_audio_tokens)


def _tile_bytes(job: Job, memory: StageMemory) -> int:
    """The largest tile through the decoder, and the sums of a group of tiles with their weights."""
    grid = job.grid()
    factors = {"time_factor": grid.time_factor, "space_factor": grid.width_factor}
    tiles = make_plan(
        (grid.frames, grid.height, grid.width), automatic_sizes(grid.height, grid.width, **factors), **factors
    )
    group = tiles.group_frames(0)
    sums: int = 2 * 3 * 4 * tiles.height * tiles.width * (group.stop - group.start)
    tile = next(tiles.tiles(0))
    lengths = (tile.frames, tile.row, tile.column)
    shape = (lengths[0].end - lengths[0].start, lengths[1].end - lengths[1].start, lengths[2].end - lengths[2].start)
    return sums + memory.decode_tile(shape, job.dtype)


def _held_bytes(job: Job) -> int:
    """Latents, masks, positions and noise of both streams, and the results of both stages."""
    num_values = job.num_audio_tokens * job.geometry.audio.token_width if job.has_audio else 0
    if job.has_video:
        num_values += job.grid().num_tokens * job.geometry.video.num_channels
    return num_values * (6 * job.dtype.itemsize + 2 * torch.float64.itemsize)


def frame_bytes(job: Job) -> int:
    """The frames of the result, on the host, where they are kept in memory."""
    is_kept = job.has_video and job.keep_frames and job.params.output_type == "frames"
    return 3 * job.num_frames * job.height * job.width if is_kept else 0
