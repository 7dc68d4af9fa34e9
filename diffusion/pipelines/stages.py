"""The stages that pipelines are made of: one that starts from noise, and one that refines what was upsampled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid.diffusion.job import Job
from braid.diffusion.pipelines.parts import Part
from braid.diffusion.pipelines.stage import Stage
from braid.diffusion.pipelines.streams import Streams, free_streams, with_images
from braid.diffusion.positions import VideoGrid
from braid.diffusion.schedules import STAGE_2_SIGMAS, ShiftedSchedule
from braid.diffusion.state import PipelineState


def guided_stage(job: Job, grid: VideoGrid | None, *, num_schedule_tokens: int | None = None) -> Stage:
    """The first stage of a full model: guided, from noise, on the schedule of the checkpoint.

    Args:
        num_schedule_tokens: which the schedule is shifted for; None is what it was made for, whatever the size.
    """
    schedule = ShiftedSchedule().sigmas(job.num_inference_steps, num_schedule_tokens)
    return Stage(
        index=0,
        sigmas=as_sigmas(job.sigmas, schedule),
        sampler=job.sampler,
        grid=grid,
        adapters=job.adapters[0],
        guidance=job.guidance,
    )


def refining_stage(job: Job) -> Stage:
    """The second stage: full size, few steps, not guided."""
    sigmas = as_sigmas(job.stage_2_sigmas, STAGE_2_SIGMAS)
    return Stage(
        index=1,
        sigmas=sigmas,
        sampler=job.sampler,
        grid=job.grid(),
        adapters=job.adapters[1],
        noise_scale=float(sigmas[0]),
    )


def as_sigmas(given: Sequence[float] | None, schedule: Tensor | Sequence[float]) -> Tensor:
    """(num_steps + 1,) float32: what the user gave, or the schedule."""
    return torch.as_tensor(schedule if given is None else given, dtype=torch.float32)


def new_streams(job: Job, grid: VideoGrid, *, are_keyframes: bool = False) -> Part[Streams]:
    """Noise and pictures are all that a first stage starts from."""
    return with_images(job, free_streams(job, grid), grid, stage=0, are_keyframes=are_keyframes)


def refined_streams(job: Job, state: PipelineState, *, are_keyframes: bool = False) -> Part[Streams]:
    """The upsampled video, the sound of the first stage, and the pictures once more at full size."""
    grid = job.grid()
    known = free_streams(job, grid, video=state.results["upsampled"], audio=state.results.get("stage_1.audio"))
    return with_images(job, known, grid, stage=1, are_keyframes=are_keyframes)
