"""`braid serve --video` as its callers' traces have it: every request from its header to the steps of the device, with
films that are preempted, cancelled, broken, and gone on with after their engine was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from braid.rest.traces import collect
from braid.tests.diffusion.film_files import write_film_files
from braid.tests.test_serve_films import FILM, TIMEOUT_S, engine_of, finished, served
from braid.tests.tracing.stage import check_forest
from braid.tracing.span import INTERRUPTED, Span
from braid.tracing.trace_store import TraceStore

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALL = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
BROKEN = "not_finite"
SECRET = "whsec_c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IDEyMzQ="

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@contextmanager
def collecting() -> Iterator[tuple[TraceStore, list[bytes], str]]:
    """Our collector in this process, and who is told of jobs: what each got, and the address."""
    store, told = TraceStore(), list[bytes]()

    async def hear(request: Request) -> Response:
        told.append(await request.body())
        return Response(status_code=204)

    app = Starlette(routes=[Route("/v1/traces", collect, methods=["POST"]), Route("/told", hear, methods=["POST"])])
    app.state.traces = store
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield store, told, f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def chat(client: httpx.Client, max_tokens: int = 60) -> str:
    body = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": max_tokens, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body, headers=CALL)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def leave_early(client: httpx.Client) -> str:
    """A chat whose reader hangs up."""
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 200, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body, headers=CALL) as answer:
        line = next(line for line in answer.iter_lines() if line.startswith("data: "))
        return str(msgspec.json.decode(line.removeprefix("data: "))["id"])


def film(client: httpx.Client, **more: Any) -> str:
    answer = client.post("/v1/videos", json=FILM | more, headers=CALL)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def under_way(client: httpx.Client, video_id: str) -> None:
    until(lambda: client.get(f"/v1/videos/{video_id}").json().get("progress", 0) > 10)


def spans_of(client: httpx.Client) -> list[Span]:
    return msgspec.convert(client.get(f"/v1/traces/{TRACE}").json().get("spans", []), list[Span])


def requests_of(spans: list[Span], *ids: str) -> dict[str, Span]:
    """The last span of each engine request."""
    found = {str(span.attributes["braid.request.id"]): span for span in spans if "braid.request.id" in span.attributes}
    return {name: span for name, span in found.items() if not ids or name in ids}


def share_ms(spans: list[Span], *, since_ns: int = 0) -> dict[bool, float]:
    """What requests spent of the device's time, those to the language model (True) and jobs (False)."""
    shares = {True: 0.0, False: 0.0}
    for span in spans:
        if "braid.request.id" in span.attributes and span.start_ns >= since_ns:
            shares[span.name != "request"] += float(str(span.attributes.get("braid.device_share_ms", 0)))
    return shares


def busy_ms(client: httpx.Client) -> dict[bool, float]:
    """The same by the journal of the engine that runs."""
    busy = {True: 0.0, False: 0.0}
    for step in client.get("/v1/timeline?seconds=300").json()["steps"]:
        if step["requests"]:
            busy[step["workload"] == "language"] += step["device_ms"]
    return busy


def busy_ms_measured(client: httpx.Client) -> float:
    """All of it by the metrics."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        sample.value * 1e3 for family in families for sample in family.samples
        if sample.name == "braid_lane_busy_seconds_total"
    )  # fmt: skip


def check_device_time(client: httpx.Client, *, since_ns: int = 0) -> None:
    spent = share_ms(spans_of(client), since_ns=since_ns)
    assert spent == pytest.approx(busy_ms(client), rel=0.02)
    assert sum(spent.values()) == pytest.approx(busy_ms_measured(client), rel=0.02)


def below(spans: list[Span], top: Span) -> list[Span]:
    """A span and all that hangs under it."""
    children = [span for span in spans if span.parent_id == top.span_id]
    return [top, *(span for child in children for span in below(spans, child))]


def attempts_of(spans: list[Span], job_id: str) -> list[Span]:
    return [span for span in spans if span.attributes.get("braid.request.id") == job_id]


def check_film(spans: list[Span], job_id: str, errors: list[str | None]) -> list[Span]:
    """A job with its attempts; gives all of its spans."""
    (job,) = (span for span in spans if span.attributes.get("braid.job.id") == job_id and span.name == "job")
    assert job.error == errors[-1]
    attempts = attempts_of(spans, job_id)
    assert [span.error for span in attempts] == errors
    assert {span.parent_id for span in attempts} == {job.span_id}
    return below(spans, job)


def check_preempted(spans: list[Span], film: list[Span], chats: list[str]) -> None:
    """Somebody's chat went first: its time is told, and it is linked to."""
    events = [event for span in film for event in span.events if event.name == "preempted"]
    assert {event.attributes["braid.cause"] for event in events} == {"schedule"}
    assert {event.attributes["braid.by"] for event in events} & set(chats)
    links = [link for span in film for link in span.links if link.attributes["braid.relation"] == "preempted_by"]
    linked = {link.attributes["braid.request.id"]: link.span_id for link in links}
    of_chats = requests_of(spans, *chats)
    assert set(linked) & set(chats)
    assert all(linked[name] == of_chats[name].span_id for name in set(linked) & set(chats))


