"""Pictures, films and sounds that a request names by URL. Off unless the server's owner turned it on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urljoin

from braid.errors import Unsupported
from braid.rest.guarded_http import (
    GuardedClient,
    Limits,
    RemoteAnswer,
    RemoteRequestFailed,
    RemoteUrl,
    RemoteUrlRefused,
    parse_url,
)

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
UNTYPED = ("application/octet-stream", "binary/octet-stream")
"""What file stores say of what they do not know. The decoders look at the bytes anyway."""
_NO_PIXELS = "image/svg+xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFileLimits:
    """What fetching may take."""

    max_bytes: int = 64 << 20
    timeout_s: float = 30.0
    """For a file, with all its redirects."""
    max_concurrent: int = 4
    """Of all requests together; more wait in line."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What a URL led to."""

    data: bytes
    content_type: str
    """Without parameters; empty where the other server said nothing."""
    url: str
    """The last one, after redirects."""


class RemoteFiles:
    """Fetches files by URL.

    Args:
        client: None refuses every URL.
    """

    def __init__(self, client: GuardedClient | None = None, limits: RemoteFileLimits | None = None) -> None:
        self._client = client
        self._limits = limits or RemoteFileLimits()
        self._turns = asyncio.Semaphore(self._limits.max_concurrent)

    @property
    def is_allowed(self) -> bool:
        """Whether URLs are fetched at all."""
        return self._client is not None

    async def fetch(self, url: str, *, kind: str, param: str, max_bytes: int | None = None) -> RemoteFile:
        """The file behind a URL.

        Args:
            kind: `image`, `video` or `audio`: what the other server must say that it is, if it says anything.
            param: the request's field, for errors.
            max_bytes: less than the server's own limit.
        Raises:
            Unsupported: remote URLs are turned off.
            RemoteUrlRefused: the URL, or one that it redirects to, is not on the public web.
            RemoteRequestFailed: it gave no such file within the limits.
        """
        if self._client is None:
            message = f"{param}: this server fetches no URLs (--allow-remote-urls); send the file itself, or base64"
            raise Unsupported(message, param=param)
        try:
            first = parse_url(url)
            async with self._turns, asyncio.timeout(self._limits.timeout_s):
                return await self._follow(self._client, first, kind, max_bytes)
        except TimeoutError:
            message = f"{param}: the file did not come within {self._limits.timeout_s:g} s"
            raise RemoteRequestFailed(message, param=param) from None
        except (RemoteUrlRefused, RemoteRequestFailed) as error:
            raise type(error)(f"{param}: {error.message}", param=param) from None

    async def _follow(self, client: GuardedClient, url: RemoteUrl, kind: str, max_bytes: int | None) -> RemoteFile:
        limit = self._limits.max_bytes if max_bytes is None else min(max_bytes, self._limits.max_bytes)
        limits = Limits(max_bytes=limit, timeout_s=self._limits.timeout_s)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await client.request(
                "GET", url, limits=limits, headers={"accept": f"{kind}/*"}, check_head=lambda head: _check(head, kind)
            )
            if answer.status not in _REDIRECTS:
                return RemoteFile(answer.body, _content_type(answer), url.text)
            url = _next(url, answer)
        raise RemoteRequestFailed(f"more than {MAX_REDIRECTS} redirects")


def _next(url: RemoteUrl, answer: RemoteAnswer) -> RemoteUrl:
    """Raises:
    RemoteUrlRefused: the redirect leads to what would be refused from the start, or from https to http.
    """
    target = parse_url(urljoin(url.text, answer.headers.get("location", "")))
    if url.scheme == "https" and target.scheme == "http":
        raise RemoteUrlRefused(f"{url.host} redirects from https to http")
    return target


def _check(answer: RemoteAnswer, kind: str) -> None:
    """Raises:
    RemoteRequestFailed: the head says that no such file follows.
    """
    if answer.status in _REDIRECTS:
        return
    if answer.status != 200:
        raise RemoteRequestFailed(f"the other server answered with status {answer.status}, not 200")
    found = _content_type(answer)
    is_kind = found.startswith(f"{kind}/") and found != _NO_PIXELS
    if found and not is_kind and found not in UNTYPED:
        raise RemoteRequestFailed(f"the other server says that it is {found[:100]!r}, not {kind}/*")


def _content_type(answer: RemoteAnswer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()
