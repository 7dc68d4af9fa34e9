"""What an engine child serves: an engine with a language model at once, and media requests beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from braid.config import BraidConfig
from braid.diffusion.jobs.messages import Activity, ActivityRequest, Nudge, ResolveMedia
from braid.errors import NotReady
from braid.factory import build_engine
from braid.llm_core.core import JournalEntry
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import EngineReady
from braid.rest.wire_messages import WireSubmission

MEDIA = ("image", "video", "audio")
NO_VIDEO_MODEL = "the server was started without a video model; start it with --video and the path of a checkpoint"


def build_serving(config: BraidConfig, *, on_crash: Callable[[], None] = lambda: None) -> Serving:
    """Load the language model and serve it.

    Raises:
        BraidError: see `build_engine`.
    """
    return Serving(build_engine(config, on_crash=on_crash))


class Serving:
    """A `MediaEngine` in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def ready(self) -> EngineReady:
        """What is loaded so far."""
        modalities = {"chat": "", **dict.fromkeys(MEDIA, NO_VIDEO_MODEL)}
        return msgspec.structs.replace(self._engine.ready, modalities=modalities)

    def submit(self, request: WireSubmission, on_event: Callable[[Any], None]) -> None:
        """See `EngineHandle.submit`."""
        if isinstance(request, ActivityRequest):
            on_event(self._activity(request))
        elif isinstance(request, ResolveMedia):
            on_event(failed(request.id, NotReady(NO_VIDEO_MODEL)))
        else:
            self._engine.submit(request, on_event)

    def send(self, nudge: Nudge) -> None:
        """Take what has no answer."""

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        """See `EngineHandle.cancel`."""
        self._engine.cancel(request_id, reason)

    def close(self) -> None:
        """See `EngineHandle.close`."""
        self._engine.close()

    def _activity(self, request: ActivityRequest) -> Activity:
        now = time.monotonic()
        entries = self._engine.scheduler.journal.since()
        return Activity(request.id, now, recent_steps(entries, since=now - request.seconds))


def recent_steps(entries: list[JournalEntry], *, since: float) -> tuple[dict[str, Any], ...]:
    """The steps that ended after `since`, as `Activity` tells them."""
    return tuple(_step(entry) for entry in entries if entry.start + _ms(entry) / 1000 > since)


def _ms(entry: JournalEntry) -> float:
    return entry.device_ms + entry.host_ms


def _step(entry: JournalEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "workload": entry.workload,
        "kind": entry.kind,
        "lane": entry.lane,
        "requests": list(entry.request_ids),
        "start_s": entry.start,
        "ms": _ms(entry),
    }
