"""A distilled checkpoint: eight steps small, three at full size, nothing guided. Source: specs of LTX-2, section b."""

from __future__ import annotations

from dataclasses import replace

from braid.diffusion.job import Job
from braid.diffusion.operations import UNGUIDED
from braid.diffusion.pipelines.parts import begin, decode, upsample
from braid.diffusion.pipelines.stage import Stage, denoise_stage
from braid.diffusion.pipelines.stages import as_sigmas, new_streams, refined_streams, refining_stage
from braid.diffusion.schedules import DISTILLED_SIGMAS
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Pipeline


def distilled(job: Job, state: PipelineState | None = None) -> Pipeline:
    """Text, and pictures, to video and sound; the sound is that of the second stage's refinement of the first."""
    job = replace(job, guidance=UNGUIDED)
    state = state or (yield from begin(job))
    first = Stage(
        index=0,
        sigmas=as_sigmas(job.sigmas, DISTILLED_SIGMAS),
        sampler=job.sampler,
        grid=job.small_grid,
        adapters=job.adapters[0],
    )
    state = yield from denoise_stage(job, state, first, new_streams(job, job.small_grid))
    state = yield from upsample(state, first.name)
    second = refining_stage(job)
    state = yield from denoise_stage(job, state, second, refined_streams(job, state))
    return (
        yield from decode(job, state, video=state.results["stage_2.video"], audio=state.results.get("stage_2.audio"))
    )
