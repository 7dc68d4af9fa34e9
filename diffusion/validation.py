"""Judging a request before any work: every mistake gets the field, the value and what would be right.

`resolve` is the one way from `GenerationParams` to a `Job`. It touches no weight and no device.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from itertools import pairwise

from braid.diffusion.conditioning_checks import check_images, check_ready_made, check_sound_and_clip
from braid.diffusion.guidance import Guidance
from braid.diffusion.job import Job
from braid.diffusion.latents import AudioVideo
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.presets import Preset
from braid.diffusion.params import AdapterChoice, GenerationParams
from braid.diffusion.pipelines.choice import PIPELINES, PipelineChoice
from braid.diffusion.pipelines.parts import needs_negative_prompt
from braid.diffusion.pipelines.sampler_choice import SAMPLERS
from braid.errors import InvalidRequest, MissingField, Unsupported
from braid.lora.adapter import AdapterUse

MAX_FRAME_RATE = 240.0
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1
OUTPUT_TYPES = ("frames", "latents")


def resolve(params: GenerationParams, facts: ModelFacts) -> Job:
    """A request with every default filled in, and found possible.

    Raises:
        InvalidRequest: a value can never be right.
        MissingField: the pipeline needs something that is not there.
        Unsupported: the checkpoint lacks a part that the request needs.
    """
    name = choose_pipeline(params, facts)
    choice, preset = PIPELINES[name], facts.presets[name]
    one_of("output_type", params.output_type, OUTPUT_TYPES)
    height, width, num_frames = _size(params, choice, preset, facts)
    job = Job(
        model=facts.name,
        pipeline=name,
        params=params,
        geometry=facts.geometry,
        height=height,
        width=width,
        num_frames=num_frames,
        frame_rate=frame_rate_of(params, preset),
        seed=_seed(params.seed),
        num_inference_steps=_steps(params, preset),
        sigmas=_sigmas("sigmas", params.sigmas, preset.sigmas),
        stage_2_sigmas=_sigmas("stage_2_sigmas", params.stage_2_sigmas, preset.stage_2_sigmas),
        sampler=one_of("sampler", params.sampler or choice.sampler, tuple(SAMPLERS)),
        negative_prompt=preset.negative_prompt if params.negative_prompt is None else params.negative_prompt,
        guidance=_guidance(params, preset, facts, has_video=choice.makes_video, is_distilled=name == "distilled"),
        crf=preset.image_crf,
        adapters=_adapters(params, choice, preset, facts),
        has_video=choice.makes_video,
        has_audio=_has_audio(params, choice, num_frames, facts),
        dtype=facts.dtype,
        device=facts.device,
    )
    if not job.has_audio:
        job = replace(job, guidance=AudioVideo(job.guidance.video, None))
    _check_length(job)
    _check_text(job, facts)
    check_images(job)
    check_sound_and_clip(job, choice)
    check_ready_made(job, facts, num_stages=choice.num_stages)
    _check_parts(job, choice, facts)
    return job


# -- which pipeline ----------------------------------------------------------------------------------------------------


def choose_pipeline(params: GenerationParams, facts: ModelFacts) -> str:
    """The one that is asked for, or the best that the checkpoint has all parts for.

    Raises:
        InvalidRequest: there is none of that name.
    """
    if params.pipeline is not None:
        return one_of("pipeline", params.pipeline, tuple(PIPELINES))
    if not facts.has_video:
        return "text_to_audio"
    if facts.has_upsampler and facts.distilled_adapter is not None:
        return "two_stage_hq"
    return "one_stage"


def _check_parts(job: Job, choice: PipelineChoice, facts: ModelFacts) -> None:
    """All parts that will be needed, before the first of them is."""
    needed = {Part.TRANSFORMER: "every pipeline"}
    is_decoded = job.params.output_type == "frames"
    if any(image.image is not None for image in job.params.images) or job.params.video is not None:
        needed[Part.VIDEO_ENCODER] = "images or video"
    if is_decoded and choice.makes_video:
        needed[Part.VIDEO_DECODER] = "output_type='frames'"
    if job.has_audio and job.params.waveform is not None:
        needed[Part.AUDIO_ENCODER] = "waveform"
    if is_decoded and job.has_audio and not choice.needs_waveform:
        needed |= {Part.AUDIO_DECODER: "sound", Part.VOCODER: "sound"}
    for part, reason in needed.items():
        if part not in facts.parts:
            raise Unsupported(f"the checkpoint {facts.name} has no {part.value}, which {reason} needs")
    if choice.num_stages > 1 and not facts.has_upsampler:
        raise Unsupported(
            f"pipeline={job.pipeline!r} has a second stage, and {facts.name} was loaded without a latent upsampler",
            param="pipeline",
        )
    if choice.makes_video and not facts.has_video:
        raise Unsupported(f"{facts.name} makes sound alone: pipeline must be 'text_to_audio'", param="pipeline")


# -- sizes and numbers -------------------------------------------------------------------------------------------------


def _size(params: GenerationParams, choice: PipelineChoice, preset: Preset, facts: ModelFacts) -> tuple[int, int, int]:
    """Height, width and number of frames, those of a given clip where there is one to retake."""
    height, width, num_frames = preset.height, preset.width, preset.num_frames
    if params.video is not None and params.video.ndim == 4:
        clip_frames, height, width = params.video.shape[:3]
        num_frames = clip_frames if choice.needs_window else num_frames
    multiple = facts.geometry.size_multiple(is_two_stage=choice.num_stages > 1)
    height = height if params.height is None else params.height
    width = width if params.width is None else params.width
    num_frames = num_frames if params.num_frames is None else params.num_frames
    facts.geometry.video.check(num_frames, height, width, multiple=multiple)
    return height, width, num_frames


def _check_length(job: Job) -> None:
    if job.has_audio and job.num_audio_tokens < 1:
        raise InvalidRequest(
            f"num_frames={job.num_frames} at frame_rate={job.frame_rate:g} is too short to have sound; set "
            "generate_audio to false",
            param="generate_audio",
        )


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(32)
    if not _is_whole(seed) or not -MAX_SEED <= seed <= MAX_SEED:
        raise InvalidRequest(f"seed={seed!r} must be a whole number of 64 bits", param="seed")
    return seed


def _steps(params: GenerationParams, preset: Preset) -> int:
    steps = preset.num_inference_steps if params.num_inference_steps is None else params.num_inference_steps
    if not _is_whole(steps) or not 1 <= steps <= MAX_STEPS:
        raise InvalidRequest(
            f"num_inference_steps={steps!r} must be from 1 to {MAX_STEPS}", param="num_inference_steps"
        )
    return steps


def _sigmas(name: str, given: tuple[float, ...] | None, preset: tuple[float, ...] | None) -> tuple[float, ...] | None:
    if given is None:
        return preset
    sigmas = tuple(float(sigma) for sigma in given)
    descends = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not descends or not all(0.0 <= sigma <= 1.0 for sigma in sigmas):
        raise InvalidRequest(
            f"{name}={list(sigmas)} must be two or more noise levels from 1 to 0, each below the one before", param=name
        )
    return sigmas


def frame_rate_of(params: GenerationParams, preset: Preset) -> float:
    """Frames per second.

    Raises:
        InvalidRequest: no film has so few or so many.
    """
    return _number("frame_rate", params.frame_rate, preset.frame_rate, low=1.0, high=MAX_FRAME_RATE)


def _number(name: str, given: float | None, default: float, *, low: float, high: float) -> float:
    value = default if given is None else given
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequest(f"{name}={value!r} must be a number from {low:g} to {high:g}", param=name)
    return float(value)


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """A name out of a list.

    Raises:
        InvalidRequest: it is not in it.
    """
    if value not in known:
        raise InvalidRequest(f"{name}={value!r} must be one of {', '.join(known)}", param=name)
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# -- streams, guidance, adapters, words --------------------------------------------------------------------------------


def _has_audio(params: GenerationParams, choice: PipelineChoice, num_frames: int, facts: ModelFacts) -> bool:
    is_needed = choice.needs_waveform or not choice.makes_video
    wanted = (num_frames > 1 or is_needed) if params.generate_audio is None else params.generate_audio
    if (is_needed or params.generate_audio) and not facts.has_audio:
        raise Unsupported(f"{facts.name} has no audio stream", param="generate_audio")
    if is_needed and not wanted:
        raise InvalidRequest(
            f"generate_audio={params.generate_audio!r}: this pipeline is about sound", param="generate_audio"
        )
    return wanted and facts.has_audio


def _guidance(
    params: GenerationParams, preset: Preset, facts: ModelFacts, *, has_video: bool, is_distilled: bool
) -> AudioVideo[Guidance]:
    if is_distilled and params.guidance is not None:
        raise InvalidRequest("guidance: a distilled checkpoint takes none; leave it out", param="guidance")
    given = params.guidance or preset.guidance
    for stream, guidance in (("video", given.video), ("audio", given.audio)):
        if guidance is not None:
            _check_guidance(f"guidance.{stream}", guidance, facts.num_blocks)
    if not has_video:  # alone, a stream is the same whether it is isolated or not
        audio = given.audio or Guidance()
        return AudioVideo(None, replace(audio, modality_scale=1.0))
    return given


def _check_guidance(name: str, guidance: Guidance, num_blocks: int) -> None:
    for field in ("guidance_scale", "stg_scale", "modality_scale", "rescale"):
        value = getattr(guidance, field)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequest(f"{name}.{field}={value!r} must be a finite number", param=f"{name}.{field}")
    if not _is_whole(guidance.skip_step) or guidance.skip_step < 0:
        raise InvalidRequest(f"{name}.skip_step={guidance.skip_step!r} must be 0 or more", param=f"{name}.skip_step")
    for block in guidance.stg_blocks:
        if not 0 <= block < num_blocks:
            raise InvalidRequest(
                f"{name}.stg_blocks has {block}; the transformer's blocks are 0 to {num_blocks - 1}",
                param=f"{name}.stg_blocks",
            )


def _adapters(
    params: GenerationParams, choice: PipelineChoice, preset: Preset, facts: ModelFacts
) -> tuple[tuple[AdapterUse, ...], ...]:
    """Of each stage: the user's own in their order, the distilled one last."""
    distilled = params.distilled_adapter
    if distilled is None and facts.distilled_adapter is not None and preset.distilled_strengths:
        distilled = AdapterChoice(name=facts.distilled_adapter, strengths=preset.distilled_strengths)
    for one in (*params.adapters, *(() if distilled is None else (distilled,))):
        _check_adapter(one, choice.num_stages, facts)
    stages = []
    for stage in range(choice.num_stages):
        uses = [_use(one, stage) for one in params.adapters]
        if distilled is not None and _use(distilled, stage).strength != 0.0:  # 0 is a stage without it
            uses.append(_use(distilled, stage))
        stages.append(tuple(uses))
    return tuple(stages)


