"""How many bytes a job will need at most, from shapes alone, and refusing those that can never have them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch

from braid.diffusion.denoising import stream_bytes
from braid.diffusion.job import Job
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.tiling import automatic_sizes, make_plan
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.errors import CannotFit

MAPS_OF_A_TILE = 5
"""Feature maps of a decoder's widest block that exist at once: input, normed, padded, two results."""


def check_fits(job: Job, checkpoint: LTX2Checkpoint, *, adapter_bytes: int, room_bytes: int) -> None:
    """Refuse a job that needs more than there will ever be room for.

    Args:
        adapter_bytes: what merging the job's adapters copies.
        room_bytes: the budget less what is never given back.
    Raises:
        CannotFit: with both numbers, and how many frames would fit.
    """
    needed_bytes = predicted_bytes(job, checkpoint) + adapter_bytes
    if needed_bytes <= room_bytes:
        return
    fits = _frames_that_fit(job, checkpoint, room_bytes - adapter_bytes)
    advice = f"num_frames={fits} would fit" if fits else "no number of frames of this size would fit"
    raise CannotFit(
        f"a film of {job.width}x{job.height} with num_frames={job.num_frames} ({advice})",
        needed_bytes=needed_bytes,
        budget_bytes=room_bytes,
        param="num_frames" if fits else "height",
    )


def predicted_bytes(job: Job, checkpoint: LTX2Checkpoint) -> int:
    """The largest of what denoising and decoding need, and what the job holds all along."""
    config = checkpoint.transformer_config()
    peaks = [_denoising_bytes(job, config)]
    if job.params.output_type == "frames" and job.has_video and checkpoint.has(Part.VIDEO_DECODER):
        peaks.append(_decoding_bytes(job, checkpoint))
    return max(peaks) + _held_bytes(job)


def _frames_that_fit(job: Job, checkpoint: LTX2Checkpoint, room_bytes: int) -> int:
    """The largest clip of this size, 0 if there is none."""
    time_factor = job.geometry.video.time_factor
    low, high = -1, (job.num_frames - 1) // time_factor
    while high - low > 1:
        middle = (low + high) // 2
        shorter = replace(job, num_frames=middle * time_factor + 1)
        low, high = (middle, high) if predicted_bytes(shorter, checkpoint) <= room_bytes else (low, middle)
    return low * time_factor + 1 if low >= 0 else 0


def _denoising_bytes(job: Job, config: TransformerConfig) -> int:
    """Of the larger of the stages, pictures appended to it included."""
    total = 0
    if job.has_video and config.streams.video is not None:
        grid = job.grid()
        num_tokens = grid.num_tokens + len(job.params.images) * grid.tokens_per_frame
        total += stream_bytes(num_tokens, job.geometry.video.num_channels, config.streams.video.width, job.dtype)
    if job.has_audio and config.streams.audio is not None:
        width = config.streams.audio.width
        total += stream_bytes(job.num_audio_tokens, job.geometry.audio.token_width, width, job.dtype)
    return total


def _decoding_bytes(job: Job, checkpoint: LTX2Checkpoint) -> int:
    """A group's sums, a tile's feature maps and the frames."""
    grid = job.grid()
    factors = {"time_factor": grid.time_factor, "space_factor": grid.width_factor}
    sizes = automatic_sizes(grid.height, grid.width, **factors)
    plan = make_plan((grid.frames, grid.height, grid.width), sizes, **factors)
    frames = plan.group_frames(0)
    sums: int = 2 * 3 * 4 * plan.height * plan.width * (frames.stop - frames.start)
    tile = next(plan.tiles(0))
    num_pixels: int = prod(int(part.stop - part.start) for part in tile.pixels)
    section = checkpoint.config.section("vae")
    patch = section.integer("patch_size", 4)
    channels = section.integer("decoder_base_channels", 128)
    maps = MAPS_OF_A_TILE * num_pixels // patch**2 * channels * job.dtype.itemsize
    return sums + maps + 3 * job.num_frames * job.height * job.width


def _held_bytes(job: Job) -> int:
    """Latents, masks, positions and noise of both streams, and the results of both stages."""
    num_values = job.num_audio_tokens * job.geometry.audio.token_width if job.has_audio else 0
    if job.has_video:
        num_values += job.grid().num_tokens * job.geometry.video.num_channels
    return num_values * (6 * job.dtype.itemsize + 2 * torch.float64.itemsize)
