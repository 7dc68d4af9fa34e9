"""`GET /v1/activity`: what the device did in the last seconds, for the page's strip."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.diffusion.jobs.messages import Activity, ActivityRequest
from braid.errors import NotFound
from braid.rest.ask import ask
from braid.rest.field_kinds import NUMBER, ranged
from braid.rest.health import ANSWER_TIMEOUT_S
from braid.rest.job_routes import json_response, read_query, seer_of
from braid.rest.jobs import JobDesk
from braid.rest.media_fields import Field, Table

MAX_SECONDS = 60
QUERY: Table = (Field("seconds", ranged(NUMBER, 0, MAX_SECONDS), "how far back; 2 if left out"),)
JOB_KINDS = ("image_", "video_", "audio_")


async def activity(request: Request) -> Response:
    """The steps that ended in the last seconds, oldest first. A user's key sees of others' requests only that they are.

    Raises:
        BraidError: there is no engine now.
    """
    seconds = float(read_query(request, QUERY).get("seconds", 2.0))
    question = ActivityRequest(id=f"activity-{secrets.token_hex(8)}", seconds=seconds)
    answer = await ask(request.app.state.engine, question, timeout_s=ANSWER_TIMEOUT_S)
    assert isinstance(answer, Activity), answer
    steps, owner = list(answer.steps), seer_of(request)
    if owner is not None:
        roots = {_root(name) for step in steps for name in step["requests"]}
        own = {name for name in roots if request.app.state.request_owners.has(name, owner)}
        own |= await _own_jobs(request.app.state.desk, roots, owner)
        steps = [_without_others(step, own) for step in steps]
    return json_response({"object": "activity", "now_s": answer.now_s, "steps": steps})


async def _own_jobs(desk: JobDesk | None, names: Collection[str], owner: str) -> set[str]:
    """Those names that are jobs of a key."""
    own: set[str] = set()
    for name in names:
        if desk is None or not name.startswith(JOB_KINDS):
            continue
        try:
            job = await desk.seen(name, owner=owner)
        except NotFound:
            continue
        if job is not None:
            own.add(job.id)
    return own


def _without_others(step: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
    return step | {"requests": [name if _root(name) in own else _anonymous(name) for name in step["requests"]]}


def _anonymous(name: str) -> str:
    """The same one for a request each time. Ids are random enough for a plain hash to tell nothing."""
    return f"other-{hashlib.blake2b(_root(name).encode(), digest_size=8).hexdigest()}"


def _root(name: str) -> str:
    """A request's own id; what is done on its behalf has a path behind it."""
    return name.partition("/")[0]
