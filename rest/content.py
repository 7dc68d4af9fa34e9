"""A published file as a response: whole or a range of it, with its digest as its tag. It is read as it is sent."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from braid.diffusion.jobs.records import StoredFile
from braid.errors import InvalidRequest, NotFound

CHUNK_BYTES = 256 << 10
MEDIA_TYPES = {
    ".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg", ".gif": "image/gif", ".wav": "audio/wav",
}  # fmt: skip
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class RangeNotSatisfiable(InvalidRequest):
    """The range begins behind the end."""

    status = 416
    code = "range_not_satisfiable"

    def __init__(self, message: str, *, num_bytes: int) -> None:
        super().__init__(message)
        self.headers = {"content-range": f"bytes */{num_bytes}"}


async def file_response(request: Request, path: Path, stored: StoredFile, *, download_name: str) -> Response:
    """The answer to GET or HEAD.

    Raises:
        NotFound: the file is gone: its job was deleted just now.
        RangeNotSatisfiable: the range has nothing of it.
    """
    suffix = path.suffix.lower()
    tag = f'"{stored.sha256}"'
    headers = {
        "etag": tag,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-type": MEDIA_TYPES.get(suffix, "application/octet-stream"),
        "content-disposition": f'inline; filename="{download_name}{suffix}"',
        "x-content-type-options": "nosniff",
    }
    if _names(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    window = _window(request, stored.num_bytes, tag)
    if window is not None:
        headers["content-range"] = f"bytes {window[0]}-{window[1] - 1}/{stored.num_bytes}"
    first, end = window or (0, stored.num_bytes)
    headers["content-length"] = str(end - first)
    status = 200 if window is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    try:
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {stored.name!r} any more: its job was deleted") from None
    return _FileBody(descriptor, first, end, status, headers)


def _names(header: str, tag: str) -> bool:
    tags = {part.strip().removeprefix("W/") for part in header.split(",")}
    return tag in tags or "*" in tags


def _window(request: Request, num_bytes: int, tag: str) -> tuple[int, int] | None:
    """(first, end) of one range; None is everything: no range, several, or one of another version of the file."""
    if_range = request.headers.get("if-range")
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or (if_range is not None and if_range != tag) or match[1] == match[2] == "":
        return None
    if match[1] == "":  # the last so many
        first, end = max(0, num_bytes - int(match[2])), num_bytes
    else:
        first = int(match[1])
        end = min(num_bytes, int(match[2]) + 1) if match[2] else num_bytes
        if match[2] and int(match[2]) < first:
            return None  # no range at all, says RFC 9110
    if first >= end:
        raise RangeNotSatisfiable(f"the file has {num_bytes:,} bytes; none is in {match[0]}", num_bytes=num_bytes)
    return first, end


class _FileBody(Response):
    """Reads an open file while it is sent; deleting the file meanwhile does no harm."""

    def __init__(self, descriptor: int, first: int, end: int, status: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status, headers=headers)
        self._descriptor = descriptor
        self._first = first
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            place = self._first
            while place < self._end:
                data = await asyncio.to_thread(os.pread, self._descriptor, min(CHUNK_BYTES, self._end - place), place)
                if not data:
                    raise OSError(f"the file ends at {place}, before {self._end}")
                place += len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            os.close(self._descriptor)