def _check_adapter(one: AdapterChoice, num_stages: int, facts: ModelFacts) -> None:
    if not facts.has_adapter(one.name):
        raise InvalidRequest(f"there is no adapter {one.name!r}; load it first", param="adapters")
    if len(one.strengths) not in (1, num_stages):
        right = "1" if num_stages == 1 else f"1 or {num_stages}"
        raise InvalidRequest(
            f"adapter {one.name!r} has {len(one.strengths)} strengths; {right} is right for {num_stages} stages",
            param="adapters",
        )
    for strength in one.strengths:
        if not math.isfinite(strength):
            raise InvalidRequest(f"adapter {one.name!r} has strength {strength}: it must be finite", param="adapters")


def _use(one: AdapterChoice, stage: int) -> AdapterUse:
    return AdapterUse(one.name, one.strengths[stage if len(one.strengths) > 1 else 0])


def _check_text(job: Job, facts: ModelFacts) -> None:
    """Somebody must be able to encode what is given as text only."""
    params = job.params
    needs_encoding = params.prompt_embeds is None or (
        params.negative_prompt_embeds is None and needs_negative_prompt(job.guidance, job.sampler)
    )
    if params.prompt_embeds is None and not params.prompt.strip():
        raise MissingField("prompt is empty: say what is to be seen or heard", param="prompt")
    if needs_encoding and not (facts.has_language_model and Part.TEXT_PROJECTION in facts.parts):
        what = "prompt_embeds" if params.prompt_embeds is None else "negative_prompt_embeds"
        raise Unsupported(
            f"{facts.name} has no text encoder in memory; give {what}, or load its language model", param=what
        )
    if params.enhance_prompt and not facts.has_language_model:
        raise Unsupported("enhance_prompt: there is no language model in memory", param="enhance_prompt")
