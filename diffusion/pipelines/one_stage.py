"""One guided stage at full size. Source: specs of LTX-2, sections b, d and h."""

from __future__ import annotations

from braid.diffusion.job import Job
from braid.diffusion.pipelines.parts import Part, begin, decode
from braid.diffusion.pipelines.stage import denoise_stage
from braid.diffusion.pipelines.stages import guided_stage, new_streams
from braid.diffusion.pipelines.streams import Streams, free_streams
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Pipeline


def one_stage(job: Job, state: PipelineState | None = None) -> Pipeline:
    """Text, and pictures, to video and sound; to one picture, if one frame is asked for."""
    state = state or (yield from begin(job))
    state = yield from denoise_stage(job, state, guided_stage(job, job.grid()), new_streams(job, job.grid()))
    return (
        yield from decode(job, state, video=state.results["stage_1.video"], audio=state.results.get("stage_1.audio"))
    )


def text_to_audio(job: Job, state: PipelineState | None = None) -> Pipeline:
    """Text to sound as long as a film of those frames; there is no video stream."""
    state = state or (yield from begin(job))
    state = yield from denoise_stage(job, state, guided_stage(job, None), _sound_alone(job))
    return (yield from decode(job, state, audio=state.results["stage_1.audio"]))


def _sound_alone(job: Job) -> Part[Streams]:
    yield from ()
    return free_streams(job, None)
