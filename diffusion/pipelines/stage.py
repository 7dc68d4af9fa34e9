"""One stage of a pipeline: noise, then a sampler's evaluations until nothing is left of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from braid.diffusion.finite import require_finite
from braid.diffusion.guidance import Guidance, GuidanceMemory
from braid.diffusion.job import Job
from braid.diffusion.latents import (
    AudioVideo,
    LatentState,
    drop_appended,
    each,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)
from braid.diffusion.noise import NoiseSource
from braid.diffusion.operations import UNGUIDED, Denoise
from braid.diffusion.pipelines.parts import Part, noise_source
from braid.diffusion.pipelines.sampler_choice import SAMPLERS
from braid.diffusion.pipelines.streams import Streams, noised
from braid.diffusion.positions import VideoGrid
from braid.diffusion.sampling_state import Answer, Estimates, Evaluation
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Checkpoint, Progress
from braid.lora.adapter import AdapterUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One run of a sampler."""

    index: int
    """From 0; it is called stage_1 from there on."""
    sigmas: Tensor
    """(num_steps + 1,), descending."""
    sampler: str
    grid: VideoGrid | None
    """Of the video; None where there is sound alone."""
    adapters: tuple[AdapterUse, ...] = ()
    guidance: AudioVideo[Guidance] = UNGUIDED
    noise_scale: float = 1.0
    """How much of its start is noise: 1, or the first sigma where there is something to refine."""

    @property
    def name(self) -> str:
        return f"stage_{self.index + 1}"

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1


def denoise_stage(job: Job, state: PipelineState, stage: Stage, prepare: Part[Streams]) -> Part[PipelineState]:
    """Leaves `NAME.video` and `NAME.audio` among the results.

    Args:
        prepare: gives the streams before they are noised; run only if the stage has not begun yet.
    """
    if is_finished(state, stage.name):
        return state
    yield Progress(stage.name, 0 if state.sampler is None else state.sampler.step, stage.num_steps)
    noise = noise_source(job)
    noise.restore(state.noise)
    if state.stage != stage.name:
        streams = noised((yield from prepare), noise, stage.noise_scale, _given_noise(job, stage))
        state = replace(state, stage=stage.name, streams=streams, noise=noise.state())
        yield Checkpoint(state)
    state = yield from _sample(job, state, stage, noise)
    yield Checkpoint(state)
    return state


def is_finished(state: PipelineState, name: str) -> bool:
    """Whether a stage has left its results."""
    return f"{name}.video" in state.results or f"{name}.audio" in state.results


def _given_noise(job: Job, stage: Stage) -> tuple[Tensor | None, Tensor | None]:
    """What the user gave in the place of the first stage's noise, as tokens."""
    given = job.params.latents
    if given is None or stage.index > 0:
        return None, None
    return (
        None if given.video is None else patchify_video(given.video),
        None if given.audio is None else patchify_audio(given.audio),
    )


def _sample(job: Job, state: PipelineState, stage: Stage, noise: NoiseSource) -> Part[PipelineState]:
    """Run the stage's sampler from where the state says, to its end."""
    assert state.streams is not None
    sampler = SAMPLERS[stage.sampler](state.sampler, stage.sigmas, state.streams, noise)
    answer: Answer = None
    while True:
        try:
            asked = sampler.send(answer)
        except StopIteration as stop:
            return _finished(job, state, stage, stop.value, noise)
        if isinstance(asked, Evaluation):
            answer, state = yield from _evaluate(state, stage, asked)
        else:
            answer, state = None, replace(state, sampler=asked)
            yield Progress(stage.name, asked.step, stage.num_steps)
            yield Checkpoint(state)


def _evaluate(state: PipelineState, stage: Stage, asked: Evaluation) -> Part[tuple[Answer, PipelineState]]:
    """D(x, sigma); streams that skip this step keep their latest estimate."""
    assert state.streams is not None
    streams = AudioVideo(
        _at(state.streams.video, asked.latents.video), _at(state.streams.audio, asked.latents.audio)
    )
    guidance = each(_of_stream, streams, stage.guidance)
    plan = state.guidance_memory.plan(guidance, asked.step_index, needs_unconditional=asked.needs_unconditional)
    if not plan.passes:
        return state.guidance_memory.last, state
    found: AudioVideo[Tensor] | Estimates = yield Denoise(
        streams,
        asked.sigma,
        state.prompt_embeds,
        state.negative_prompt_embeds,
        guidance,
        stage.adapters,
        plan.is_enabled,
        asked.needs_unconditional,
    )
    if isinstance(found, Estimates) or not any(one.skip_step for one in guidance.present()):
        return found, state  # nobody will ask for it again, and checkpoints stay small
    memory = state.guidance_memory.after(found, plan)
    return memory.last, replace(state, guidance_memory=memory)


def _of_stream(stream: LatentState, guidance: Guidance | None) -> Guidance:
    """A stream that is given is not led anywhere."""
    return Guidance() if guidance is None or stream.is_frozen else guidance


def _at(stream: LatentState | None, latents: Tensor | None) -> LatentState | None:
    if stream is None:
        return None
    assert latents is not None
    return replace(stream, latents=latents)


def _finished(
    job: Job, state: PipelineState, stage: Stage, tokens: AudioVideo[Tensor], noise: NoiseSource
) -> PipelineState:
    """Nothing is under way any more; the stage's own tokens are latents again."""
    for name, found in (("video", tokens.video), ("audio", tokens.audio)):
        if found is not None:
            require_finite(f"the {name} latents of {stage.name}", found)
    results = dict(state.results)
    if tokens.video is not None:
        grid = stage.grid
        assert grid is not None
        own = drop_appended(tokens.video, grid.num_tokens)
        results[f"{stage.name}.video"] = unpatchify_video(own, grid.frames, grid.height, grid.width).contiguous()
    if tokens.audio is not None:
        own = drop_appended(tokens.audio, job.num_audio_tokens)
        results[f"{stage.name}.audio"] = unpatchify_audio(own, job.geometry.audio.num_channels).contiguous()
    return replace(
        state,
        results=results,
        stage="",
        streams=None,
        sampler=None,
        guidance_memory=GuidanceMemory(),
        noise=noise.state(),
    )
