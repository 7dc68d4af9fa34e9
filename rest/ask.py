"""One question to the engine, one answer: for requests that have exactly one event."""

from __future__ import annotations

import asyncio
from typing import Any

from braid.errors import NotReady
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.messages import Failed
from braid.rest.exchange import EventQueue
from braid.rest.wire_messages import MediaEngine, WireSubmission


async def ask(engine: MediaEngine, request: WireSubmission, *, timeout_s: float) -> Any:
    """The event that ends the request.

    Raises:
        NotReady: the engine does not answer in time.
        RequestFailed: it says no, or is gone.
    """
    answers = EventQueue()
    engine.submit(request, answers.put)
    try:
        (answer,) = await asyncio.wait_for(answers.take(), timeout_s)
    except TimeoutError:
        engine.cancel(request.id, "it took too long")
        raise NotReady(f"the engine has not answered for {timeout_s:g} s") from None
    except asyncio.CancelledError:
        engine.cancel(request.id)
        raise
    if isinstance(answer, Failed):
        raise RequestFailed(answer)
    return answer
