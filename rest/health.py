"""`/health` says that the process lives, `/ready` what it can do now and, where it cannot, what it waits for; `/stats`
are the engine's counters."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.errors import BraidError
from braid.llm_core.engine.messages import EngineReady, Stats, StatsRequest
from braid.rest.ask import ask
from braid.rest.wire_messages import MediaEngine

MODALITIES = ("chat", "completions", "image", "video", "audio")

ANSWER_TIMEOUT_S = 2.0
"""An engine that does not give its counters in this time is stuck, or buried in work: no place for new requests."""


async def health(request: Request) -> Response:
    """200 as long as HTTP is answered."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def ready(request: Request) -> Response:
    """200 when something can be asked, else 503; the body tells each modality and the models."""
    engine: MediaEngine = request.app.state.engine
    try:
        state = _ready(engine.ready)
        await counters(engine)
    except BraidError as error:
        state = _not_ready(error.message)
    if state["ready"]:
        return _json(state)
    return _json(state, status=503, headers={"retry-after": "1"})


async def stats(request: Request) -> Response:
    """The engine's counters.

    Raises:
        BraidError: there is no engine now.
    """
    return _json(await counters(request.app.state.engine))


async def counters(engine: MediaEngine, *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """What the engine counts about itself.

    Raises:
        NotReady: it does not answer.
        RequestFailed: it is gone.
    """
    answer = await ask(engine, StatsRequest(id=f"stats-{secrets.token_hex(8)}"), timeout_s=timeout_s)
    assert isinstance(answer, Stats)
    return answer.values


def _ready(loaded: EngineReady) -> dict[str, Any]:
    modalities = {name: _modality(loaded, name) for name in MODALITIES}
    return {
        "ready": any(modality["ready"] for modality in modalities.values()),
        "modalities": modalities,
        "generation": loaded.generation,
        "models": list(loaded.models),
    }


def _modality(loaded: EngineReady, name: str) -> dict[str, Any]:
    """As the engine says, or by what its models can do."""
    reason = loaded.modalities.get("chat" if name == "completions" else name)
    if reason is None:
        can = any(_can(model.get("capabilities", ()), name) for model in loaded.models)
        reason = "" if can else f"no model that makes {name} is loaded"
    return {"ready": not reason, "reason": reason or None}


def _can(capabilities: Collection[str], name: str) -> bool:
    return name in capabilities or (name == "completions" and "chat" in capabilities)


def _not_ready(reason: str) -> dict[str, Any]:
    modalities = {name: {"ready": False, "reason": reason} for name in MODALITIES}
    return {"ready": False, "modalities": modalities, "generation": None, "models": []}


def _json(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
