"""What pipelines share before, between and after their stages: the prompt, the upsampler, the decoders.

A part is a generator that is given the state and returns the next one; what the state shows to be finished is skipped.
Parts own no device and no queue: all work is in the operations that they yield.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from braid.diffusion.guidance import Guidance
from braid.diffusion.job import GenerationResult, Job
from braid.diffusion.latents import AudioVideo
from braid.diffusion.noise import NoiseSource, SeededNoise
from braid.diffusion.operations import (
    DecodeAudio,
    DecodeFrames,
    EncodePrompt,
    RewritePrompt,
    UpsampleLatents,
    Waveform,
)
from braid.diffusion.pipelines.sampler_choice import UNCONDITIONAL_SAMPLERS
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Checkpoint, Progress

Given = TypeVar("Given")
Part: TypeAlias = Generator[Any, Any, Given]
"""Yields operations, checkpoints and progress; returns what it is for."""


def begin(job: Job) -> Part[PipelineState]:
    """The first state: everything that is said in words, encoded."""
    params, prompt = job.params, job.params.prompt
    if params.enhance_prompt and params.prompt_embeds is None:
        yield Progress("rewrite_prompt", 0, 1)
        prompt = yield RewritePrompt(prompt, job.seed)
    yield Progress("encode_prompt", 0, 1)
    prompt_embeds, negative_prompt_embeds = params.prompt_embeds, params.negative_prompt_embeds
    if prompt_embeds is None:
        prompt_embeds = yield EncodePrompt(prompt)
    if negative_prompt_embeds is None and needs_negative_prompt(job.guidance, job.sampler):
        negative_prompt_embeds = yield EncodePrompt(job.negative_prompt)
    state = PipelineState(job.pipeline, prompt, prompt_embeds, negative_prompt_embeds, noise_source(job).state())
    yield Checkpoint(state)
    return state


def needs_negative_prompt(guidance: AudioVideo[Guidance], sampler: str) -> bool:
    """Whether a stream is led away from it, or the sampler asks for its estimate."""
    return sampler in UNCONDITIONAL_SAMPLERS or any(one.guidance_scale != 1.0 for one in guidance.present())


def noise_source(job: Job) -> NoiseSource:
    """The source of all noise of a job, at its beginning."""
    return SeededNoise(job.seed) if job.params.noise is None else job.params.noise()


def encoded_once(state: PipelineState, name: str, operation: Any) -> Part[PipelineState]:
    """What an encoder makes of something large, kept among the results as `name`."""
    if name in state.results:
        return state
    yield Progress(name, 0, 1)
    state = replace(state, results={**state.results, name: (yield operation)})
    yield Checkpoint(state)
    return state


def upsample(state: PipelineState, stage: str) -> Part[PipelineState]:
    """The video latents of a finished stage, enlarged; leaves `upsampled` among the results."""
    return encoded_once(state, "upsampled", UpsampleLatents(state.results[f"{stage}.video"]))


def decode(
    job: Job,
    state: PipelineState,
    *,
    video: Tensor | None = None,
    audio: Tensor | None = None,
    waveform: Waveform | None = None,
) -> Part[GenerationResult]:
    """Final latents to sound and pictures, where they are wanted.

    Sound comes first: it is small, and whoever writes a file then has it beside the frames as they become final.

    Args:
        video, audio: (1, C, F', H', W') and (1, C, T, M).
        waveform: the sound of the result, where it was given and not made.
    """
    decoded = _Frames()
    if job.params.output_type == "frames":
        if audio is not None and waveform is None:
            yield Progress("decode_audio", 0, 1)
            waveform = yield DecodeAudio(audio)
        if video is not None:
            generator = _generator_after(job, state)
            decoded = yield from _decode_frames(video, job.num_frames, generator, is_kept=job.keep_frames)
    return GenerationResult(
        decoded.frames,
        waveform,
        AudioVideo(video, audio),
        job.frame_rate,
        job.seed,
        state.prompt,
        frames_shape=decoded.shape,
    )


def _generator_after(job: Job, state: PipelineState) -> Tensor:
    """The user's generator after all stages, from which decoders go on; a fresh one where noise was given."""
    return state.noise.initial if job.params.noise is None else torch.Generator().manual_seed(job.seed).get_state()


@dataclass(frozen=True, slots=True)
class _Frames:
    """Of a whole clip, None where they are not wanted."""

    frames: Tensor | None = None
    shape: tuple[int, int, int, int] | None = None


def _decode_frames(latents: Tensor, num_frames: int, generator: Tensor, *, is_kept: bool) -> Part[_Frames]:
    """Group after group, into place; the last ones of a group wait in `carry` for the next."""
    whole: Tensor | None = None
    height = width = num_decoded = 0
    carry, group, num_groups = None, 0, 1
    while group < num_groups:
        yield Progress("decode", group, num_groups)
        decoded = yield DecodeFrames(latents, group, carry, generator)
        carry, num_groups, group = decoded.carry, decoded.num_groups, group + 1
        first, (height, width) = num_decoded, decoded.frames.shape[1:3]
        num_decoded += len(decoded.frames)
        if is_kept:
            whole = decoded.frames.new_empty(num_frames, height, width, 3) if whole is None else whole
            whole[first:num_decoded] = decoded.frames
        del decoded  # not to be held while the next group is decoded
    return _Frames(whole, (num_decoded, height, width, 3))
