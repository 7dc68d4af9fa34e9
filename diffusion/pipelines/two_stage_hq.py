"""The high-quality pipeline: res_2s in both stages, the distilled adapter in both, weaker in the first.

The sound of the result is that of the first stage: the second one computes it again, for the video attends to it, and
it is dropped. Source: specs of LTX-2, section e.
"""

from __future__ import annotations

from braid.diffusion.job import Job
from braid.diffusion.pipelines.parts import begin, decode, upsample
from braid.diffusion.pipelines.stage import denoise_stage
from braid.diffusion.pipelines.stages import guided_stage, new_streams, refined_streams, refining_stage
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Pipeline


def two_stage_hq(job: Job, state: PipelineState | None = None) -> Pipeline:
    """Text, and pictures, to video and sound."""
    state = state or (yield from begin(job))
    grid = job.small_grid
    first = guided_stage(job, grid, num_schedule_tokens=grid.num_tokens)
    state = yield from denoise_stage(job, state, first, new_streams(job, grid))
    state = yield from upsample(state, first.name)
    second = refining_stage(job)
    state = yield from denoise_stage(job, state, second, refined_streams(job, state))
    return (
        yield from decode(job, state, video=state.results["stage_2.video"], audio=state.results.get("stage_1.audio"))
    )
