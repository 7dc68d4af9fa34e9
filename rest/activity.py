"""`GET /v1/activity`: what the device did in the last seconds, for the page's strip."""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import Response

from braid.diffusion.jobs.messages import Activity, ActivityRequest
from braid.rest.ask import ask
from braid.rest.field_kinds import NUMBER, ranged
from braid.rest.health import ANSWER_TIMEOUT_S
from braid.rest.job_routes import json_response, read_query
from braid.rest.media_fields import Field, Table

MAX_SECONDS = 60
QUERY: Table = (Field("seconds", ranged(NUMBER, 0, MAX_SECONDS), "how far back; 2 if left out"),)


async def activity(request: Request) -> Response:
    """The steps that ended in the last seconds, oldest first.

    Raises:
        BraidError: there is no engine now.
    """
    seconds = float(read_query(request, QUERY).get("seconds", 2.0))
    question = ActivityRequest(id=f"activity-{secrets.token_hex(8)}", seconds=seconds)
    answer = await ask(request.app.state.engine, question, timeout_s=ANSWER_TIMEOUT_S)
    assert isinstance(answer, Activity), answer
    return json_response({"object": "activity", "now_s": answer.now_s, "steps": answer.steps})
