"""From what a user gives to a job that is found possible: the one way, for Python, the command line and HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from braid.diffusion.argument_values import GuidanceChanges
from braid.diffusion.arguments import read_params
from braid.diffusion.job import Job
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.operations import Waveform
from braid.diffusion.params import AdapterChoice, GenerationParams
from braid.diffusion.validation import choose_pipeline, frame_rate_of
from braid.errors import InvalidRequest


class Judge(Protocol):
    """A loaded video model."""

    facts: ModelFacts

    def resolve(self, params: GenerationParams) -> Job:
        """See `Diffusion.resolve`."""
        ...


def judged(model: Judge, prompt: Any, given: Mapping[str, Any], default_adapters: Sequence[AdapterChoice]) -> Job:
    """A job of arguments by the names of `arguments.ARGUMENTS`.

    Args:
        default_adapters: used where `given` names no `adapters`.
    Raises:
        InvalidRequest, MissingField, Unsupported: with what would be right.
        CannotFit: the memory budget is too small, with the numbers.
    """
    params = read_params(prompt, given)
    if given.get("adapters") is None:
        params = replace(params, adapters=tuple(default_adapters))
    return model.resolve(_with_clip_end(_with_guidance(params, model.facts), model.facts))


def _with_guidance(params: GenerationParams, facts: ModelFacts) -> GenerationParams:
    """Changes to the guidance of the preset, put into it."""
    if not isinstance(params.guidance, GuidanceChanges):
        return params
    preset = facts.presets[choose_pipeline(params, facts)]
    return replace(params, guidance=params.guidance.applied(preset.guidance))


def _with_clip_end(params: GenerationParams, facts: ModelFacts) -> GenerationParams:
    """Of a clip that is extended, the frames and the sound that its extension begins with."""
    if params.num_context_frames is None and (params.pipeline != "extend" or params.video is None):
        return params
    if params.video is None or choose_pipeline(params, facts) != "extend":
        raise InvalidRequest(
            f"num_context_frames={params.num_context_frames} is for a clip that pipeline='extend' goes on with",
            param="num_context_frames",
        )
    preset = facts.presets["extend"]
    num_frames = preset.num_frames if params.num_frames is None else params.num_frames
    factor = facts.geometry.video.time_factor
    wanted = (num_frames + 1) // 2 if params.num_context_frames is None else params.num_context_frames
    if not 1 <= wanted < max(num_frames, 2):
        raise InvalidRequest(
            f"num_context_frames={wanted} must be from 1 to {num_frames - 1}: the film begins with them, and has "
            f"{num_frames} frames",
            param="num_context_frames",
        )
    kept = (min(wanted, max(len(params.video), 1)) - 1) // factor * factor + 1
    waveform = _sound_end(params.waveform, kept / frame_rate_of(params, preset))
    return replace(params, video=params.video[-kept:], waveform=waveform)


def _sound_end(waveform: Waveform | None, seconds: float) -> Waveform | None:
    if waveform is None:
        return None
    num_samples = max(1, round(seconds * waveform.sample_rate))
    return Waveform(waveform.samples[..., -num_samples:], waveform.sample_rate)
