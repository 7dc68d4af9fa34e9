"""`braid serve`: HTTP in this process, the engine in a child.

The child is spawned before anything slow is imported here, so that both start side by side; HTTP answers `/health` at
once and `/ready` tells when there is an engine. `python -m braid.server --engine-child` is the child.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import msgspec

from braid.config import ServeConfig
from braid.errors import BraidError, InvalidRequest
from braid.job_storage import open_jobs
from braid.llm_core.engine.messages import EngineReady
from braid.rest.child_process import ChildProcess, start_child

if TYPE_CHECKING:
    import uvicorn

    from braid.rest.access import Access
    from braid.rest.child import Tell
    from braid.rest.http_traces import HttpTraces
    from braid.rest.jobs import JobDesk
    from braid.rest.remote_files import RemoteFiles
    from braid.rest.supervisor import Supervisor
    from braid.rest.webhooks import Webhooks
    from braid.rest.wire_messages import MediaEngine

logger = logging.getLogger("braid.server")

JOB_DATABASE_VARIABLE = "BRAID_ENGINE_JOB_DATABASE"
"""How an engine child gets the job database's URL, which may have a password in it."""

EXIT_CRASHED = 4
"""Exit code of an engine child whose loop failed."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CANCELLED_END_S = 3.0
"""Time for cancelled requests to tell their clients, before connections are cut."""


class CannotListen(BraidError):
    """The address cannot be served; the message says why and what would work."""

    code = "cannot_listen"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where HTTP listens, and how it stops.

    Raises:
        InvalidRequest: an address that other machines reach, without keys or `allow_remote`; one that does not exist.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    has_keys: bool = False
    """Who asks is asked for a key."""
    allow_remote: bool = False
    """Without keys, too: everybody who reaches the port may use the server."""
    stop_grace_s: float = 10.0
    """Requests that run when a stop is asked for may take this long; then they are cancelled."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidRequest(f"port={self.port} must be between 0 and 65535", param="port")
        if not (self.has_keys or self.allow_remote or is_loopback(self.host)):
            message = f"host={self.host!r} can be reached by other machines, and nobody is asked for a key"
            raise InvalidRequest(f"{message}; use 127.0.0.1, give --api-keys, or say --allow-remote", param="host")


