"""What the OpenAPI document says of requests for text beyond their types: the ranges by which they are judged."""

from __future__ import annotations

from typing import Any

from braid.rest.chat_messages import ROLES
from braid.rest.field_kinds import Schema
from braid.rest.sampling import INTEGERS, MAX_TOP_LOGPROBS, NUMBERS, POSITIVE_NUMBERS, PRIORITIES

_TOKEN_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
_STOP_TEXT: Schema = {"type": "string", "minLength": 1}
_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
    },
    "required": ["role", "content"],
}
_PROMPT: Schema = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _TOKEN_IDS,
        {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
    ]
}


def text_schemas(found: dict[str, Any]) -> dict[str, Any]:
    """The schemas of `ChatBody` and `CompletionBody` with what is required, and with ranges.

    Args:
        found: as their types alone have them.
    """
    own = {
        "ChatBody": {"messages": {"type": "array", "items": _MESSAGE, "minItems": 1}},
        "CompletionBody": {"prompt": _PROMPT},
    }
    refined = dict(found)
    for name, required in own.items():
        properties = found[name]["properties"]
        ranges = {field: _narrowed(properties[field], limits) for field, limits in _ranges().items()}
        ranges = {field: schema for field, schema in ranges.items() if field in properties}
        refined[name] = found[name] | {"properties": properties | ranges | required, "required": list(required)}
    chat = refined["ChatBody"]["properties"]
    top = {"minimum": 0, "maximum": MAX_TOP_LOGPROBS}
    chat["top_logprobs"] = _narrowed(chat["top_logprobs"], top)
    chat["max_completion_tokens"] = _narrowed(chat["max_completion_tokens"], {"minimum": 1})
    chat["modalities"] = _narrowed(chat["modalities"], {"items": {"const": "text"}})
    completion = refined["CompletionBody"]["properties"]
    completion["logprobs"] = _narrowed(completion["logprobs"], top)
    return refined


def _ranges() -> dict[str, Schema]:
    """What each field's value must be, if it is not null."""
    ranges: dict[str, Schema] = {name: {"minimum": low, "maximum": high} for name, (low, high) in NUMBERS.items()}
    ranges |= {name: {"exclusiveMinimum": 0, "maximum": high} for name, high in POSITIVE_NUMBERS.items()}
    ranges |= {name: {"minimum": low, "maximum": high} for name, (low, high) in INTEGERS.items()}
    return ranges | {
        "max_tokens": {"minimum": 1},
        "priority": {"enum": list(PRIORITIES)},
        "stop": {"anyOf": [_STOP_TEXT, {"type": "array", "items": _STOP_TEXT}, {"type": "null"}]},
        "stop_token_ids": {"items": _TOKEN_IDS["items"]},
        "logit_bias": {
            "propertyNames": {"pattern": r"^(0|[1-9][0-9]{0,8})$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
    }


def _narrowed(schema: Schema, limits: Schema) -> Schema:
    """A schema or null, of which the first part gets limits."""
    if "anyOf" in limits:
        return schema | limits
    return schema | {
        "anyOf": [part if part.get("type") == "null" else part | limits for part in schema["anyOf"]],
    }
