"""Judging what a request hands over beside words and numbers: pictures, clips, sound, and things computed elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from braid.diffusion.job import Job
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.operations import PromptEmbeds
from braid.diffusion.params import ImageCondition
from braid.diffusion.pipelines.choice import PipelineChoice
from braid.errors import InvalidRequest, MissingField

MAX_CRF = 51


def check_images(job: Job) -> None:
    """Raises: InvalidRequest: a picture that cannot be shown, or not where it should be."""
    for index, image in enumerate(job.params.images):
        name = f"images.{index}"
        if not 0 <= image.frame_index < job.num_frames:
            raise InvalidRequest(
                f"{name}.frame_index={image.frame_index} must be from 0 to {job.num_frames - 1}, the film's last frame",
                param=f"{name}.frame_index",
            )
        if not 0.0 <= image.strength <= 1.0:
            raise InvalidRequest(
                f"{name}.strength={image.strength} must be from 0 (not shown) to 1 (shown exactly)",
                param=f"{name}.strength",
            )
        if image.crf is not None and not 0 <= image.crf <= MAX_CRF:
            raise InvalidRequest(f"{name}.crf={image.crf} must be from 0 (none) to {MAX_CRF}", param=f"{name}.crf")
        _check_picture(job, name, image)


def _check_picture(job: Job, name: str, image: ImageCondition) -> None:
    if (image.image is None) == (not image.latents):
        raise MissingField(f"{name} must have exactly one of image and latents", param=name)
    if image.image is not None:
        check_pixels(f"{name}.image", image.image, num_axes=3)
        return
    grids = [job.grid()] if len(job.adapters) == 1 else [job.small_grid, job.grid()]
    if len(image.latents) != len(grids):
        raise InvalidRequest(
            f"{name}.latents has {len(image.latents)} tensors; {len(grids)} are needed, one for each stage",
            param=f"{name}.latents",
        )
    for latents, grid in zip(image.latents, grids, strict=True):
        wanted = (1, job.geometry.video.num_channels, 1, grid.height, grid.width)
        check_tensor(f"{name}.latents", latents, wanted)


def check_sound_and_clip(job: Job, choice: PipelineChoice) -> None:
    """Raises: InvalidRequest, MissingField: what the pipeline starts from is absent, or of no use to it."""
    params = job.params
    for field, is_needed in (
        ("video", choice.needs_video),
        ("waveform", choice.needs_waveform),
        ("images", choice.needs_images),
        ("window", choice.needs_window),
    ):
        if is_needed and not (getattr(params, field) is not None and (field != "images" or params.images)):
            raise MissingField(f"pipeline={job.pipeline!r} needs {field}", param=field)
    if params.video is not None:
        _check_clip(job, choice, params.video)
    if params.waveform is not None:
        _check_waveform(params.waveform.samples, params.waveform.sample_rate)
    if params.window is not None:
        _check_window(job, params.window)


def _check_clip(job: Job, choice: PipelineChoice, video: Tensor) -> None:
    if not choice.needs_video:
        raise InvalidRequest(f"video is of no use to pipeline={job.pipeline!r}", param="video")
    check_pixels("video", video, num_axes=4)
    num_frames, height, width = video.shape[:3]
    if (height, width) != (job.height, job.width):
        raise InvalidRequest(
            f"video is {width}x{height} and the film {job.width}x{job.height}; they must be equal", param="video"
        )
    if choice.needs_window and num_frames != job.num_frames:
        raise InvalidRequest(
            f"num_frames={job.num_frames} and the clip has {num_frames} frames; leave num_frames out",
            param="num_frames",
        )


def _check_waveform(samples: Tensor, sample_rate: int) -> None:
    if samples.ndim != 2 or samples.shape[0] not in (1, 2) or not samples.shape[1]:
        raise InvalidRequest(
            f"waveform has shape {tuple(samples.shape)}: it must be (1 or 2 channels, samples)", param="waveform"
        )
    if sample_rate < 1:
        raise InvalidRequest(f"waveform.sample_rate={sample_rate} must be positive", param="waveform")
    check_finite("waveform", samples)


def _check_window(job: Job, window: tuple[float, float]) -> None:
    start_s, end_s = window
    duration_s = job.num_frames / job.frame_rate
    if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < end_s and start_s < duration_s):
        raise InvalidRequest(
            f"window={window} must be two rising numbers of seconds inside the clip, which ends at {duration_s:.3f}",
            param="window",
        )


def check_ready_made(job: Job, facts: ModelFacts, *, num_stages: int) -> None:
    """Raises: InvalidRequest: prompt embeds or latents that do not fit the model or the film."""
    params = job.params
    for name, embeds in (
        ("prompt_embeds", params.prompt_embeds),
        ("negative_prompt_embeds", params.negative_prompt_embeds),
    ):
        if embeds is not None:
            _check_embeds(job, name, embeds, facts)
    if params.latents is None:
        return
    grid = job.grid() if num_stages == 1 else job.small_grid
    if params.latents.video is not None:
        wanted = (1, job.geometry.video.num_channels, grid.frames, grid.height, grid.width)
        check_tensor("latents.video", params.latents.video, wanted)
    if params.latents.audio is not None:
        geometry = job.geometry
        wanted_audio = (1, geometry.audio.num_channels, job.num_audio_tokens, geometry.audio.num_latent_bins)
        check_tensor("latents.audio", params.latents.audio, wanted_audio)


def _check_embeds(job: Job, name: str, embeds: PromptEmbeds, facts: ModelFacts) -> None:
    video_width, audio_width = facts.context_widths
    for stream, tensor, width, is_needed in (
        ("video", embeds.video, video_width, job.has_video),
        ("audio", embeds.audio, audio_width, job.has_audio),
    ):
        if tensor is None and is_needed:
            raise MissingField(f"{name}.{stream} is needed for a film with {stream}", param=f"{name}.{stream}")
        if tensor is not None and is_needed:
            if tensor.ndim != 3 or tensor.shape[0] != 1 or tensor.shape[2] != width:
                raise InvalidRequest(
                    f"{name}.{stream} has shape {tuple(tensor.shape)}: it must be (1, tokens, {width})",
                    param=f"{name}.{stream}",
                )
            check_finite(f"{name}.{stream}", tensor)


def check_tensor(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Raises: InvalidRequest: another shape, or a number that is none."""
    if tuple(tensor.shape) != wanted:
        raise InvalidRequest(f"{name} has shape {tuple(tensor.shape)}: it must be {wanted}", param=name)
    check_finite(name, tensor)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises: InvalidRequest: NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidRequest(f"{name} holds numbers that are not finite", param=name)


def check_pixels(name: str, pixels: Tensor, *, num_axes: int) -> None:
    """Raises: InvalidRequest: not (..., H, W, 3) uint8 with something in it."""
    if pixels.ndim != num_axes or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8 or not pixels.numel():
        shape = "(H, W, 3)" if num_axes == 3 else "(F, H, W, 3)"
        raise InvalidRequest(
            f"{name} is {tuple(pixels.shape)} {str(pixels.dtype).removeprefix('torch.')}: it must be {shape} uint8",
            param=name,
        )
