"""`/health` says that the process lives, `/ready` what it can do now and, where it cannot, what it waits for."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.errors import NotReady
from braid.llm_core.engine.handle import EngineHandle

MODALITIES = ("chat", "completions")


async def health(request: Request) -> Response:
    """200 as long as HTTP is answered."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def ready(request: Request) -> Response:
    """200 when something can be asked, else 503; the body tells each modality."""
    state = readiness(request.app.state.engine)
    status = 200 if state["ready"] else 503
    headers = {} if state["ready"] else {"retry-after": "1"}
    return Response(msgspec.json.encode(state), status, headers, media_type="application/json")


def readiness(engine: EngineHandle) -> dict[str, Any]:
    """Which modalities are there, and why not."""
    try:
        loaded = engine.ready
    except NotReady as error:
        modalities = {name: {"ready": False, "reason": error.message} for name in MODALITIES}
        return {"ready": False, "modalities": modalities, "generation": None, "models": []}
    modalities = {name: {"ready": True, "reason": None} for name in MODALITIES}
    return {"ready": True, "modalities": modalities, "generation": loaded.generation, "models": list(loaded.models)}
