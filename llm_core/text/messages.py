"""OpenAI's chat messages, checked, in the form that chat templates read: a role and one string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from braid.errors import InvalidRequest, MissingField, Unsupported

ROLES = ("system", "developer", "user", "assistant", "tool")
PASSED_ON = ("name", "tool_call_id", "reasoning_content")
"""Further fields that templates read, where they are strings."""
NOT_YET = ("tool_calls", "function_call", "audio")


def check_messages(messages: Any) -> list[dict[str, str]]:
    """Check a conversation and flatten each message's content to one string.

    `developer` becomes `system`; text parts are joined with nothing between; fields that no template reads are dropped.

    Raises:
        InvalidRequest, MissingField, Unsupported: with the place as `param`, such as `messages.0.content.1.type`.
    """
    if not isinstance(messages, list | tuple):
        raise InvalidRequest(f"messages must be an array of messages, not {_kind(messages)}", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty; at least one message is needed", param="messages")
    return [_message(message, f"messages.{i}") for i, message in enumerate(messages)]


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{place} must be an object with role and content, not {_kind(message)}", param=place)
    for name in NOT_YET:
        if message.get(name):
            raise Unsupported(f"{place}.{name} is not supported yet; send text content only", param=f"{place}.{name}")
    checked = {"role": _role(message, f"{place}.role"), "content": _content(message, f"{place}.content")}
    for name in PASSED_ON:
        value = message.get(name)
        if value is not None:
            checked[name] = _string(value, f"{place}.{name}")
    return checked


def _role(message: Mapping[str, Any], place: str) -> str:
    if "role" not in message:
        raise MissingField(f"{place} is missing; it must be one of {', '.join(ROLES)}", param=place)
    role = message["role"]
    if role not in ROLES:
        raise InvalidRequest(f"{place}={role!r} must be one of {', '.join(ROLES)}", param=place)
    return "system" if role == "developer" else str(role)


def _content(message: Mapping[str, Any], place: str) -> str:
    if "content" not in message:
        raise MissingField(f"{place} is missing; it must be a string or an array of text parts", param=place)
    content = message["content"]
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"{place} must be a string or an array of text parts, not {_kind(content)}", param=place)
    if not content:
        raise InvalidRequest(f"{place} is an empty array; at least one part is needed", param=place)
    return "".join(_part(part, f"{place}.{j}") for j, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if not isinstance(part, Mapping):
        raise InvalidRequest(f"{place} must be an object with a type, not {_kind(part)}", param=place)
    if "type" not in part:
        raise MissingField(f"{place}.type is missing; it must be 'text'", param=f"{place}.type")
    if part["type"] != "text":
        raise Unsupported(
            f"{place}.type={part['type']!r} is not supported by this model; only 'text' is", param=f"{place}.type"
        )
    if "text" not in part:
        raise MissingField(f"{place}.text is missing", param=f"{place}.text")
    return _string(part["text"], f"{place}.text")


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{place} must be a string, not {_kind(value)}", param=place)
    return value


def _kind(value: Any) -> str:
    """What JSON calls the kind of this value."""
    if isinstance(value, bool):
        return "a boolean"
    names: Sequence[tuple[type | tuple[type, ...], str]] = (
        (str, "a string"), ((int, float), "a number"), ((list, tuple), "an array"), (Mapping, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")
