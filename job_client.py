"""A running server's jobs, asked for over HTTP with the standard library: what `braid jobs` needs, and no more."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from braid.errors import BraidError, InvalidRequest
from braid.multimodal.atomic_file import AtomicFile

URLS = {"video": "/v1/videos", "image": "/v1/images", "audio": "/v1/audio"}
"""Of one job, by the kind that its id begins with."""
LIST_URLS = URLS | {"audio": "/v1/audio/generations"}
TIMEOUT_S = 60.0
"""Without a word from the server; a stream of events says something every 15 s."""


class ServerRefused(BraidError):
    """The server answered with an error, or not at all."""

    code = "server_refused"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One server-sent event: `progress`, `preview`, `done` or `error`."""

    name: str
    data: dict[str, Any]


class JobClient:
    """The jobs of one server.

    Args:
        server: its address, such as `http://127.0.0.1:8000`.
        api_key: None where it wants none.
    Raises:
        InvalidRequest: that is no http(s) address.
    """

    def __init__(self, server: str, api_key: str | None = None) -> None:
        if urllib.parse.urlsplit(server).scheme not in ("http", "https"):
            raise InvalidRequest(f"server={server!r} must begin with http:// or https://", param="server")
        self._server = server.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    def newest(self, kind: str, limit: int) -> list[dict[str, Any]]:
        """The newest jobs of a kind, newest first; `limit` is 100 at most."""
        query = urllib.parse.urlencode({"limit": limit})
        jobs: list[dict[str, Any]] = self._json("GET", f"{LIST_URLS[kind]}?{query}")["data"]
        return jobs

    def get(self, job_id: str) -> dict[str, Any]:
        """One job."""
        return self._json("GET", url_of(job_id))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End a job; gives it as it is then."""
        return self._json("POST", f"{url_of(job_id)}/cancel")

    def save(self, job_id: str, path: Path, variant: str | None = None) -> None:
        """Write a file of a finished job, whole or not at all."""
        query = "" if variant is None else f"?{urllib.parse.urlencode({'variant': variant})}"
        answer = self._open("GET", f"{url_of(job_id)}/content{query}")
        with answer, AtomicFile(path) as unfinished, unfinished.open("wb") as file:
            shutil.copyfileobj(answer, file)

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """What happens to a job, until it ends."""
        with self._open("GET", f"{url_of(job_id)}/events") as answer:
            yield from _events(answer)

    def _json(self, method: str, url: str) -> dict[str, Any]:
        with self._open(method, url) as answer:
            body: dict[str, Any] = json.load(answer)
        return body

    def _open(self, method: str, url: str) -> HTTPResponse:
        request = urllib.request.Request(self._server + url, method=method, headers=self._headers)
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise ServerRefused(_message(error)) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServerRefused(f"{self._server} does not answer ({reason}); is `braid serve` running?") from None
        return answer


def url_of(job_id: str) -> str:
    """Where a job is found.

    Raises:
        InvalidRequest: this is no id of a job.
    """
    kind, underscore, rest = job_id.partition("_")
    if kind not in URLS or not underscore or not rest.isalnum():
        raise InvalidRequest(f"{job_id!r} is no id of a job, such as video_5f0c...; see `braid jobs list`", param="id")
    return f"{URLS[kind]}/{job_id}"


def _message(error: urllib.error.HTTPError) -> str:
    """What the server said, in OpenAI's form or otherwise."""
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"


def _events(answer: HTTPResponse) -> Iterator[JobEvent]:
    name, data = "message", ""
    for line in answer:
        text = line.decode().rstrip("\r\n")
        field, _, value = text.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not text and data:
            yield JobEvent(name, json.loads(data))
            name, data = "message", ""
