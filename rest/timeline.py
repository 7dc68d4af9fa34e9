"""The pages `/timeline` and `/trace/{id}`: what the device did, and where one request's time went.

One page serves both; it is plain files like the page at `/`, and reads `/v1/timeline` and `/v1/traces`.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.diffusion.jobs.messages import Activity, ActivityRequest
from braid.rest.ask import ask
from braid.rest.field_kinds import NUMBER, choice, ranged
from braid.rest.health import ANSWER_TIMEOUT_S
from braid.rest.job_routes import read_query
from braid.rest.media_fields import Field, Table
from braid.rest.page import ASK_EACH_TIME, FOR_EVER, PAGE_HEADERS, PageFile, WebPage, answer_file
from braid.tracing.chrome_trace import chrome_steps

FOLDER = Path(__file__).parent / "timeline_page"
MAX_SECONDS = 300.0
QUERY: Table = (
    Field("seconds", ranged(NUMBER, 0, MAX_SECONDS), "how far back; 60 if left out"),
    Field("format", choice("chrome"), "`chrome` for Perfetto"),
)


async def timeline_page(request: Request) -> Response:
    """`GET /timeline` and `GET /trace/{id}`."""
    page: WebPage = request.app.state.timeline_page
    return answer_file(request, page.index, cache_control=ASK_EACH_TIME, headers=PAGE_HEADERS)


async def timeline_file(request: Request) -> Response:
    """`GET /timeline/files/{version}/{path}`."""
    page: WebPage = request.app.state.timeline_page
    found: PageFile = page.file(request.path_params["version"], request.path_params["path"])
    return answer_file(request, found, cache_control=FOR_EVER, headers={})


async def timeline(request: Request) -> Response:
    """`GET /v1/timeline?seconds=60`: every step that ended since, oldest first; `format=chrome` for Perfetto.

    Raises:
        BraidError: there is no engine now.
    """
    query = read_query(request, QUERY)
    question = ActivityRequest(id=f"timeline-{secrets.token_hex(8)}", seconds=float(query.get("seconds", 60.0)))
    found = await ask(request.app.state.engine, question, timeout_s=ANSWER_TIMEOUT_S)
    assert isinstance(found, Activity), found
    if query.get("format") == "chrome":
        headers = {"content-disposition": 'attachment; filename="timeline.json"'}
        return _json(chrome_steps(found.steps), headers=headers)
    return _json({"object": "timeline", "now_s": found.now_s, "steps": found.steps})


def _json(body: object, *, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")