def serve(
    config: ServeConfig,
    listen: Listen | None = None,
    access: Access | None = None,
    *,
    engine_command: Sequence[str] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; returns the process's exit code.

    Args:
        access: who may ask; None asks nobody for a key.
        engine_command: what to spawn instead of this module's child.

    Raises:
        CannotListen: the port is in use, or there is no such address.
        BraidError: the engine cannot load the model.
    """
    listen = listen or Listen()
    started = time.monotonic()
    command = engine_command or child_command(config)
    with bind(listen) as sock:
        environment = child_environment(config)
        children = Children(command, environment, first=start_child(command, 1, environment=environment))
        with _runner() as runner:
            runner.run(_serve(config, listen, access, sock, children, started))
    return 0


@dataclass(frozen=True, slots=True)
class Children:
    """How engines are spawned, and the one that already is."""

    command: Sequence[str]
    environment: Mapping[str, str]
    first: ChildProcess

    def start(self, generation: int) -> ChildProcess:
        """Spawn one more."""
        return start_child(self.command, generation, environment=self.environment)


def child_command(config: ServeConfig) -> list[str]:
    """How to spawn an engine, with `child_environment`. `-P`: the working directory is not searched for modules."""
    settings = msgspec.json.encode(msgspec.structs.replace(config, job_database=None)).decode()
    return [sys.executable, "-P", "-m", "braid.server", "--engine-child", "--config", settings]


def child_environment(config: ServeConfig) -> dict[str, str]:
    """What an engine must know and nobody else: other users can read a process's arguments."""
    return {} if config.job_database is None else {JOB_DATABASE_VARIABLE: config.job_database}


def is_loopback(host: str) -> bool:
    """Whether an address, or all addresses of a name, are this machine's own.

    Raises:
        InvalidRequest: the name has no address.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidRequest(f"host={host!r} has no address: {error}", param="host") from None
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)


def bind(listen: Listen) -> socket.socket:
    """A listening socket; clients may connect from now on and wait.

    Raises:
        CannotListen: the port is taken, or not ours to take.
    """
    try:
        family = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((listen.host, listen.port), family=family, backlog=2048)
    except OSError as error:
        reason = f"cannot listen on {listen.host}:{listen.port}: {error.strerror or error}"
        raise CannotListen(f"{reason}; choose another with --port", param="port") from None


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _serve(
    config: ServeConfig,
    listen: Listen,
    access: Access | None,
    sock: socket.socket,
    children: Children,
    started: float,
) -> None:
    from braid.rest.app import create_app
    from braid.rest.http_traces import HttpTraces
    from braid.rest.supervisor import Supervisor

    greet = _greeting(_url(listen.host, sock.getsockname()[1]), started)
    name = config.video.model if config.video is not None else config.engine.model
    traces = HttpTraces(os.environ)
    supervisor = Supervisor(children.start, name=name, first=children.first, on_ready=greet, on_spans=traces.take)
    async with _job_desk(config, supervisor, access) as desk, _webhooks(desk, access, traces) as webhooks:
        app = create_app(
            supervisor,
            desk=desk,
            access=access,
            remote_files=_remote_files(access),
            traces=traces,
            webhooks=webhooks,
            max_upload_bytes=config.max_upload_bytes,
        )
        if desk is not None:
            await desk.start()  # not before the app counts the jobs that it cancels, and keeps their spans
        server = _http_server(app, listen, supervisor, desk)
        supervising = asyncio.create_task(supervisor.run())
        supervising.add_done_callback(lambda _: setattr(server, "should_exit", True))
        try:
            await server.serve(sockets=[sock])
        finally:
            supervisor.close()
            try:
                await supervising
            finally:
                await asyncio.to_thread(traces.close)


@contextlib.asynccontextmanager
async def _job_desk(
    config: ServeConfig, supervisor: Supervisor, access: Access | None
) -> AsyncIterator[JobDesk | None]:
    """Where HTTP takes in jobs, if there is a model that can do them."""
    if config.video is None:
        yield None
        return
    from braid.rest.jobs import JobDesk

    storage = await asyncio.to_thread(open_jobs, config, "http")
    try:
        desk = JobDesk(storage, supervisor, limits=None if access is None else access.limits)
        greet = supervisor.on_ready
        supervisor.on_job_event = desk.on_event

        def take_ready(ready: EngineReady) -> None:
            desk.on_ready(ready)
            greet(ready)

        supervisor.on_ready = take_ready
        try:
            yield desk
        finally:
            await desk.close()
    finally:
        await asyncio.to_thread(storage.close)


@contextlib.asynccontextmanager
async def _webhooks(
    desk: JobDesk | None, access: Access | None, traces: HttpTraces
) -> AsyncIterator[Webhooks | None]:
    """What tells the ends of jobs, if there is a secret to sign with."""
    if desk is None or access is None or access.webhook_secret is None:
        yield None
        return
    from braid.rest.guarded_http import GuardedClient
    from braid.rest.webhooks import Webhooks

    client = GuardedClient(trusted_hosts=access.trusted_hosts)
    webhooks = Webhooks(desk.storage, access.webhook_secret, client, give_span=traces.give_one)
    webhooks.start()
    try:
        yield webhooks
    finally:
        await webhooks.close()


def _http_server(
    app: Callable[..., object], listen: Listen, supervisor: Supervisor, desk: JobDesk | None
) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Stops in two steps: requests may end by themselves, then they are cancelled and told so."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Without uvicorn's re-raise: a stop that was asked for is no failure."""
            before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Called by `serve` after a signal."""
            if desk is not None:
                desk.stop()
            loop = asyncio.get_running_loop()
            timer = loop.call_later(listen.stop_grace_s, supervisor.cancel_all, "the server is stopping")
            try:
                await super().shutdown(sockets)
            finally:
                timer.cancel()

    timeout_s = int(listen.stop_grace_s + CANCELLED_END_S)
    return Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=timeout_s)
    )


def _remote_files(access: Access | None) -> RemoteFiles:
    from braid.rest.guarded_http import GuardedClient
    from braid.rest.remote_files import RemoteFiles

    if access is None or not access.allow_remote_urls:
        return RemoteFiles()
    return RemoteFiles(GuardedClient(trusted_hosts=access.trusted_hosts))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _greeting(url: str, started: float) -> Callable[[EngineReady], None]:
    greeted = 0

    def greet(ready: EngineReady) -> None:
        nonlocal greeted
        if ready.generation == greeted:
            _tell_media(ready)
            return
        greeted = ready.generation
        if ready.generation > 1:
            logger.warning("engine %d is ready", ready.generation)
            return
        model = ready.models[0]["id"]
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        body = msgspec.json.encode({"model": model, "messages": messages, "temperature": 0}).decode()
        print(f"Braid is ready at {url} after {time.monotonic() - started:.1f} s with {model}. Try:")
        print(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'", flush=True)

    return greet


def _tell_media(ready: EngineReady) -> None:
    able = [name for name in ("image", "video", "audio") if ready.modalities.get(name) == ""]
    if able:
        print(f"Ready, too: {', '.join(able)}.", flush=True)
    else:
        logger.error("there is no video model: %s", ready.modalities.get("video"))


def main(argv: Sequence[str] | None = None) -> int:
    """The engine child's entry."""
    from braid.rest.child import add_arguments, run_child
    from braid.tracing.logs import set_up_logs

    parser = argparse.ArgumentParser(prog="python -m braid.server", description="The engine child of `braid serve`.")
    parser.add_argument("--engine-child", action="store_true", required=True)
    parser.add_argument("--config", required=True, help="a ServeConfig as JSON")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    config = msgspec.json.decode(arguments.config, type=ServeConfig)
    config = msgspec.structs.replace(config, job_database=os.environ.pop(JOB_DATABASE_VARIABLE, None))
    places = set_up_logs(os.environ, level="WARNING")

    def build(tell: Tell) -> MediaEngine:
        from braid.serving import build_serving

        serving = build_serving(config, tell, on_crash=lambda: os._exit(EXIT_CRASHED))  # the parent starts another
        places.trace_of = serving.trace_of
        return serving

    return run_child(arguments, build)


def end_process(code: int) -> NoReturn:
    """End without Python's own teardown.

    That stops every other thread where it next wants the interpreter; one that is inside of PyTorch then (a model that
    still loads, a job that was not over in time) is unwound through C++ code, which answers with `terminate`.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end_process(main())
