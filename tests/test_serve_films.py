"""`braid serve --video` as a whole: over HTTP, and what is left when one of its two processes, or both, are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from braid.tests.diffusion.film_files import write_film_files
from braid.tests.tracing.stage import check_tree
from braid.tracing.span import Span

FILM: dict[str, Any] = {
    "prompt": "a red fox", "pipeline": "one_stage", "height": 64, "width": 64, "num_frames": 9, "seed": 3,
}  # fmt: skip
TIMEOUT_S = 120.0
CALL = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film_files(tmp_path_factory.mktemp("films"))


@contextmanager
def served(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-m", "braid.cli", "serve", "--port", "0", "--threads", "2", "--memory", "1GiB"]
    command += ["--video", str(folder / "model.safetensors"), "--data-dir", str(folder / "data")]
    variables = {**os.environ, "OMP_NUM_THREADS": "2", **(environment or {})}
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=variables)
    try:
        assert process.stdout is not None
        url = None
        for line in process.stdout:
            match = re.search(r"ready at (\S+)", line)
            url = match[1] if match else url
            if line.startswith("Ready, too:"):
                break
        assert url is not None
        with process.stdout, httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            yield process, client
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def finished(client: httpx.Client, video_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            answer = client.get(f"/v1/videos/{video_id}")
            if answer.status_code == 200 and answer.json()["status"] not in ("queued", "in_progress"):
                return dict(answer.json())
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


def created(client: httpx.Client, traceparent: str = "", **more: Any) -> str:
    answer = client.post("/v1/videos", json=FILM | more, headers={"traceparent": traceparent} if traceparent else {})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def check_trace(client: httpx.Client, job_id: str) -> None:
    """One trace of a job from its caller to its steps, however many engines worked on it."""
    deadline = time.monotonic() + 10
    spans: list[Span] = []
    while not {("job", None), ("request", None)} <= {(span.name, span.error) for span in spans}:
        assert time.monotonic() < deadline, [span.name for span in spans]
        answer = client.get(f"/v1/traces/{CALL.split('-')[1]}").json()
        spans = msgspec.convert(answer.get("spans", []), list[Span])
    (server,) = (span for span in spans if span.kind == "server")
    assert (server.name, server.parent_id) == ("POST /v1/videos", CALL.split("-")[2])
    worked = [span for span in spans if span.name not in (server.name, "validation")]
    check_tree(worked, outside=server.span_id)
    (job,) = (span for span in worked if span.name == "job")
    assert (job.attributes["braid.job.id"], job.error) == (job_id, None)
    attempts = [span for span in worked if span.parent_id == job.span_id]
    assert [span.attributes["braid.request.id"] for span in attempts] == [job_id] * len(attempts)
    assert [span.error for span in attempts][-1] is None
    assert {span.name for span in worked} >= {"queue", "stage_1", "sampler step", "vae decode"}


def engine_of(server: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(children[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_films_over_http_survive_the_end_of_either_process(folder: Path) -> None:
    with served(folder) as (server, client):
        modalities = client.get("/ready").json()["modalities"]
        assert all(modalities[name]["ready"] for name in ("chat", "image", "video", "audio"))
        whole = created(client, num_inference_steps=40)
        assert finished(client, whole)["status"] == "completed"
        film = client.get(f"/v1/videos/{whole}/content")
        assert film.content[4:8] == b"ftyp"

        orphaned = created(client, CALL, num_inference_steps=40)
        os.kill(engine_of(server), signal.SIGKILL)
        assert finished(client, orphaned)["status"] == "completed"
        assert client.get(f"/v1/videos/{orphaned}/content").content == film.content
        check_trace(client, orphaned)

        left = created(client, num_inference_steps=40)
        server.kill()
        server.wait()
    with served(folder) as (server, client):
        assert finished(client, left)["status"] == "completed"
        assert client.get(f"/v1/videos/{left}/content").content == film.content
        server.terminate()
        assert server.wait(20) == 0
