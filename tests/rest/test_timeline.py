"""The timeline's page and its data, from an engine that answers with what it is told to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from braid.diffusion.jobs.messages import Activity, ActivityRequest
from braid.errors import BraidError, NotReady
from braid.llm_core.engine.messages import EngineReady, Stats
from braid.rest.errors import error_response
from braid.rest.metrics import HttpMetrics, metrics
from braid.rest.page import WebPage
from braid.rest.timeline import FOLDER, timeline, timeline_file, timeline_page

STEP = {
    "number": 4, "workload": "language", "kind": "decode", "lane": "device", "requests": ["chat-1"], "start_s": 9.0,
    "ms": 12.5,
}  # fmt: skip


class ToldEngine:
    """Answers at once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.is_there = True

    @property
    def ready(self) -> EngineReady:
        if not self.is_there:
            raise NotReady("the engine is loading")
        return EngineReady(({"id": "m", "architecture": "llama", "device": "cpu", "kernels": "torch"},), generation=2)

    def submit(self, request: Any, on_event: Callable[[Any], None]) -> None:
        if isinstance(request, ActivityRequest):
            self.seconds.append(request.seconds)
            on_event(Activity(request.id, 10.0, (STEP,)))
        else:
            on_event(Stats(request.id, {"requests": {"open": 3, "waiting": 1}}))


async def as_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BraidError)
    return error_response(error)


@pytest.fixture
def engine() -> ToldEngine:
    return ToldEngine()


@pytest.fixture
def http(engine: ToldEngine) -> Iterator[TestClient]:
    app = Starlette(
        routes=[
            Route("/timeline", timeline_page),
            Route("/trace/{id}", timeline_page),
            Route("/timeline/files/{version}/{path:path}", timeline_file),
            Route("/v1/timeline", timeline),
            Route("/metrics", metrics),
        ],
        exception_handlers={BraidError: as_error},
    )
    app.state.engine, app.state.timeline_page, app.state.metrics = engine, WebPage(FOLDER), HttpMetrics()
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("url", ["/timeline", "/trace/4bf92f3577b34da6a3ce929d0e0e4736"])
def test_the_page_and_all_that_it_needs_come_from_here(http: TestClient, url: str) -> None:
    answer = http.get(url)
    assert answer.status_code == 200
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="(/timeline/files/[^"]+)"', answer.text)
    assert len(named) == 2
    found = [http.get(path) for path in named]
    for module in ("api.js", "bars.js", "main.js", "painter.js", "view.js"):
        found.append(http.get(named[1].replace("main.js", module)))
    assert {one.status_code for one in found} == {200}


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    for path in FOLDER.rglob("*"):
        if path.is_file():
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in text and "http://" not in text, path.name
            assert "innerHTML" not in text
    html = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", html)


def test_the_steps_of_the_last_seconds_are_told(http: TestClient, engine: ToldEngine) -> None:
    assert http.get("/v1/timeline?seconds=90").json() == {"object": "timeline", "now_s": 10.0, "steps": [STEP]}
    assert engine.seconds == [90.0]


@pytest.mark.parametrize("seconds", ["-1", "301", "nan", "soon"])
def test_a_time_that_cannot_be_is_refused(http: TestClient, engine: ToldEngine, seconds: str) -> None:
    assert http.get(f"/v1/timeline?seconds={seconds}").status_code == 400
    assert engine.seconds == []


def test_the_steps_open_in_perfetto(http: TestClient) -> None:
    answer = http.get("/v1/timeline?format=chrome")
    assert "attachment" in answer.headers["content-disposition"]
    (step,) = (event for event in answer.json()["traceEvents"] if event["ph"] == "X")
    assert (step["ts"], step["dur"], step["name"]) == (9_000_000, 12_500, "decode chat-1")


def read(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def test_metrics_are_those_of_http_and_of_the_engine(http: TestClient, engine: ToldEngine) -> None:
    own: HttpMetrics = http.app.state.metrics  # type: ignore[attr-defined]
    own.responded("GET", "/health", 200, 0.01)
    own.job_ended("video", "completed")
    found = read(http.get("/metrics").text)
    assert found["braid_engine_up"] == 1 and found["braid_engine_generation"] == 2
    assert found["braid_requests_open"] == 3
    assert found["braid_http_requests_total"] == found["braid_jobs_total"] == found["braid_model_info"] == 1


def test_without_an_engine_there_are_still_metrics(http: TestClient, engine: ToldEngine) -> None:
    engine.is_there = False
    assert read(http.get("/metrics").text) == {"braid_engine_up": 0}
