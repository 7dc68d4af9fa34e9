"""`GET /metrics` for Prometheus: what HTTP counts here, and what the engine tells of itself.

An engine that is gone or busy costs its part of the answer, not all of it: `braid_engine_up` says so.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.errors import BraidError
from braid.llm_core.engine.messages import EngineReady
from braid.rest.health import counters
from braid.rest.wire_messages import MediaEngine
from braid.tracing.engine_metrics import engine_families
from braid.tracing.metric_catalog import HTTP_METRICS
from braid.tracing.metric_families import Family, Registry
from braid.tracing.prometheus_text import MEDIA_TYPE, prometheus_text


class HttpMetrics:
    """What this process counts; lives in `app.state.metrics`."""

    def __init__(self) -> None:
        self._registry = Registry(HTTP_METRICS)

    def responded(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response has ended."""
        self._registry.add("braid_http_requests_total", 1.0, method, route, str(status))
        self._registry.observe("braid_http_request_seconds", seconds, route)

    def job_ended(self, kind: str, status: str) -> None:
        """A job has its final status."""
        self._registry.add("braid_jobs_total", 1.0, kind, status)

    def families(self) -> list[Family]:
        """As they are now."""
        return self._registry.families()


async def metrics(request: Request) -> Response:
    """`GET /metrics`."""
    own: HttpMetrics = request.app.state.metrics
    text = prometheus_text(own.families() + await _of_engine(request.app.state.engine))
    return Response(text, media_type=MEDIA_TYPE)


async def _of_engine(engine: MediaEngine) -> list[Family]:
    found = Registry(HTTP_METRICS)
    try:
        ready, values = engine.ready, await counters(engine)
    except BraidError:
        found.set("braid_engine_up", 0.0)
        return found.families()
    found.set("braid_engine_up", 1.0)
    found.set("braid_engine_generation", ready.generation)
    _describe_models(found, ready)
    return found.families() + engine_families(values)


def _describe_models(found: Registry, ready: EngineReady) -> None:
    for model in ready.models:
        kernels: Any = model.get("kernels", "")
        name = kernels if isinstance(kernels, str) else ", ".join(sorted(map(str, kernels)))
        found.set("braid_model_info", 1.0, model["id"], str(model.get("architecture", "")),
                  str(model.get("device", "")), name[:200])  # fmt: skip
