"""The kinds of values that fields of media requests have: how each is read from JSON and from a form's text, and its
JSON schema. A value's type is judged here; what fits together is for the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from braid.errors import InvalidRequest
from braid.rest.body import type_name
from braid.rest.errors import InvalidType
from braid.rest.form import decode_field
from braid.rest.media_refs import JOB_KEYS, URL_KEYS, read_ref

Schema = dict[str, Any]
MAX_INT = 2**63 - 1
MAX_TEXT = 100_000
MAX_NUMBER = 1e300
_NUMBER_SCHEMA: Schema = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value."""

    read: Callable[[str, Any], Any]
    """(name, JSON value) to what routes use; raises InvalidRequest."""
    schema: Schema
    parse: Callable[[str, str], Any]
    """(name, form text) to a JSON value."""
    is_file: bool = False
    """An upload will do."""


class UnknownField(InvalidRequest):
    """No field has such a name; dropping it in silence would be answering another request."""

    code = "unknown_parameter"


# -- plain kinds -------------------------------------------------------------------------------------------------------


def _wrong(name: str, value: Any, wanted: str) -> InvalidType:
    return InvalidType(f"{name} must be {wanted}, not {type_name(value)}", param=name)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    if len(value) > MAX_TEXT:
        raise InvalidRequest(f"{name} has {len(value):,} characters; at most {MAX_TEXT:,} are read", param=name)
    return value


def _integer(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "an integer")
    if not -MAX_INT <= value <= MAX_INT:
        raise InvalidRequest(f"{name} must be a number of 64 bits", param=name)
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    if not abs(value) <= MAX_NUMBER:  # NaN, too
        raise InvalidRequest(f"{name}={value!r:.40} must be a finite number", param=name)
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "a boolean")
    return value


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(name, value, "an array")
    return value


def _plain(name: str, text: str) -> str:
    return text


def _parse_integer(name: str, text: str) -> int:
    word = text.strip()
    if not word.lstrip("+-").isdecimal() or not word.isascii() or len(word) > 20:
        raise InvalidType(f"{name}={text[:40]!r} must be a whole number", param=name)
    return int(word)


