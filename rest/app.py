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
from starlette.routing import BaseRoute, Route

from braid.errors import BraidError
from braid.rest import page as web_page
from braid.rest import timeline
from braid.rest.access import Access
from braid.rest.body import UnknownFields
from braid.rest.errors import error_response, from_router
from braid.rest.http_traces import HttpTraces
from braid.rest.identity import IdentifyRequests
from braid.rest.jobs import JobDesk
from braid.rest.metrics import HttpMetrics
from braid.rest.openapi import openapi
from braid.rest.operations import OPERATIONS, Endpoint
from braid.rest.protection import protect
from braid.rest.remote_files import RemoteFiles
from braid.rest.request_owners import RequestOwners
from braid.rest.traces import TraceRequests
from braid.rest.webhooks import Webhooks
from braid.rest.wire_messages import MediaEngine

logger = logging.getLogger("braid.rest")

DEFAULT_MAX_BODY_BYTES = 16 << 20
DEFAULT_MAX_UPLOAD_BYTES = 256 << 20


def create_app(
    engine: MediaEngine,
    *,
    desk: JobDesk | None = None,
    access: Access | None = None,
    remote_files: RemoteFiles | None = None,
    webhooks: Webhooks | None = None,
    traces: HttpTraces | None = None,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES,
) -> FastAPI:
    """The ASGI app of an engine; who made the engine and the desk closes them.

    Args:
        desk: where jobs are kept; without one, nothing that is a job can be asked for.
        access: who may ask; None asks nobody for a key, and serves known hosts and our own page only.
        remote_files: gets what requests name by URL; None refuses that.
        webhooks: tell the ends of jobs; None refuses requests for that.
        traces: where spans are kept; None keeps those of HTTP.
        max_body_bytes: of a request for text.
        max_upload_bytes: of a request for media, with all its files.
    """
    app = FastAPI(
        title="Braid",
        routes=_routes(),
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={BraidError: _braid_error, HTTPException: _router_error},
    )
    protect(app, access or Access())
    traces, metrics = traces or HttpTraces({}), HttpMetrics()
    app.add_middleware(
        TraceRequests,
        give_away=traces.give_away,
        responded=metrics.responded,
        sampling=traces.sampling,
        begin=traces.store.begin,
    )
    app.add_middleware(IdentifyRequests)
    app.state.traces = traces.store
    app.state.metrics = metrics
    app.state.engine = engine
    app.state.desk = desk
    if desk is not None:
        desk.on_ended = metrics.job_ended
        desk.give_span = traces.give_one
    app.state.remote_files = remote_files or RemoteFiles()
    app.state.webhooks = webhooks
    app.state.max_body_bytes = max_body_bytes
    app.state.max_upload_bytes = max_upload_bytes
    app.state.unknown_fields = UnknownFields()
    app.state.request_owners = RequestOwners()
    app.state.page = web_page.WebPage()
    app.state.timeline_page = web_page.WebPage(timeline.FOLDER)
    app.state.created = int(time.time())
    return app


def _routes() -> list[BaseRoute]:
    """One for each path, so that a wrong method is told all that are right; general paths come last."""
    endpoints: dict[str, dict[str, tuple[str, Endpoint]]] = {
        "/": {"GET": ("page", web_page.index)},
        "/page/{version}/{path:path}": {"GET": ("page_file", web_page.page_file)},
        "/timeline": {"GET": ("timeline_page", timeline.timeline_page)},
        "/trace/{id}": {"GET": ("trace_page", timeline.timeline_page)},
        "/timeline/files/{version}/{path:path}": {"GET": ("timeline_file", timeline.timeline_file)},
        "/openapi.json": {"GET": ("openapi", openapi)},
    }
    for operation in OPERATIONS:
        endpoints.setdefault(operation.path, {})[operation.method] = operation.name, operation.endpoint
    paths = sorted(endpoints, key=lambda path: "{" in path)
    return [_route(path, endpoints[path]) for path in paths]


def _route(path: str, by_method: dict[str, tuple[str, Endpoint]]) -> Route:
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await by_method[method][1](request)

    name = by_method.get("GET", next(iter(by_method.values())))[0]
    return Route(path, endpoint, methods=list(by_method), name=name)


async def _braid_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BraidError)
    return error_response(error)


async def _router_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {}
    if error.headers and "Allow" in error.headers:  # the router has them in no order
        allowed = ", ".join(sorted(error.headers["Allow"].split(", ")))
        headers = {"allow": allowed}
        error = HTTPException(error.status_code, error.detail, {"Allow": allowed})
    return error_response(from_router(error, method=request.method, path=request.url.path), headers=headers)
