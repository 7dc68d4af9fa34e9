"""Two stages of Euler: guided at a fraction of the size, then refined with the distilled adapter.

Source: specs of LTX-2, sections b, d, e and h.
"""

from __future__ import annotations

from braid.diffusion.job import Job
from braid.diffusion.pipelines.parts import begin, decode, upsample
from braid.diffusion.pipelines.stage import denoise_stage
from braid.diffusion.pipelines.stages import guided_stage, new_streams, refined_streams, refining_stage
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Pipeline


def two_stage(job: Job, state: PipelineState | None = None) -> Pipeline:
    """Text, and pictures, to video and sound; the sound is that of the first stage."""
    return _two_stages(job, state, are_keyframes=False)


def keyframe_interpolation(job: Job, state: PipelineState | None = None) -> Pipeline:
    """A film through given pictures: all of them stand beside its own frames, the first one too."""
    return _two_stages(job, state, are_keyframes=True)


def _two_stages(job: Job, state: PipelineState | None, *, are_keyframes: bool) -> Pipeline:
    state = state or (yield from begin(job))
    first = guided_stage(job, job.small_grid)
    state = yield from denoise_stage(job, state, first, new_streams(job, job.small_grid, are_keyframes=are_keyframes))
    state = yield from upsample(state, first.name)
    second = refining_stage(job)
    state = yield from denoise_stage(job, state, second, refined_streams(job, state, are_keyframes=are_keyframes))
    return (
        yield from decode(job, state, video=state.results["stage_2.video"], audio=state.results.get("stage_1.audio"))
    )
