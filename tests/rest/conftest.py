"""A scripted engine behind a real uvicorn on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from braid.rest.app import create_app

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages

from scripted_engine import ScriptedEngine
from scripted_studio import ScriptedStudio, telling

from braid.diffusion.jobs.failures import JobIsFinal
from braid.diffusion.jobs.storage import JobStorage
from braid.rest.access import Access
from braid.rest.jobs import JobDesk
from braid.rest.limits import AdmissionLimits


class LoopServer(uvicorn.Server):
    """Tells which event loop it runs on."""

    loop: asyncio.AbstractEventLoop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)


class Server:
    """A running HTTP server; `url` is its root."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server = LoopServer(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """On which it runs."""
        while not hasattr(self._server, "loop"):
            time.sleep(0.001)
        return self._server.loop

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Something on the server's event loop, from here."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def num_tasks(self) -> int:
        """Unfinished tasks on the server's event loop."""
        return len(asyncio.all_tasks(self._server.loop))

    def __enter__(self) -> Server:
        self._socket.listen()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._socket.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One for all tests; `engine` gives it a new engine for each."""
    with Server(create_app(ScriptedEngine(), max_body_bytes=100_000)) as running:
        yield running


@pytest.fixture(autouse=True)
def engine(server: Server) -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    server.app.state.engine = engine
    yield engine
    engine.close()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


class Studio:
    """A server with a store of jobs and a scripted engine that works on them."""

    def __init__(
        self,
        root: Path,
        limits: AdmissionLimits | None = None,
        access: Access | None = None,
        engine: ScriptedStudio | None = None,
    ) -> None:
        self.root = root
        self.engine = engine or ScriptedStudio(root)
        self.storage = JobStorage.open(root, seat="http")
        self.desk = JobDesk(self.storage, self.engine, limits=limits)
        self.server = Server(create_app(self.engine, desk=self.desk, access=access, max_upload_bytes=1_000_000))

    def __enter__(self) -> Studio:
        self.server.__enter__()
        self.engine.tell = telling(self.server.loop, self.desk.on_event)
        self.server.run(self.desk.start())
        return self

    def __exit__(self, *error: object) -> None:
        self.server.run(self.desk.close())
        self.server.__exit__()
        self.engine.close()
        self.storage.close()


@pytest.fixture(scope="session")
def shared_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with Studio(tmp_path_factory.mktemp("studio")) as running:
        yield running


@pytest.fixture
def studio(shared_studio: Studio) -> Iterator[Studio]:
    """One for all tests; what it remembers is forgotten for each, and no test leaves it at work."""
    shared_studio.engine.resolved.clear()
    shared_studio.engine.uploads.clear()
    while not shared_studio.engine.cancelled.empty():
        shared_studio.engine.cancelled.get()
    yield shared_studio
    shared_studio.engine.is_paused.clear()
    for job in shared_studio.desk.store.unfinished():
        with contextlib.suppress(JobIsFinal):  # it was quicker
            shared_studio.server.run(shared_studio.desk.cancel(job.id))


@pytest.fixture
def web(studio: Studio) -> Iterator[httpx.Client]:
    """A client of the studio."""
    with httpx.Client(base_url=studio.server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(studio: Studio) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of the studio."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its videos are marked so; ours stay
        with openai.OpenAI(base_url=f"{studio.server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            yield client


@pytest.fixture
def start_server() -> Iterator[Callable[[FastAPI], Server]]:
    """Starts servers that the end of the test stops."""
    servers: list[Server] = []

    def start(app: FastAPI) -> Server:
        servers.append(Server(app).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()
