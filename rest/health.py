"""`/health` says that the process lives, `/ready` what it can do now and, where it cannot, what it waits for; `/stats`
are the engine's counters."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.errors import BraidError, NotReady
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.handle import EngineHandle
from braid.llm_core.engine.messages import EngineReady, Failed, Stats, StatsRequest
from braid.rest.exchange import EventQueue

MODALITIES = ("chat", "completions")

ANSWER_TIMEOUT_S = 2.0
"""An engine that does not give its counters in this time is stuck, or buried in work: no place for new requests."""


async def health(request: Request) -> Response:
    """200 as long as HTTP is answered."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def ready(request: Request) -> Response:
    """200 when something can be asked, else 503; the body tells each modality and the models."""
    engine: EngineHandle = request.app.state.engine
    try:
        state = _ready(engine.ready)
        await counters(engine)
    except BraidError as error:
        return _json(_not_ready(error.message), status=503, headers={"retry-after": "1"})
    return _json(state)


async def stats(request: Request) -> Response:
    """The engine's counters.

    Raises:
        BraidError: there is no engine now.
    """
    return _json(await counters(request.app.state.engine))


async def counters(engine: EngineHandle, *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """What the engine counts about itself.

    Raises:
        NotReady: it does not answer.
        RequestFailed: it is gone.
    """
    answers = EventQueue()
    engine.submit(StatsRequest(id=f"stats-{secrets.token_hex(8)}"), answers.put)
    try:
        (answer,) = await asyncio.wait_for(answers.take(), timeout_s)
    except TimeoutError:
        raise NotReady(f"the engine has not answered for {timeout_s:g} s") from None
    if isinstance(answer, Failed):
        raise RequestFailed(answer)
    assert isinstance(answer, Stats)
    return answer.values


def _ready(loaded: EngineReady) -> dict[str, Any]:
    modalities = {name: {"ready": True, "reason": None} for name in MODALITIES}
    return {"ready": True, "modalities": modalities, "generation": loaded.generation, "models": list(loaded.models)}


def _not_ready(reason: str) -> dict[str, Any]:
    modalities = {name: {"ready": False, "reason": reason} for name in MODALITIES}
    return {"ready": False, "modalities": modalities, "generation": None, "models": []}


def _json(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
