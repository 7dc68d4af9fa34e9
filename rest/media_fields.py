"""The fields of media requests: what each is called, what it may be in JSON and in a form, and how that is said.

One table for reading, for the OpenAPI document and for the docs, so that they cannot differ. What a value must be is
judged here by its type only; ranges, and what fits together, are judged by the engine with the code that judges Python
calls.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from braid.diffusion.arguments import ARGUMENTS
from braid.errors import MissingField, Unsupported
from braid.rest.errors import InvalidType
from braid.rest.field_kinds import (
    ADAPTER,
    ADAPTERS,
    BOOLEAN,
    GUIDANCE,
    IMAGES,
    INTEGER,
    NUMBER,
    NUMBERS,
    PIPELINE_ALIASES,
    PIPELINES,
    REF,
    TEXT,
    Kind,
    UnknownField,
    choice,
)
from braid.rest.form import MediaBody, Upload
from braid.rest.sampling import PRIORITIES


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request."""

    name: str
    kind: Kind
    help: str
    is_required: bool = False


Table = tuple[Field, ...]


# -- reading -----------------------------------------------------------------------------------------------------------


def read_fields(body: MediaBody, table: Table, *, refused: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The values of a body by name; null, and empty text where no text is wanted, are as if they were not given.

    Args:
        refused: known fields that cannot be done here, with the reason.
    Raises:
        Unsupported: a field of `refused`.
        UnknownField: a field of neither.
        MissingField: a required one is not there.
        InvalidType, InvalidRequest, InvalidJson: a value is not of its kind.
    """
    known = {field.name: field for field in table}
    values = {}
    for name, value in body.fields.items():
        if refused and name in refused:
            if value is not None:
                raise Unsupported(f"{name} is not supported here: {refused[name]}; leave the field out", param=name)
        elif name not in known:
            raise _unknown(name, known)
        elif value is not None:
            values[name] = _value(known[name], value, is_form=body.is_form)
    for field in table:
        if field.is_required and field.name not in values:
            raise MissingField(f"{field.name} is missing: {field.help}", param=field.name)
    return values


def _unknown(name: str, known: Mapping[str, Field]) -> UnknownField:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return UnknownField(f"there is no field {name[:100]!r} here; {advice}", param=name[:100])


def _value(field: Field, value: Any, *, is_form: bool) -> Any:
    if isinstance(value, Upload):
        if not field.kind.is_file:
            raise InvalidType(f"{field.name} must not be a file", param=field.name)
        return field.kind.read(field.name, value)
    if is_form and isinstance(value, str):
        value = field.kind.parse(field.name, value)
    return field.kind.read(field.name, value)


# -- the arguments of a generation -------------------------------------------------------------------------------------

KINDS: dict[str, Kind] = {
    "negative_prompt": TEXT,
    "pipeline": choice(*PIPELINES, aliases=PIPELINE_ALIASES),
    "height": INTEGER,
    "width": INTEGER,
    "num_frames": INTEGER,
    "frame_rate": NUMBER,
    "seed": INTEGER,
    "num_inference_steps": INTEGER,
    "sampler": TEXT,
    "guidance": GUIDANCE,
    "images": IMAGES,
    "video": REF,
    "waveform": REF,
    "window": NUMBERS,
    "num_context_frames": INTEGER,
    "generate_audio": BOOLEAN,
    "adapters": ADAPTERS,
    "distilled_adapter": ADAPTER,
    "enhance_prompt": BOOLEAN,
    "output_type": choice("frames"),
    "sigmas": NUMBERS,
    "stage_2_sigmas": NUMBERS,
}
"""What the arguments of `DiffGenerator.generate` are over HTTP."""
IN_PYTHON_ONLY = dict.fromkeys(
    ("prompt_embeds", "negative_prompt_embeds", "latents", "noise"), "tensors are given in Python only"
)
_HELP = {
    "images": "pictures that the film shows: {image, frame_index, strength}, or just the picture",
    "video": "the clip to retake or extend",
    "waveform": "the sound to film, or that of the clip",
    "window": "seconds of a clip to make anew: [from, to]",
    "pipeline": f"one of {', '.join(PIPELINES)}, also with - for _, and hq",
    "guidance": 'changes to the guidance of each stream, as in {"video": {"guidance_scale": 3}}',
    "adapters": 'LoRAs: {"name": strength}, or a list of {name, strength}; strength may be one for each stage',
    "distilled_adapter": "the distilled LoRA: {name, strength}",
    "output_type": "frames",
}


def argument_fields(*names: str) -> Table:
    """The fields of some arguments, or of all."""
    wanted = [argument for argument in ARGUMENTS if argument.name in (names or KINDS)]
    return tuple(
        Field(argument.name, KINDS[argument.name], _HELP.get(argument.name, argument.help)) for argument in wanted
    )


def arguments_without(*names: str) -> Table:
    """The fields of all arguments but some."""
    return argument_fields(*(name for name in KINDS if name not in names))


PROMPT = Field("prompt", TEXT, "what is to be seen or heard", is_required=True)
MODEL = Field("model", TEXT, "a name of GET /v1/models; the model that makes such things if left out")
PRIORITY = Field(
    "priority",
    choice(*PRIORITIES),
    "who goes first where several wait; `standard` for pictures and `batch` for films and sounds if left out. On the "
    "device `interactive` is as `standard`: chat's readers go first",
)
USER = (
    Field("user", TEXT, "accepted for clients that send it; owners are told apart by their keys"),
    Field("safety_identifier", TEXT, "accepted for clients that send it"),
)
WEBHOOK = Field("webhook_url", TEXT, "is told when the job has ended, where the server sends webhooks")
QUALITY = Field(
    "quality",
    choice("auto", "standard", "medium", "low", "high", "hd", "xhigh", "max"),
    "low: the fastest pipeline that the model has; high and above: its best; others: its default",
)
