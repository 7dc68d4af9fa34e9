"""The pipelines by name, and what each of them needs of a checkpoint and of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from braid.diffusion.job import Job
from braid.diffusion.pipelines.distilled import distilled
from braid.diffusion.pipelines.given_clips import audio_to_video, extend, retake
from braid.diffusion.pipelines.one_stage import one_stage, text_to_audio
from braid.diffusion.pipelines.two_stage import keyframe_interpolation, two_stage
from braid.diffusion.pipelines.two_stage_hq import two_stage_hq
from braid.diffusion.state import PipelineState
from braid.diffusion.state_io import StateError
from braid.llm_core.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class PipelineChoice:
    """A pipeline, and what must be there for it."""

    start: Callable[[Job, PipelineState | None], Pipeline]
    num_stages: int = 1
    sampler: str = "euler"
    makes_video: bool = True
    needs_video: bool = False
    """A clip is given."""
    needs_waveform: bool = False
    needs_images: bool = False
    needs_window: bool = False


PIPELINES = {
    "one_stage": PipelineChoice(one_stage),
    "two_stage": PipelineChoice(two_stage, num_stages=2),
    "two_stage_hq": PipelineChoice(two_stage_hq, num_stages=2, sampler="res_2s"),
    "distilled": PipelineChoice(distilled, num_stages=2),
    "keyframe_interpolation": PipelineChoice(keyframe_interpolation, num_stages=2, needs_images=True),
    "a2vid": PipelineChoice(audio_to_video, num_stages=2, needs_waveform=True),
    "retake": PipelineChoice(retake, needs_video=True, needs_window=True),
    "extend": PipelineChoice(extend, needs_video=True),
    "text_to_audio": PipelineChoice(text_to_audio, makes_video=False),
}


def run_job(job: Job, state: PipelineState | None = None) -> Pipeline:
    """The job's pipeline, from its beginning or from a state.

    Raises:
        StateError: the state is of another pipeline.
    """
    if state is not None and state.pipeline != job.pipeline:
        raise StateError(f"this checkpoint is of pipeline {state.pipeline!r}, the job of {job.pipeline!r}")
    return PIPELINES[job.pipeline].start(job, state)
