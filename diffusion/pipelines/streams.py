"""What a stage starts from: both streams, and what is given of them.

Each function that starts with `with_` is a part: it takes streams and returns them with something put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from braid.diffusion.conditioning import append_keyframes, hold_latent_frames
from braid.diffusion.job import Job
from braid.diffusion.latents import (
    AudioVideo,
    LatentState,
    add_noise,
    free_state,
    patchify_audio,
    patchify_video,
)
from braid.diffusion.noise import NoiseSource
from braid.diffusion.operations import EncodeImage
from braid.diffusion.params import ImageCondition
from braid.diffusion.pipelines.parts import Part
from braid.diffusion.positions import VideoGrid, audio_positions, video_positions

Streams: TypeAlias = AudioVideo[LatentState]


def free_streams(
    job: Job, grid: VideoGrid | None, *, video: Tensor | None = None, audio: Tensor | None = None
) -> Streams:
    """The job's streams, all of them to be generated: from nothing, or from what is known.

    Args:
        grid: of the video; None where there is sound alone.
        video, audio: (1, C, F', H', W') and (1, C, T, M).
    """
    return AudioVideo(
        None if grid is None else _video_stream(job, grid, video),
        _audio_stream(job, audio) if job.has_audio else None,
    )


def _video_stream(job: Job, grid: VideoGrid, latents: Tensor | None) -> LatentState:
    tokens = _zeros(job, grid.num_tokens, job.geometry.video.num_channels)
    if latents is not None:
        tokens = patchify_video(latents).to(tokens)
    return free_state(tokens, video_positions(grid, job.frame_rate).to(job.device))


def _audio_stream(job: Job, latents: Tensor | None) -> LatentState:
    geometry = job.geometry
    tokens = _zeros(job, job.num_audio_tokens, geometry.audio.token_width)
    if latents is not None:
        tokens = patchify_audio(fitted_audio(latents, job.num_audio_tokens)).to(tokens)
    positions = audio_positions(
        job.num_audio_tokens,
        time_factor=geometry.audio.time_factor,
        hop_length=geometry.audio.hop,
        sample_rate=geometry.audio.sample_rate,
    )
    return free_state(tokens, positions.to(job.device))


def fitted_audio(latents: Tensor, num_tokens: int) -> Tensor:
    """(1, C, T, M) cut, or filled with zeros, to the length of the film."""
    missing = num_tokens - latents.shape[2]
    if missing <= 0:
        return latents[:, :, :num_tokens]
    return torch.cat([latents, latents.new_zeros(*latents.shape[:2], missing, latents.shape[3])], 2)


def _zeros(job: Job, num_tokens: int, width: int) -> Tensor:
    return torch.zeros(1, num_tokens, width, dtype=job.dtype, device=job.device)


def with_images(
    job: Job, streams: Streams, grid: VideoGrid, *, stage: int, are_keyframes: bool = False
) -> Part[Streams]:
    """The job's pictures: one of frame 0 takes the place of the first latent frame, others are appended in order.

    Args:
        stage: from 0, for pictures that are given as latents of each stage.
        are_keyframes: append all of them, also one of frame 0.
    """
    video = streams.video
    assert video is not None
    for image in job.params.images:
        latents = yield from _image_latents(job, image, grid, stage)
        if image.frame_index == 0 and not are_keyframes:
            video = hold_latent_frames(video, latents, grid, strength=image.strength)
        else:
            video = append_keyframes(
                video,
                latents,
                grid,
                frame_index=image.frame_index,
                frame_rate=job.frame_rate,
                strength=image.strength,
            )
    return replace(streams, video=video)


def _image_latents(job: Job, image: ImageCondition, grid: VideoGrid, stage: int) -> Part[Tensor]:
    if image.image is None:
        return image.latents[stage]
    crf = job.crf if image.crf is None else image.crf
    height, width = grid.height * grid.height_factor, grid.width * grid.width_factor
    latents: Tensor = yield EncodeImage(image.image, height, width, crf)
    return latents


def noised(streams: Streams, noise: NoiseSource, noise_scale: float, given: Sequence[Tensor | None]) -> Streams:
    """Both streams with their first noise, video before audio; a stream that is given as a whole draws none.

    Args:
        noise_scale: 1, or the first sigma where there is something to refine.
        given: video and audio tokens in the place of their noise; appended tokens still draw theirs.
    """
    return AudioVideo(
        None if streams.video is None else _noised(streams.video, noise, noise_scale, given[0]),
        None if streams.audio is None else _noised(streams.audio, noise, noise_scale, given[1]),
    )


def _noised(stream: LatentState, noise: NoiseSource, noise_scale: float, given: Tensor | None) -> LatentState:
    if stream.is_frozen:
        return stream
    draw = noise.initial(stream.latents.shape, dtype=stream.latents.dtype, device=stream.latents.device)
    if given is not None:
        draw = torch.cat([given.to(draw), draw[:, given.shape[1] :]], 1)
    return add_noise(stream, draw, noise_scale)
