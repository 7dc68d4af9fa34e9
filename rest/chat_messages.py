"""A conversation as the client wrote it, into one that a chat template can render: roles and plain text.

What the text model cannot take in (images, sound, tool calls) is refused by the place where it stands.
"""

from __future__ import annotations

from typing import Any

from braid.errors import InvalidRequest, MissingField, Unsupported
from braid.rest.body import type_name
from braid.rest.errors import InvalidType

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The client's role to the template's: templates do not know OpenAI's newer name of `system`."""

TOOL_ROLES = ("tool", "function")
TOOL_FIELDS = ("tool_calls", "function_call")


def template_messages(messages: object) -> list[dict[str, Any]]:
    """Check a conversation; text parts are joined by newlines.

    Raises:
        BraidError: naming the message and the part, as in `messages.2.content.0`.
    """
    if messages is None:
        raise MissingField("messages is missing; send at least one message", param="messages")
    if not isinstance(messages, list):
        raise InvalidType(f"messages must be an array, not {type_name(messages)}", param="messages")
    if not messages:
        raise InvalidRequest("messages is empty; send at least one message", param="messages")
    return [_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _message(message: object, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidType(f"{place} must be an object, not {type_name(message)}", param=place)
    role = _role(message, place)
    for name in TOOL_FIELDS:
        if message.get(name):
            raise Unsupported(f"{place}.{name}: tool calls are not supported yet", param=f"{place}.{name}")
    content = _content(message, place)
    extra = {key: value for key, value in message.items() if key not in TOOL_FIELDS and value is not None}
    return {**extra, "role": role, "content": content}


def _role(message: dict[str, Any], place: str) -> str:
    role = message.get("role")
    if role is None:
        raise MissingField(f"{place}.role is missing; it is one of {', '.join(ROLES)}", param=f"{place}.role")
    if not isinstance(role, str):
        raise InvalidType(f"{place}.role must be a string, not {type_name(role)}", param=f"{place}.role")
    if role in TOOL_ROLES:
        raise Unsupported(f"{place}.role={role!r}: tools are not supported yet", param=f"{place}.role")
    if role not in ROLES:
        message_text = f"{place}.role={role[:100]!r} must be one of {', '.join(ROLES)}"
        raise InvalidRequest(message_text, param=f"{place}.role")
    return ROLES[role]


def _content(message: dict[str, Any], place: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part(part, f"{place}.content.{index}") for index, part in enumerate(content))
    if content is None:
        raise MissingField(f"{place}.content is missing; it is a string or an array of parts", param=f"{place}.content")
    text = f"{place}.content must be a string or an array of parts, not {type_name(content)}"
    raise InvalidType(text, param=f"{place}.content")


def _part(part: object, place: str) -> str:
    if not isinstance(part, dict):
        raise InvalidType(f"{place} must be an object with a type, not {type_name(part)}", param=place)
    kind = part.get("type")
    if kind is None:
        raise MissingField(f"{place}.type is missing; it is 'text'", param=f"{place}.type")
    if kind != "text":
        raise Unsupported(f"{place}: parts of type {str(kind)[:100]!r} are not supported yet, only text", param=place)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidType(f"{place}.text must be a string, not {type_name(text)}", param=f"{place}.text")
    return text
