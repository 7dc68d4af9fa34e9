"""Logs as programs and people read them: with traces, and without prompts unless somebody asks for them."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from braid.errors import InvalidRequest
from braid.tests.tiny_models import write_gguf
from braid.tracing.logs import CURRENT, JsonLines, RecordPlaces, TextLines, set_up_logs
from braid.tracing.trace_context import TraceContext, new_trace

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
REQUEST = "chatcmpl-0123456789abcdef0123456789abcdef"
SECRET = "xylophone zebra"


def record(message: str, *arguments: object, error: Exception | None = None) -> logging.LogRecord:
    problem = None if error is None else (type(error), error, None)
    return logging.LogRecord("braid.engine", logging.ERROR, "file.py", 1, message, arguments, problem)


def placed(one: logging.LogRecord, found: TraceContext | None = None) -> logging.LogRecord:
    places = RecordPlaces()
    places.trace_of = lambda request_id: found if request_id == REQUEST else None
    assert places.filter(one)
    return one


def test_a_record_within_a_request_has_its_trace() -> None:
    place = new_trace()
    token = CURRENT.set(place)
    try:
        line = JsonLines().format(placed(record("it failed")))
    finally:
        CURRENT.reset(token)
    found = json.loads(line)
    assert (found["trace_id"], found["span_id"], found["message"]) == (place.trace_id, place.span_id, "it failed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])


def test_a_record_that_names_a_request_has_its_trace() -> None:
    place = new_trace()
    found = json.loads(JsonLines().format(placed(record("step of request %s failed", REQUEST), place)))
    assert (found["request_id"], found["trace_id"]) == (REQUEST, place.trace_id)
    assert TextLines().format(placed(record("of %s", REQUEST), place)).endswith(f"[trace {place.trace_id}]")


def test_a_record_of_nobody_has_no_trace() -> None:
    assert set(json.loads(JsonLines().format(placed(record("it begins"))))) == {"time", "level", "logger", "message"}
    assert TextLines().format(placed(record("it begins"))) == "ERROR braid.engine: it begins"


def test_an_error_is_one_line_with_its_traceback() -> None:
    line = JsonLines().format(placed(record("it\nfailed", error=ValueError("why\nnot"))))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: why\nnot")


@pytest.mark.parametrize("wrong", [{"BRAID_LOG_FORMAT": "xml"}, {"BRAID_LOG_LEVEL": "loud"}])
def test_what_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="must be one of"):
        set_up_logs(wrong, level="WARNING")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("language") / "tiny.gguf", "llama")


def logged(model: Path, **variables: str) -> tuple[list[dict[str, Any]], str]:
    """What a server logs of a chat, and the chat's trace as it is served."""
    command = [sys.executable, "-m", "braid.cli", "serve", "--port", "0", "--model", str(model), "--threads", "1"]
    environment = {**os.environ, "BRAID_LOG_FORMAT": "json", "BRAID_LOG_LEVEL": "INFO", **variables}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
            assert found
            trace = asked(found[0])
        finally:
            server.terminate()
            _, errors = server.communicate(timeout=30)
    return [json.loads(line) for line in errors.splitlines()], trace


def asked(url: str) -> str:
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4, "ignored": SECRET}
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code in (200, 400)
        body.pop("ignored")
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        deadline = time.monotonic() + 10
        while "gen_ai.usage.output_tokens" not in (trace := client.get(f"/v1/traces/{TRACE}").text):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return trace


def test_a_server_logs_requests_with_their_trace_and_without_their_prompts(model: Path) -> None:
    lines, trace = logged(model)
    http = [line for line in lines if line["message"].startswith("POST /v1/chat/completions: 200 after")]
    engine = [line for line in lines if re.match(r"chat tiny chatcmpl-\w+ ended: completed after", line["message"])]
    assert http and engine
    assert {line["trace_id"] for line in http + engine} == {TRACE}
    assert engine[0]["request_id"].startswith("chatcmpl-")
    assert SECRET not in json.dumps(lines) and SECRET not in trace


def test_prompts_are_told_where_somebody_asks_for_them(model: Path) -> None:
    lines, trace = logged(model, BRAID_SHOW_PROMPTS="1")
    assert any(SECRET in line["message"] and line.get("trace_id") == TRACE for line in lines)
    assert SECRET in trace
