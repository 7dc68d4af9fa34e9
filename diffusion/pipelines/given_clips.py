"""Pipelines that start from something filmed or heard: its latents are encoded once and kept in the state.

Source: specs of LTX-2, sections a.4 (frozen streams) and h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from braid.diffusion import conditioning
from braid.diffusion.job import Job
from braid.diffusion.latents import AudioVideo, LatentState, patchify_audio
from braid.diffusion.operations import EncodeAudio, EncodeVideo
from braid.diffusion.params import GenerationParams
from braid.diffusion.pipelines.parts import Part, begin, decode, encoded_once, upsample
from braid.diffusion.pipelines.stage import denoise_stage
from braid.diffusion.pipelines.stages import guided_stage, new_streams, refined_streams, refining_stage
from braid.diffusion.pipelines.streams import Streams, free_streams, with_images
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Pipeline


def audio_to_video(job: Job, state: PipelineState | None = None) -> Pipeline:
    """A film to a given sound, which is held in both stages and is the sound of the result as it was given."""
    state = state or (yield from begin(job))
    state = yield from _encode_sound(job.params, state)
    first = guided_stage(job, job.small_grid)
    state = yield from denoise_stage(job, state, first, _to_sound(job, state, new_streams(job, job.small_grid)))
    state = yield from upsample(state, first.name)
    second = refining_stage(job)
    state = yield from denoise_stage(job, state, second, _to_sound(job, state, refined_streams(job, state)))
    video, audio = state.results["stage_2.video"], state.results["given.audio"]
    return (yield from decode(job, state, video=video, audio=audio, waveform=job.params.waveform))


def retake(job: Job, state: PipelineState | None = None) -> Pipeline:
    """A clip with a window of time made anew; all else stays as it is encoded."""
    return (yield from _from_clip(job, state, _with_window))


def extend(job: Job, state: PipelineState | None = None) -> Pipeline:
    """A clip that begins with the last frames of another, picture and sound, and goes on."""
    return (yield from _from_clip(job, state, _with_prefix))


def _from_clip(
    job: Job, state: PipelineState | None, streams: Callable[[Job, PipelineState], Part[Streams]]
) -> Pipeline:
    """One stage at full size that starts from the streams made of a clip."""
    state = state or (yield from begin(job))
    state = yield from _encode_clip(job, state)
    state = yield from denoise_stage(job, state, guided_stage(job, job.grid()), streams(job, state))
    video, audio = state.results["stage_1.video"], state.results.get("stage_1.audio")
    return (yield from decode(job, state, video=video, audio=audio))


# -- encoding ----------------------------------------------------------------------------------------------------------


def _encode_clip(job: Job, state: PipelineState) -> Part[PipelineState]:
    assert job.params.video is not None
    state = yield from encoded_once(state, "given.video", EncodeVideo(job.params.video))
    if job.has_audio and job.params.waveform is not None:
        state = yield from _encode_sound(job.params, state)
    return state


def _encode_sound(params: GenerationParams, state: PipelineState) -> Part[PipelineState]:
    assert params.waveform is not None
    operation = EncodeAudio(params.waveform.samples, params.waveform.sample_rate)
    return encoded_once(state, "given.audio", operation)


# -- streams -----------------------------------------------------------------------------------------------------------


def _to_sound(job: Job, state: PipelineState, prepare: Part[Streams]) -> Part[Streams]:
    """The given sound, held as a whole."""
    streams = yield from prepare
    sound = free_streams(job, None, audio=state.results["given.audio"]).audio
    assert sound is not None
    return replace(streams, audio=conditioning.freeze(sound))


def _with_window(job: Job, state: PipelineState) -> Part[Streams]:
    """Both streams of the clip, free inside the window alone; sound that the clip does not have is free as a whole."""
    assert job.params.window is not None
    start_s, end_s = job.params.window
    clip = free_streams(
        job, job.grid(), video=state.results["given.video"], audio=state.results.get("given.audio")
    )
    streams = AudioVideo(
        None if clip.video is None else conditioning.retake(clip.video, start_s, end_s),
        clip.audio
        if clip.audio is None or "given.audio" not in state.results
        else conditioning.retake(clip.audio, start_s, end_s),
    )
    return (yield from with_images(job, streams, job.grid(), stage=0))


def _with_prefix(job: Job, state: PipelineState) -> Part[Streams]:
    """New streams whose beginning is the clip's end."""
    grid = job.grid()
    streams = free_streams(job, grid)
    assert streams.video is not None
    video = conditioning.hold_latent_frames(streams.video, state.results["given.video"], grid)
    sound = state.results.get("given.audio")
    if sound is not None and streams.audio is not None:
        streams = replace(streams, audio=_beginning_with(streams.audio, patchify_audio(sound)))
    return (yield from with_images(job, replace(streams, video=video), grid, stage=0))


def _beginning_with(stream: LatentState, tokens: torch.Tensor) -> LatentState:
    """Hold the first tokens of a stream."""
    num_held = min(tokens.shape[1], stream.num_tokens)
    clean = torch.cat([tokens[:, :num_held].to(stream.clean_latents), stream.clean_latents[:, num_held:]], 1)
    held = torch.arange(stream.num_tokens, device=clean.device)[None] < num_held
    return conditioning.hold_masked(stream, clean, held)