def _parse_number(name: str, text: str) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidType(f"{name}={text[:40]!r} must be a number", param=name)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _parse_boolean(name: str, text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.strip().lower() not in words:
        raise InvalidType(f"{name}={text[:40]!r} must be true or false", param=name)
    return words[text.strip().lower()]


def _parse_ref(name: str, text: str) -> Any:
    return decode_field(name, text) if text.lstrip().startswith("{") else text


TEXT = Kind(_text, {"type": "string", "maxLength": MAX_TEXT}, _plain)
INTEGER = Kind(_integer, {"type": "integer", "minimum": -MAX_INT, "maximum": MAX_INT}, _parse_integer)
NUMBER = Kind(_number, _NUMBER_SCHEMA, _parse_number)
BOOLEAN = Kind(_boolean, {"type": "boolean"}, _parse_boolean)


def ranged(kind: Kind, low: float, high: float) -> Kind:
    """Numbers between two bounds, both allowed."""

    def read(name: str, value: Any) -> Any:
        number = kind.read(name, value)
        if not low <= number <= high:
            raise InvalidRequest(f"{name}={number} must be from {low:g} to {high:g}", param=name)
        return number

    return replace(kind, read=read, schema=kind.schema | {"minimum": low, "maximum": high})


def choice(*words: str, aliases: Mapping[str, str] | None = None) -> Kind:
    """One of some words; aliases mean one of them."""
    meanings = dict.fromkeys(words) | (dict(aliases) if aliases else {})

    def read(name: str, value: Any) -> str:
        word = _text(name, value)
        if word not in meanings:
            raise InvalidRequest(f"{name}={word[:100]!r} must be one of {', '.join(meanings)}", param=name)
        return meanings[word] or word

    return Kind(read, {"type": "string", "enum": list(meanings)}, _plain)


# -- kinds with a structure --------------------------------------------------------------------------------------------


def _numbers(name: str, value: Any) -> list[float]:
    return [_number(f"{name}.{index}", item) for index, item in enumerate(_list(name, value))]


def _seconds(name: str, value: Any) -> float:
    seconds = _parse_number(name, value) if isinstance(value, str) else _number(name, value)
    if not 0 < seconds <= 3600:
        raise InvalidRequest(f"{name}={value!r:.40} must be more than 0 and at most 3600", param=name)
    return seconds


def _size(name: str, value: Any) -> tuple[int, int] | None:
    """(width, height)."""
    word = _text(name, value)
    if word == "auto":
        return None
    width, by, height = word.partition("x")
    if not by or not all(side.isdecimal() and side.isascii() and 0 < len(side) <= 5 for side in (width, height)):
        raise InvalidRequest(f"{name}={word[:40]!r} must be auto or WIDTHxHEIGHT, such as 1280x704", param=name)
    return int(width), int(height)


def _images(name: str, value: Any) -> list[dict[str, Any]]:
    return [_image(f"{name}.{index}", item) for index, item in enumerate(_list(name, value))]


def _image(name: str, value: Any) -> dict[str, Any]:
    """`image` stays a `MediaRef`."""
    if not isinstance(value, dict) or "image" not in value:
        value = {"image": value}
    readers = {"image": read_ref, "frame_index": _integer, "strength": _number, "crf": _integer}
    for key in value:
        if key not in readers:
            raise UnknownField(f"{name}.{key} is none of {', '.join(readers)}", param=f"{name}.{key}"[:100])
    return {key: readers[key](f"{name}.{key}", given) for key, given in value.items() if given is not None}


def _adapters(name: str, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        value = [[key, strength] for key, strength in value.items()]
    return [_adapter(f"{name}.{index}", item) for index, item in enumerate(_list(name, value))]


def _adapter(name: str, value: Any) -> dict[str, Any]:
    """`name`, and `strengths` of all stages or of each."""
    if isinstance(value, str):
        value = [value, 1.0]
    if isinstance(value, dict):
        value = [value.get("name"), _strength_of(name, value)]
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(name, value, 'a name, [name, strength], or {"name": ..., "strength": ...}')
    strength = value[1]
    read = _numbers if isinstance(strength, list) else _number
    given = read(f"{name}.strength", strength)
    return {"name": _text(f"{name}.name", value[0]), "strengths": given if isinstance(given, list) else [given]}


def _strength_of(name: str, value: dict[str, Any]) -> Any:
    names = ("strength", "strengths", "scale")
    for key in value:
        if key not in ("name", *names):
            raise UnknownField(f"{name}.{key} is none of name, strength", param=f"{name}.{key}"[:100])
    given = [value[key] for key in names if value.get(key) is not None]
    if len(given) > 1:
        raise InvalidRequest(f"{name} has several strengths; give one", param=name)
    return given[0] if given else 1.0


_BASE64 = "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
_BYTES_OR_URL: Schema = {"type": "string", "pattern": f"^(https?://[!-~]+|data:[A-Za-z0-9/;=.+-]*;base64,{_BASE64}|{_BASE64})$"}
_JOB_OR_URL = {
    "type": "object",
    "properties": {
        **dict.fromkeys(URL_KEYS, _BYTES_OR_URL),
        **{key: {"type": "string", "pattern": "^(image|video|audio)_[0-9a-f]{32}$"} for key in JOB_KEYS},
        "b64_json": {"type": "string", "pattern": f"^{_BASE64}$"},
    },
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
REF_SCHEMA: Schema = {"anyOf": [_BYTES_OR_URL, _JOB_OR_URL]}
_IMAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "image": REF_SCHEMA,
        "frame_index": {"type": "integer", "minimum": 0},
        "strength": {"type": "number", "minimum": 0, "maximum": 1},
        "crf": {"type": "integer", "minimum": 0, "maximum": 51},
    },
    "required": ["image"],
    "additionalProperties": False,
}
_STRENGTHS = {"anyOf": [_NUMBER_SCHEMA, {"type": "array", "items": _NUMBER_SCHEMA}]}
_ADAPTER_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "prefixItems": [{"type": "string"}, _STRENGTHS], "minItems": 2, "maxItems": 2},
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "strength": _STRENGTHS, "strengths": _STRENGTHS},
            "required": ["name"],
            "not": {"required": ["strength", "strengths"]},
            "additionalProperties": False,
        },
    ]
}
_GUIDANCE_OF_ONE = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("guidance_scale", "stg_scale", "modality_scale", "rescale"), _NUMBER_SCHEMA),
        "stg_blocks": {"type": "array", "items": {"type": "integer"}},
        "skip_step": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}

REF = Kind(read_ref, REF_SCHEMA, _parse_ref, is_file=True)
NUMBERS = Kind(_numbers, {"type": "array", "items": _NUMBER_SCHEMA}, decode_field)
GUIDANCE = Kind(
    _object,
    {
        "type": "object",
        "properties": {"video": _GUIDANCE_OF_ONE, "audio": _GUIDANCE_OF_ONE},
        "additionalProperties": False,
    },
    decode_field,
)
IMAGES = Kind(_images, {"type": "array", "items": {"anyOf": [_IMAGE_SCHEMA, REF_SCHEMA]}}, decode_field)
ADAPTERS = Kind(
    _adapters,
    {"anyOf": [{"type": "array", "items": _ADAPTER_SCHEMA}, {"type": "object", "additionalProperties": _STRENGTHS}]},
    decode_field,
)
ADAPTER = Kind(_adapter, _ADAPTER_SCHEMA, _parse_ref)
_SECONDS_TEXT: Schema = {"type": "string", "pattern": r"^(0\.[0-9]{0,5}[1-9]|[1-9][0-9]{0,2}(\.[0-9]{1,6})?)$"}
SECONDS = Kind(
    _seconds,
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 3600}, _SECONDS_TEXT]},
    _plain,
)
SIZE = Kind(_size, {"type": "string", "pattern": r"^(auto|[0-9]{1,5}x[0-9]{1,5})$"}, _plain)

PIPELINES = (
    "one_stage", "two_stage", "two_stage_hq", "distilled", "keyframe_interpolation", "a2vid", "retake", "extend",
    "text_to_audio",
)  # fmt: skip
PIPELINE_ALIASES = {"hq": "two_stage_hq"} | {name.replace("_", "-"): name for name in PIPELINES if "_" in name}
