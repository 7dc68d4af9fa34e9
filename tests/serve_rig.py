"""A whole `braid serve` of two processes with a toy video model, and ways to end it, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import msgspec
import psutil

from braid.config import ServeConfig

TIMEOUT_S = 120.0
UNFINISHED = ("queued", "in_progress")
SERVE = """
import sys, msgspec
from braid.config import ServeConfig
from braid.server import Listen, serve
sys.exit(serve(msgspec.json.decode(sys.argv[1], type=ServeConfig), Listen(port=0)))
"""


@dataclass
class Served:
    """A running server. What it logs is in `log`."""

    process: subprocess.Popen[str]
    client: httpx.Client
    log: list[str] = field(default_factory=list)

    @property
    def engine(self) -> psutil.Process:
        """Its newest engine."""
        return max(psutil.Process(self.process.pid).children(), key=lambda child: child.create_time())

    def kill(self, *, parent: bool = True, child: bool = True) -> None:
        """SIGKILL, to both at once unless told."""
        engine = self.engine if child else None
        if parent:
            self.process.kill()
        if engine is not None:
            engine.send_signal(signal.SIGKILL)
        if parent:
            self.process.wait()

    def finished(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended; the server may be away for a while."""
        url = f"/v1/{'videos' if job_id.startswith('video') else 'images'}/{job_id}"
        return until(lambda: self._final(url))

    def _final(self, url: str) -> dict[str, Any] | None:
        try:
            answer = self.client.get(url)
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 and answer.json()["status"] not in UNFINISHED else None

    def why_not(self, modality: str) -> str:
        """What keeps it from making such things; empty for nothing."""
        return str(self.client.get("/ready").json()["modalities"][modality]["reason"] or "")

    def ask(self, body: dict[str, Any]) -> str:
        """The id of a new film."""
        answer = self.client.post("/v1/videos", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def ask_until_taken(self, body: dict[str, Any]) -> str:
        """The same of a server whose engine may just have been killed: it answers 503 until there is another."""
        answer = until(lambda: self._taken(body))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def _taken(self, body: dict[str, Any]) -> httpx.Response | None:
        answer = self.client.post("/v1/videos", json=body)
        return None if answer.status_code == 503 else answer

    def film(self, job_id: str) -> bytes:
        """Its bytes."""
        return self.client.get(f"/v1/videos/{job_id}/content").content


@contextmanager
def served(config: ServeConfig, *, within: Sequence[str] = ()) -> Iterator[Served]:
    """A server whose models are all loaded.

    Args:
        within: a command that becomes the one that follows it.
    """
    command = [*within, sys.executable, "-c", SERVE, msgspec.json.encode(config).decode()]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(config.engine.num_threads or 2)},
    )
    log: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    reading = threading.Thread(target=_read, args=(process.stderr, log), daemon=True)
    reading.start()
    server = None
    try:
        with process.stdout, httpx.Client(base_url=_url(process.stdout, log), timeout=TIMEOUT_S) as client:
            server = Served(process, client, log)
            yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reading.join(10)
        process.stderr.close()


def until(find: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """The first answer that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := find()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)
    return found


def _url(lines: IO[str], log: list[str]) -> str:
    url = None
    for line in lines:
        match = re.search(r"ready at (\S+)", line)
        url = match[1] if match else url
        if line.startswith("Ready, too:"):
            assert url is not None
            return url
    raise AssertionError("".join(log))


def _read(lines: IO[str], log: list[str]) -> None:
    for line in lines:
        log.append(line)


def files_of(data: Path, job_id: str) -> set[str]:
    """The names of the files of a job."""
    return {path.name for path in (data / "jobs" / job_id).glob("*") if path.is_file()}
