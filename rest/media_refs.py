"""Pictures, clips and sounds in a request: uploads, data: URLs, base64, remote URLs, and what other jobs made.

`read_ref` says what a value means; `MediaInputs` gets the bytes and gives the words that the engine understands.
No path of this machine can be said.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from braid.diffusion.jobs.records import JobRecord
from braid.errors import InvalidRequest
from braid.rest.body import type_name
from braid.rest.errors import InvalidType
from braid.rest.form import Upload
from braid.rest.jobs import JobDesk
from braid.rest.remote_files import RemoteFiles

URL_KEYS = ("image_url", "video_url", "audio_url", "url")
JOB_KEYS = ("id", "file_id")
WORDS = "a file, a data: URL, base64, a URL, or {'id': 'video_...'}"
_JOB_ID = re.compile(r"(image|video|audio)_[0-9a-f]{32}")
_MAGIC = (
    (b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"fLaC", "flac"), (b"OggS", "ogg"),
    (b"ID3", "mp3"), (b"\x1a\x45\xdf\xa3", "webm"),
)  # fmt: skip
_RIFF = {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi"}
PUBLISHED = {
    ("image", "image"): "image", ("image", "video"): "first_frame",
    ("video", "video"): "video",
    ("audio", "audio"): "audio", ("audio", "video"): "audio",
}  # fmt: skip
"""(what is wanted, kind of the other job) to the file of that job."""


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Where something is; exactly one of the first three."""

    data: bytes | None = None
    url: str | None = None
    job_id: str | None = None


def read_ref(name: str, value: Any) -> MediaRef:
    """What a field's value means.

    Raises:
        InvalidRequest, InvalidType: nothing that we know.
    """
    if isinstance(value, Upload):
        return _bytes(name, value.data)
    if isinstance(value, str):
        return _text(name, value)
    if not isinstance(value, Mapping):
        raise InvalidType(f"{name} must be {WORDS}, not {type_name(value)}", param=name)
    keys = [key for key in value if value[key] is not None]
    if len(keys) != 1 or keys[0] not in (*URL_KEYS, *JOB_KEYS, "b64_json"):
        known = ", ".join((*URL_KEYS, *JOB_KEYS, "b64_json"))
        raise InvalidRequest(f"{name} must have exactly one of {known}; it has {', '.join(keys) or 'none'}", param=name)
    return _entry(f"{name}.{keys[0]}", keys[0], value[keys[0]])


def _entry(name: str, key: str, value: Any) -> MediaRef:
    if isinstance(value, Mapping) and "url" in value and key in URL_KEYS:  # as chat's parts have it
        name, value = f"{name}.url", value["url"]
    if not isinstance(value, str):
        raise InvalidType(f"{name} must be a string, not {type_name(value)}", param=name)
    if key in JOB_KEYS:
        if not _JOB_ID.fullmatch(value):
            raise InvalidRequest(f"{name}={value[:100]!r} must be the id of a job, such as video_...", param=name)
        return MediaRef(job_id=value)
    return _text(name, value) if key != "b64_json" else _bytes(name, _base64(name, value))


def _text(name: str, value: str) -> MediaRef:
    scheme = value[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return MediaRef(url=value)
    if scheme.startswith("data:"):
        return _bytes(name, _data_url(name, value))
    return _bytes(name, _base64(name, value))


def _data_url(name: str, value: str) -> bytes:
    head, comma, body = value[5:].partition(",")
    if not comma:
        raise InvalidRequest(f"{name}: a data: URL has a comma before its data", param=name)
    return _base64(name, body) if head.lower().endswith(";base64") else unquote_to_bytes(body)


def _base64(name: str, value: str) -> bytes:
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name} must be {WORDS}; it is no base64", param=name) from None


def _bytes(name: str, data: bytes) -> MediaRef:
    if not data:
        raise InvalidRequest(f"{name} is empty", param=name)
    return MediaRef(data=data)


class MediaInputs:
    """The inputs of one request.

    Args:
        owner: who asks; None may use everybody's jobs.
        remote: gets remote URLs, or says that nobody does.
    """

    def __init__(self, desk: JobDesk, owner: str | None, remote: RemoteFiles) -> None:
        self._desk = desk
        self._owner = owner
        self._remote = remote
        self.inputs: dict[str, bytes] = {}

    async def words(self, name: str, ref: MediaRef, wanted: str) -> dict[str, str]:
        """How the engine's params say it.

        Args:
            wanted: `image`, `video` or `audio`.
        Raises:
            Unsupported, RemoteUrlRefused, RemoteRequestFailed: see `RemoteFiles.fetch`.
            InvalidRequest, NotFound: another job that does not have it.
        """
        if ref.job_id is not None:
            return published(name, await self._desk.get(ref.job_id, owner=self._owner), wanted)
        data = ref.data
        if ref.url is not None:
            data = (await self._remote.fetch(ref.url, kind=wanted, param=name)).data
        assert data is not None
        return self.keep(name, data)

    def keep(self, name: str, data: bytes) -> dict[str, str]:
        """Take in bytes under a name of their own."""
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:50]
        file = f"{stem}.{suffix_of(data)}"
        assert file not in self.inputs, file
        self.inputs[file] = data
        return {"input": file}


def published(name: str, job: JobRecord, wanted: str) -> dict[str, str]:
    """The file of another job.

    Raises:
        InvalidRequest: it makes no such thing, or has not made it (yet).
    """
    file = PUBLISHED.get((wanted, job.kind))
    if file is None:
        raise InvalidRequest(f"{name}: job {job.id!r} makes {job.kind} and has no {wanted}", param=name)
    return published_file(name, job, file)


def published_file(name: str, job: JobRecord, file: str) -> dict[str, str]:
    """Raises: InvalidRequest: the job has no such file (yet)."""
    if job.named(file) is None:
        why = "it has none" if job.status == "completed" else f"it is {job.status}"
        raise InvalidRequest(f"{name}: there is no {file} of job {job.id!r}: {why}", param=name)
    return {"job": job.id, "file": file}


def suffix_of(data: bytes) -> str:
    """The usual suffix of what begins like this; the engine alone judges what it is."""
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "bin")
    if data[4:8] == b"ftyp":
        return "mp4"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), "bin")
