"""Reading a JSON body: its content type, its size, its syntax and the types of its fields.

It knows no field; what is wrong is said with the field's name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from braid.errors import MissingField, RequestCancelled
from braid.rest.errors import BodyTooLarge, InvalidJson, InvalidType, UnsupportedMediaType

logger = logging.getLogger("braid.rest")

T = TypeVar("T", bound=msgspec.Struct)

MAX_REMEMBERED_FIELDS = 256
"""A client that invents names must not fill the memory of `UnknownFields`."""

_INDEX = re.compile(r"\[(\d+)\]")
_PLACE = re.compile(r" - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`$")


class UnknownFields:
    """Logs each field that no request type knows once: OpenAI's API grows faster than its copies."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def notice(self, body: Mapping[str, Any], known: frozenset[str], *, url: str) -> None:
        """Log the fields of `body` that are not in `known` and were not logged before."""
        new = [name for name in body if name not in known and name not in self._seen]
        for name in new[: MAX_REMEMBERED_FIELDS - len(self._seen)]:
            self._seen.add(name)
            logger.warning("%s: the field %.100r is not known here and is ignored", url, name)


async def read_json(request: Request, *, limit_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        BodyTooLarge: longer than `limit_bytes`; found out before it is all read.
        InvalidJson: not JSON, or not an object.
        RequestCancelled: the client left while sending.
    """
    _check_content_type(request.headers.get("content-type", ""))
    raw = await _read_body(request, limit_bytes)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidJson("the body is not valid JSON: it is nested too deeply") from None
    if not isinstance(body, dict):
        raise InvalidType(f"the body must be a JSON object, not {type_name(body)}")
    return body


def convert(body: Mapping[str, Any], to: type[T]) -> T:
    """Check the types of a decoded object's fields.

    Raises:
        InvalidType: with the field's dotted name as `param`.
        MissingField: a required field is not there.
    """
    try:
        return msgspec.convert({name: _whole(value) for name, value in body.items()}, to, str_keys=True)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is 5."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def type_name(value: object) -> str:
    """What JSON calls the type of a decoded value."""
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


def _field_error(message: str) -> InvalidType | MissingField:
    place = _PLACE.search(message)
    path = _INDEX.sub(r".\1", place["path"]).replace("[...]", "") if place else ""
    text = message[: place.start()] if place else message
    missing = re.match(r"Object missing required field `(\w+)`", text)
    if missing:
        name = f"{path}.{missing[1]}" if path else missing[1]
        return MissingField(f"{name} is missing", param=name)
    text = text.replace("`", "").replace("Expected", "expected")
    return InvalidType(f"{path or 'the body'}: {text}", param=path or None)


def _check_content_type(value: str) -> None:
    media_type = value.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"content-type {value[:100]!r} is not read here; send application/json")


async def _read_body(request: Request, limit_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit_bytes:,} are read")
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        async for piece in request.stream():
            num_bytes += len(piece)
            if num_bytes > limit_bytes:
                raise BodyTooLarge(f"the body has more than {limit_bytes:,} bytes, the most that are read")
            pieces.append(piece)
    except ClientDisconnect:
        raise RequestCancelled("the client left before the body was complete") from None
    return b"".join(pieces)
