"""Pages of other sites that may use the server: none, unless they are named when it is started."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from braid.errors import InvalidRequest

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")
METHODS = ("GET", "POST", "DELETE")
EXPOSED = ("x-request-id", "retry-after", "openai-poll-after-ms", "etag", "content-disposition")
"""Headers of ours that scripts of those pages may read."""
_REMEMBERED_S = 600


def check_origins(origins: Sequence[str], *, has_keys: bool) -> None:
    """Raises:
    InvalidRequest: an origin is not one; `*` where nobody is asked for a key.
    """
    for origin in origins:
        if origin == "*":
            if not has_keys:
                raise InvalidRequest(
                    "--cors-origin '*' would let every web page use a server that asks nobody for a key; "
                    "name the origins, or give it --api-keys",
                    param="cors_origin",
                )
        elif not _ORIGIN.fullmatch(origin):
            raise InvalidRequest(
                f"--cors-origin {origin[:100]!r} must be as browsers send it: https://name or http://name:port, small "
                "letters and no path",
                param="cors_origin",
            )


def add_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Answer preflight requests of these origins, and let their scripts read what is answered.

    Credentials stay off: keys are sent by scripts, and there are no cookies.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=list(METHODS),
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
            max_age=_REMEMBERED_S,
        )