@pytest.mark.slow
def test_one_trace_holds_all_that_a_caller_asked_for(tmp_path: Path) -> None:
    folder = write_film_files(tmp_path)
    with collecting() as (collected, told, url):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_METRICS_EXPORTER": "none", "BRAID_WEBHOOK_SECRET": SECRET,
        }  # fmt: skip
        options = ["--lora", f"{folder / 'style.safetensors'}=0", "--trusted-host", "127.0.0.1"]
        with served(folder, *options, environment=environment) as (server, client):
            asked = ask_for_much(client, f"{url}/told")
            check_device_time(client)
            merged = 'braid_lora_cache_total{result="merged"} 2'
            assert merged in client.get("/metrics").text.splitlines(), "one for each choice of adapters"
            asked.killed = killed_and_resumed(server, client)
            until(lambda: any(span.name == "webhook" for span in spans_of(client)))
            kept = spans_of(client)
            server.terminate()
            assert server.wait(20) == 0
        check_whole(kept, asked)
        assert not list((folder / "data" / "seats").glob("*.spans")), "something was still open"
        until(lambda: len(collected.get(TRACE)) >= len(kept))
        assert {span.span_id: span for span in collected.get(TRACE)} == {span.span_id: span for span in kept}
        assert len(told) == 1


@dataclass
class Asked:
    """The ids of what was asked for."""

    chats: list[str]
    left: str
    styled: str
    cancelled: str
    broken: str
    killed: str = ""


def ask_for_much(client: httpx.Client, told_at: str) -> Asked:
    """Chats that go before a film with a LoRA, a picture, and what is cancelled or fails."""
    styled = film(client, adapters={"style": 0.5}, num_inference_steps=40, webhook_url=told_at)
    under_way(client, styled)
    with ThreadPoolExecutor(4) as several:
        chats = list(several.map(lambda _: chat(client), range(4)))
    picture = {"prompt": "a red fox", "size": "64x64"}
    assert client.post("/v1/images/generations", json=picture, headers=CALL).status_code == 200
    left = leave_early(client)
    cancelled = film(client, num_inference_steps=300)
    under_way(client, cancelled)
    client.post(f"/v1/videos/{cancelled}/cancel")
    broken = film(client, adapters={"style": 1e30}, num_inference_steps=2)
    statuses = [finished(client, video)["status"] for video in (styled, cancelled, broken)]
    assert statuses == ["completed", "cancelled", "failed"]
    until(lambda: {styled, cancelled, broken, left, *chats} <= set(requests_of(spans_of(client))))
    until(lambda: sum(span.name == "job" for span in spans_of(client)) == 4)
    return Asked(chats, left, styled, cancelled, broken)


def killed_and_resumed(server: subprocess.Popen[str], client: httpx.Client) -> str:
    """A film whose first engine is killed."""
    killed = film(client, num_inference_steps=60)
    under_way(client, killed)
    os.kill(engine_of(server), signal.SIGKILL)
    killed_ns = time.time_ns()
    assert finished(client, killed)["status"] == "completed"
    until(lambda: [span.error for span in attempts_of(spans_of(client), killed)] == [INTERRUPTED, None])
    until(lambda: sum(span.name == "job" for span in spans_of(client)) == 5)
    check_device_time(client, since_ns=killed_ns)
    return killed


def check_whole(spans: list[Span], asked: Asked) -> None:
    check_forest(spans, outside=CALLER)
    servers = [span for span in spans if span.kind == "server"]
    routes = Counter(span.name for span in servers)
    assert routes == {"POST /v1/chat/completions": 5, "POST /v1/videos": 4, "POST /v1/images/generations": 1}
    validated = Counter(span.parent_id for span in spans if span.name == "validation")
    assert validated == Counter(span.span_id for span in servers)

    for name in asked.chats:
        names = [span.name for span in below(spans, requests_of(spans)[name])]
        assert set(names) >= {"chat language", "tokenise", "queue", "prefill", "prefill chunk", "decode"}
        assert names.count("decode") == 1
    assert requests_of(spans)[asked.left].error == "request_cancelled"

    styled = check_film(spans, asked.styled, [None])
    (request,) = attempts_of(styled, asked.styled)
    said = {"gen_ai.request.model": "model.safetensors", "braid.seed": 3, "braid.frames": 9, "braid.size": "64x64"}
    assert said.items() <= request.attributes.items()
    assert {span.name for span in styled} >= {
        "queue", "text encoding", "encode_text", "encode", "encode batch", "stage_1", "sampler step", "lora merge",
        "guidance", "preview", "audio decode", "vae decode", "mux", "file write", "webhook",
    }  # fmt: skip
    steps = [span for span in styled if span.name == "sampler step"]
    assert [span.attributes["braid.step"] for span in steps] == list(range(40))
    sigmas = [float(str(span.attributes["braid.sigma"])) for span in steps]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] == pytest.approx(1)
    check_preempted(spans, styled, asked.chats)

    check_film(spans, asked.cancelled, ["request_cancelled"])
    check_film(spans, asked.broken, [BROKEN])
    killed = check_film(spans, asked.killed, [INTERRUPTED, None])
    done = [span.attributes["braid.step"] for span in killed if span.name == "sampler step" and span.error is None]
    assert sorted(set(done)) == list(range(60))
