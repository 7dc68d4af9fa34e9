"""The JSON of a media job, both ways: what was asked for, judged as in Python; and all that was decided, as JSON again.

A job is made from the JSON that `decided` gives, with the inputs beside it: asked again, it is the very same job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from braid.diffusion.arguments import check_names, number, text, whole
from braid.diffusion.job import Job
from braid.diffusion.jobs.uploads import UploadLimits, read_clip, read_picture, read_sound
from braid.diffusion.judging import Judge, judged
from braid.diffusion.operations import Waveform
from braid.diffusion.params import AdapterChoice, ImageCondition
from braid.errors import InvalidRequest, MissingField

Locate = Callable[[str, Mapping[str, Any]], Path]
"""(name of the field, `{"input": ...}` or `{"job": ..., "file": ...}`) to where that file lies."""

KINDS = ("image", "video", "audio")
FORMATS = {"image": ("png", "webp", "jpeg"), "video": ("mp4",), "audio": ("wav",)}
"""The first of each kind is what is made if nothing is said."""
MAX_QUALITY = 100
OF_PYTHON_ALONE = ("prompt_embeds", "negative_prompt_embeds", "latents", "noise")
_SOUND_ALONE = "text_to_audio"
_DELIVERY = ("output_format", "output_compression", "preview_every")
_SPOKEN = ("prompt", "enhance_prompt", "num_context_frames", "window")
"""Fields that are kept as they were given."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What a client gets of a job, which changes no bit of the frames."""

    output_format: str
    output_compression: int
    """The quality of WebP and JPEG."""
    preview_every: int
    """Steps between two previews; 0 for none."""


@dataclass(frozen=True, slots=True)
class MediaJob:
    """A request, judged."""

    kind: str
    job: Job
    handover: Handover
    params: dict[str, Any]
    """All that was decided, as JSON."""


def read_media(
    kind: str,
    params: Mapping[str, Any],
    locate: Locate,
    model: Judge,
    default_adapters: Sequence[AdapterChoice] = (),
    limits: UploadLimits | None = None,
) -> MediaJob:
    """Judge a request by the code of `DiffGenerator`.

    Raises:
        InvalidRequest, MissingField, Unsupported: with the field and what would be right.
        CannotFit: with the two numbers.
        NotFound: a file that is named does not exist.
    """
    if kind not in KINDS:
        raise InvalidRequest(f"kind={kind!r} must be one of {', '.join(KINDS)}", param="kind")
    plain = {name: value for name, value in params.items() if value is not None}
    delivery = {name: plain.pop(name) for name in _DELIVERY if name in plain}
    prompt = plain.pop("prompt", "")
    _check_plain(plain)
    _Files(locate, limits or UploadLimits()).read_into(plain)
    _of_kind(kind, plain)
    job = judged(model, prompt, plain, default_adapters)
    handover = _handover(kind, delivery, job)
    given = {name: value for name, value in params.items() if value is not None}
    return MediaJob(kind, job, handover, decided(given, job, handover))


def _check_plain(params: Mapping[str, Any]) -> None:
    check_names(params)
    for name in OF_PYTHON_ALONE:
        if name in params:
            raise InvalidRequest(f"{name} holds tensors, and can be given in Python only", param=name)
    if params.get("output_type", "frames") != "frames":
        raise InvalidRequest(f"output_type={params['output_type']!r} leaves nothing to show", param="output_type")


def _of_kind(kind: str, params: dict[str, Any]) -> None:
    """What a kind of job implies, where the request says nothing else."""
    if kind == "image" and params.setdefault("num_frames", 1) != 1:
        raise InvalidRequest(f"num_frames={params['num_frames']!r}: a picture has 1", param="num_frames")
    if kind == "audio" and params.setdefault("pipeline", _SOUND_ALONE) != _SOUND_ALONE:
        raise InvalidRequest(f"pipeline={params['pipeline']!r}: sound alone is {_SOUND_ALONE!r}", param="pipeline")
    if kind != "audio" and params.get("pipeline") == _SOUND_ALONE:
        raise InvalidRequest(f"pipeline={_SOUND_ALONE!r} makes sound alone, and this is {kind}", param="pipeline")


