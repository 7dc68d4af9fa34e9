"""The HTTP face: routes over an `EngineHandle`.

It imports neither torch nor a model: the engine may live in another process, and HTTP must be up before it.
`engine.ready` may raise `NotReady`; every route that needs the engine then answers 503.
"""

from __future__ import annotations

import logging
import time

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from braid.errors import BraidError
from braid.llm_core.engine.handle import EngineHandle
from braid.rest.body import UnknownFields
from braid.rest.chat import chat_completions
from braid.rest.completions import completions
from braid.rest.errors import error_response, from_router
from braid.rest.health import health, ready, stats
from braid.rest.identity import IdentifyRequests
from braid.rest.models import get_model, list_models

logger = logging.getLogger("braid.rest")

DEFAULT_MAX_BODY_BYTES = 16 << 20

ROUTES = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", get_model),
    ("GET", "/health", health),
    ("GET", "/ready", ready),
    ("GET", "/stats", stats),
)


def create_app(engine: EngineHandle, *, max_body_bytes: int = DEFAULT_MAX_BODY_BYTES) -> FastAPI:
    """The ASGI app of an engine; who made the engine closes it."""
    app = FastAPI(
        title="Braid",
        routes=[Route(path, endpoint, methods=[method]) for method, path, endpoint in ROUTES],
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={BraidError: _braid_error, HTTPException: _router_error},
    )
    app.add_middleware(IdentifyRequests)
    app.state.engine = engine
    app.state.max_body_bytes = max_body_bytes
    app.state.unknown_fields = UnknownFields()
    app.state.created = int(time.time())
    return app


async def _braid_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BraidError)
    return error_response(error)


async def _router_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {"allow": error.headers["Allow"]} if error.headers and "Allow" in error.headers else None
    return error_response(from_router(error, method=request.method, path=request.url.path), headers=headers)
