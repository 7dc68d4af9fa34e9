"""Pages of other sites that may use the server: none, unless they are named when it is started."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

METHODS = ("GET", "POST", "DELETE")
EXPOSED = ("x-request-id", "retry-after", "openai-poll-after-ms", "etag", "content-disposition")
"""Headers of ours that scripts of those pages may read."""
_REMEMBERED_S = 600


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