def _handover(kind: str, given: Mapping[str, Any], job: Job) -> Handover:
    formats = FORMATS[kind]
    output_format = text("output_format", given.get("output_format", formats[0]))
    if output_format not in formats:
        raise InvalidRequest(f"output_format={output_format!r} must be {' or '.join(formats)}", param="output_format")
    quality = whole("output_compression", given.get("output_compression", MAX_QUALITY))
    if not 0 <= quality <= MAX_QUALITY:
        raise InvalidRequest(
            f"output_compression={quality} must be from 0 to {MAX_QUALITY}", param="output_compression"
        )
    usual = max(1, job.num_inference_steps // 4) if kind == "video" else 0
    every = whole("preview_every", given.get("preview_every", usual))
    if every < 0:
        raise InvalidRequest(f"preview_every={every} must be 0 or more steps", param="preview_every")
    return Handover(output_format, quality, every)


# -- files and choices -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """Puts what files hold into the place of their names."""

    locate: Locate
    limits: UploadLimits

    def read_into(self, params: dict[str, Any]) -> None:
        if "images" in params:
            params["images"] = [self._image(f"images.{i}", item) for i, item in enumerate(_list(params, "images"))]
        if "waveform" in params:
            path = self.locate("waveform", _reference("waveform", params["waveform"]))
            sound = read_sound(path, self.limits, "waveform")
            params["waveform"] = Waveform(sound.samples, sound.sample_rate)
        if "video" in params:
            self._read_clip(params)
        if "adapters" in params and not isinstance(params["adapters"], Mapping):
            params["adapters"] = [_adapter(f"adapters.{i}", item) for i, item in enumerate(_list(params, "adapters"))]
        if "distilled_adapter" in params:
            params["distilled_adapter"] = _adapter("distilled_adapter", params["distilled_adapter"])

    def _image(self, name: str, item: Any) -> ImageCondition:
        condition = _object(name, item, ("image", "frame_index", "strength", "crf"))
        if "image" not in condition:
            raise MissingField(f"{name}.image is not there: name an upload", param=f"{name}.image")
        path = self.locate(f"{name}.image", _reference(f"{name}.image", condition["image"]))
        return ImageCondition(
            image=read_picture(path, self.limits, f"{name}.image"),
            frame_index=whole(f"{name}.frame_index", condition.get("frame_index", 0)),
            strength=number(f"{name}.strength", condition.get("strength", 1.0)),
            crf=None if condition.get("crf") is None else whole(f"{name}.crf", condition["crf"]),
        )

    def _read_clip(self, params: dict[str, Any]) -> None:
        """A clip; its rate and its sound, where nothing else is said of them."""
        clip = read_clip(self.locate("video", _reference("video", params["video"])), self.limits, "video")
        params["video"] = clip.frames
        params.setdefault("frame_rate", float(clip.frame_rate))
        if clip.sound is not None and clip.sound.samples.shape[1] and params.get("generate_audio") is not False:
            sound = Waveform(clip.sound.samples[:2], clip.sound.sample_rate)
            params["waveform"] = params.get("waveform", sound)


def _reference(name: str, value: Any) -> Mapping[str, Any]:
    known = ("input", "job", "file")
    reference = _object(name, value, known)
    if set(reference) not in ({"input"}, {"job", "file"}) or not all(isinstance(v, str) for v in reference.values()):
        raise InvalidRequest(f'{name} must be {{"input": name}} or {{"job": id, "file": name}}', param=name)
    return reference


def _object(name: str, value: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be an object with {', '.join(known)}", param=name)
    for key in value:
        if key not in known:
            raise InvalidRequest(f"{name} has no {key!r}; there are: {', '.join(known)}", param=f"{name}.{key}")
    return value


def _list(params: Mapping[str, Any], name: str) -> list[Any]:
    items = params[name]
    if not isinstance(items, list):
        raise InvalidRequest(f"{name} must be a list", param=name)
    return items


def _adapter(name: str, value: Any) -> Any:
    """`"name"`, `["name", strength(s)]` or `{"name": ..., "strengths": ...}`, as `argument_values.adapter` takes it."""
    if isinstance(value, Mapping):
        choice = _object(name, value, ("name", "strengths"))
        if "name" not in choice:
            raise MissingField(f"{name}.name is not there", param=f"{name}.name")
        return choice["name"], choice.get("strengths", 1.0)
    return tuple(value) if isinstance(value, list) else value


# -- all that was decided ----------------------------------------------------------------------------------------------


def decided(given: Mapping[str, Any], job: Job, handover: Handover) -> dict[str, Any]:
    """The JSON that makes `job` once more, whatever presets say by then.

    Args:
        given: the request's own JSON, whose names of files are kept.
    """
    params: dict[str, Any] = {name: given[name] for name in _SPOKEN if name in given}
    params |= {
        "pipeline": job.pipeline,
        "height": job.height,
        "width": job.width,
        "num_frames": job.num_frames,
        "frame_rate": job.frame_rate,
        "seed": job.seed,
        "num_inference_steps": job.num_inference_steps,
        "sampler": job.sampler,
        "negative_prompt": job.negative_prompt,
        "generate_audio": job.has_audio,
        "adapters": [_as_json(choice) for choice in job.params.adapters],
    }
    if job.pipeline != "distilled":  # it takes none
        params["guidance"] = {
            stream: asdict(guidance)
            for stream, guidance in (("video", job.guidance.video), ("audio", job.guidance.audio))
            if guidance is not None
        }
    for name in ("sigmas", "stage_2_sigmas"):
        if (sigmas := getattr(job, name)) is not None:
            params[name] = list(sigmas)
    if (distilled := _distilled(job)) is not None:
        params["distilled_adapter"] = distilled
    return params | _files(given, job) | asdict(handover)


def _files(given: Mapping[str, Any], job: Job) -> dict[str, Any]:
    files = {name: given[name] for name in ("video", "waveform") if name in given}
    if "images" in given:
        files["images"] = [
            {
                "image": dict(item["image"]),
                "frame_index": image.frame_index,
                "strength": image.strength,
                "crf": job.crf if image.crf is None else image.crf,
            }
            for item, image in zip(given["images"], job.params.images, strict=True)
        ]
    return files


def _as_json(choice: AdapterChoice) -> dict[str, Any]:
    return {"name": choice.name, "strengths": list(choice.strengths)}


def _distilled(job: Job) -> dict[str, Any] | None:
    """The distilled adapter with its strength in each stage, as it is merged behind all others."""
    if job.params.distilled_adapter is not None:
        return _as_json(job.params.distilled_adapter)
    num_own = len(job.params.adapters)
    uses = [stage[num_own] if len(stage) > num_own else None for stage in job.adapters]
    names = {use.name for use in uses if use is not None}
    if not names:
        return None
    return {"name": names.pop(), "strengths": [0.0 if use is None else use.strength for use in uses]}
