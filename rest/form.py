"""The body of a media request: JSON or multipart, as one flat dict of fields.

The forms of OpenAI's client are undone here: `guidance[video][guidance_scale]` is a nested object, `sigmas[]` a list,
and `extra_body` holds more fields as JSON. In a form all values are text; `media_fields` knows what they should be.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from braid.errors import InvalidRequest, RequestCancelled
from braid.rest.body import read_json, type_name
from braid.rest.errors import BodyTooLarge, InvalidJson, InvalidType, UnsupportedMediaType

MAX_PARTS = 256
EXTRA = "extra_body"
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_KEY = re.compile(r"(?P<name>[^\[\]]+)(?P<path>(\[[^\[\]]*\])*)")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form."""

    filename: str
    data: bytes


@dataclass(frozen=True, slots=True)
class MediaBody:
    """The fields of a request: JSON's values; in a form text, uploads, and what was nested by brackets."""

    fields: dict[str, Any]
    is_form: bool = False


async def read_media_body(request: Request, *, limit_bytes: int) -> MediaBody:
    """Read the body.

    Raises:
        UnsupportedMediaType: neither JSON nor multipart.
        BodyTooLarge: longer than `limit_bytes`; found out before it is all read.
        InvalidJson, InvalidForm, InvalidType: it cannot be read.
        RequestCancelled: the client left while sending.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        items = await _parts(request, limit_bytes)
        return MediaBody(_with_extra(_fields(items)), is_form=True)
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMediaType(
            f"content-type {content_type[:100]!r} is not read here; send application/json or multipart/form-data"
        )
    return MediaBody(_with_extra(await read_json(request, limit_bytes=limit_bytes)))


class InvalidForm(InvalidRequest):
    """The body is no multipart form."""

    code = "invalid_form"


class _FormParser(MultiPartParser):
    """Knows whether it has met the end of a form. Starlette leaves out a part that is cut off, and says nothing."""

    is_whole = False

    def on_end(self) -> None:
        """Called at the last boundary."""
        self.is_whole = True


async def _parts(request: Request, limit_bytes: int) -> list[tuple[str, str | Upload]]:
    parser = _FormParser(
        request.headers,
        _bounded(request, limit_bytes),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=limit_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidForm(f"the multipart form cannot be read: {error.message}") from None
    except (UnicodeError, ValueError) as error:
        raise InvalidForm(f"the multipart form cannot be read: {error}") from None
    except ClientDisconnect:
        raise RequestCancelled("the client left before the body was complete") from None
    try:
        if not parser.is_whole:
            raise InvalidForm("the multipart form is cut off: its last boundary is missing")
        return [(name, await _value(value)) for name, value in form.multi_items()]
    finally:
        await form.close()


async def _value(value: str | UploadFile) -> str | Upload:
    return value if isinstance(value, str) else Upload(value.filename or "", await value.read())


async def _bounded(request: Request, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    num_bytes = 0
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(f"the body has {int(declared):,} bytes; at most {limit_bytes:,} are read")
    async for piece in request.stream():
        num_bytes += len(piece)
        if num_bytes > limit_bytes:
            raise BodyTooLarge(f"the body has more than {limit_bytes:,} bytes, the most that are read")
        yield piece


# -- what brackets say -------------------------------------------------------------------------------------------------


def _fields(items: list[tuple[str, str | Upload]]) -> dict[str, Any]:
    """Raises:
    InvalidForm: a key is no key, or a field was given twice.
    """
    plain: dict[str, Any] = {}
    nested: dict[str, list[tuple[list[str], str | Upload]]] = {}
    for key, value in items:
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidForm(f"the form has a field {key[:100]!r}; write name, name[] or name[key]")
        name, path = match["name"], _BRACKETS.findall(match["path"])
        if path:
            nested.setdefault(name, []).append((path, value))
        elif name in plain:
            raise InvalidForm(f"{name} is given twice; send a list as {name}[] or as JSON", param=name)
        else:
            plain[name] = value
    for name, entries in nested.items():
        if name in plain:
            raise InvalidForm(f"{name} is given both plainly and in brackets; choose one", param=name)
        plain[name] = _nested(name, entries)
    return plain


def _nested(name: str, entries: list[tuple[list[str], str | Upload]]) -> Any:
    """`[]` is a list, `[key]` an object, `[][key]` a list of objects."""
    heads = {path[0] == "" for path, _ in entries}
    if heads == {True, False}:
        raise InvalidForm(f"{name} has both {name}[] and {name}[key]; send it as JSON: {name}='...'", param=name)
    if heads == {False}:
        return _object(name, entries)
    if all(len(path) == 1 for path, _ in entries):
        return [_leaf(value) for _, value in entries]
    return _list_of_objects(name, entries)


def _object(name: str, entries: list[tuple[list[str], str | Upload]]) -> dict[str, Any]:
    inner: dict[str, list[tuple[list[str], str | Upload]]] = {}
    for (head, *rest), value in entries:
        inner.setdefault(head, []).append((rest, value))
    return {key: _inner(f"{name}[{key}]", some) for key, some in inner.items()}


def _inner(name: str, entries: list[tuple[list[str], str | Upload]]) -> Any:
    if any(path for path, _ in entries):
        if not all(path for path, _ in entries):
            raise InvalidForm(f"{name} is both a value and an object", param=name)
        return _nested(name, entries)
    if len(entries) > 1:
        raise InvalidForm(f"{name} is given twice; send a list as {name}[]", param=name)
    return _leaf(entries[0][1])


def _list_of_objects(name: str, entries: list[tuple[list[str], str | Upload]]) -> list[dict[str, Any]]:
    """The client writes each key of each object one after the other. Which value belongs to which object is lost where
    one of them lacks a key, and then there is no guessing. (Every list here has a key that each object must have: equal
    counts mean that none lacks any.)
    """
    columns: dict[str, list[Any]] = {}
    for path, value in entries:
        if len(path) != 2:
            raise InvalidForm(f"{name}{''.join(f'[{part}]' for part in path)}: send it as JSON", param=name)
        columns.setdefault(path[1], []).append(_leaf(value))
    counts = {len(values) for values in columns.values()}
    if len(counts) > 1:
        told = ", ".join(f"{len(values)} of {name}[][{key}]" for key, values in columns.items())
        raise InvalidForm(
            f"there are {told}: which belong together is lost in a form; send {name} as a JSON string", param=name
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _leaf(value: str | Upload) -> Any:
    """Numbers and booleans in brackets have no field to say what they are; they look like JSON."""
    if isinstance(value, Upload):
        return value
    try:
        read = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError):
        return value
    return read if isinstance(read, bool | int | float) else value


def _with_extra(fields: dict[str, Any]) -> dict[str, Any]:
    """Raises:
    InvalidJson, InvalidType, InvalidForm: `extra_body` is no object, or says again what is said beside it.
    """
    extra = fields.pop(EXTRA, None)
    if extra is None:
        return fields
    if isinstance(extra, str):
        extra = decode_field(EXTRA, extra)
    if not isinstance(extra, dict):
        raise InvalidType(f"{EXTRA} must be a JSON object, not {type_name(extra)}", param=EXTRA)
    for name in extra:
        if name in fields:
            raise InvalidForm(f"{name} is given both plainly and in {EXTRA}; choose one", param=name)
    return fields | extra


def decode_field(name: str, text: str) -> Any:
    """Raises: InvalidJson: a form's field that holds JSON does not."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidJson(f"{name} is not valid JSON: {error}", param=name) from None
