"""A scripted engine behind a real uvicorn on a free port."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from braid.rest.app import create_app

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages

from scripted_engine import ScriptedEngine


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
