"""The page that people meet at `/`: the files of the folder `page`, as they are; there is no build step.

Everything but the page itself has a URL that holds the digest of all files, so a browser keeps it for ever and an
upgrade changes every URL at once; modules import each other by relative paths and stay in one version.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

from braid.errors import BraidError

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
VERSION_MARK = b"{version}"
"""Stands in the page where the digest goes."""

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "media-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # text can become neither markup nor code, whatever a module does
    "trusted-types 'none'",
))  # fmt: skip

PAGE_HEADERS = {"content-security-policy": CONTENT_SECURITY_POLICY}
"""Stricter than what `security_headers` puts on every response; browsers apply both."""

FOR_EVER = "public, max-age=31536000, immutable"
ASK_EACH_TIME = "no-cache"
"""The page itself: it names the version of all else."""


class PageFileNotFound(BraidError):
    """The page has no such file, or is of another version by now."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, ready to be sent."""

    media_type: str
    etag: str
    body: bytes
    gzipped: bytes

    @classmethod
    def of(cls, name: str, body: bytes) -> PageFile:
        """Compressed once, the same way each time."""
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return cls(MEDIA_TYPES[Path(name).suffix], etag, body, gzip.compress(body, mtime=0))


class WebPage:
    """The files of a folder, read when the first browser comes."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder

    @cached_property
    def version(self) -> str:
        """The digest of all names and contents."""
        digest = hashlib.sha256()
        for name, body in self._sources.items():
            digest.update(f"{name}\0{len(body)}\0".encode() + body)
        return digest.hexdigest()[:16]

    @cached_property
    def index(self) -> PageFile:
        """The page, with the URLs of this version in it."""
        return PageFile.of(INDEX, self._sources[INDEX].replace(VERSION_MARK, self.version.encode()))

    def file(self, version: str, path: str) -> PageFile:
        """Raises: PageFileNotFound."""
        if version != self.version or path not in self._files:
            raise PageFileNotFound(f"the page has no file {version[:40]}/{path[:200]}; reload it")
        return self._files[path]

    @cached_property
    def _sources(self) -> dict[str, bytes]:
        paths = sorted(path for path in self._folder.rglob("*") if path.suffix in MEDIA_TYPES)
        return {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in paths}

    @cached_property
    def _files(self) -> dict[str, PageFile]:
        return {name: PageFile.of(name, body) for name, body in self._sources.items() if name != INDEX}


async def index(request: Request) -> Response:
    """`GET /`."""
    page: WebPage = request.app.state.page
    return answer_file(request, page.index, cache_control=ASK_EACH_TIME, headers=PAGE_HEADERS)


async def page_file(request: Request) -> Response:
    """`GET /page/{version}/{path}`: a style, a module, the icon."""
    page: WebPage = request.app.state.page
    found = page.file(request.path_params["version"], request.path_params["path"])
    return answer_file(request, found, cache_control=FOR_EVER, headers={})


def answer_file(request: Request, file: PageFile, *, cache_control: str, headers: dict[str, str]) -> Response:
    """A file of a page, as the browser wants it: not at all if it has it, zipped if it can unzip."""
    headers = {
        **headers,
        "etag": file.etag,
        "cache-control": cache_control,
        "vary": "accept-encoding",
    }
    if _is_known(file.etag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    if accepts_gzip(request.headers.get("accept-encoding", "")):
        return Response(file.gzipped, headers=headers | {"content-encoding": "gzip"}, media_type=file.media_type)
    return Response(file.body, headers=headers, media_type=file.media_type)


def _is_known(etag: str, if_none_match: str) -> bool:
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in known or "*" in known


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an `accept-encoding` header names gzip, and not with `q=0`."""
    for item in accept_encoding.lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "").rstrip("0") not in ("q=", "q=0.")
    return False
