"""The engine in a process of its own: the protocol, and the death of either side."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from braid.errors import BraidError, EngineDied, NotReady
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.messages import (
    EngineReady,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    Started,
    Stats,
    StatsRequest,
    TextDelta,
    Usage,
)
from braid.rest.child import ChildLink
from braid.rest.child_process import ChildProcess, start_child
from braid.rest.frames import frame
from braid.rest.remote import RemoteEngine
from braid.rest.result_files import ResultFiles
from braid.rest.supervisor import Restarts, Supervisor
from braid.rest.wire_messages import LAST_EVENTS

CHILD = [sys.executable, str(Path(__file__).with_name("scripted_child.py"))]
QUICK = Restarts(first_delay_s=0.01, exit_timeout_s=5)


def prompt(text: str, request_id: str = "r", **sampling: Any) -> GenerateRequest:
    return GenerateRequest(id=request_id, prompt=text, sampling=SamplingParams(**sampling))


class Collected:
    """The events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self.started = asyncio.Event()

    def __call__(self, event: Event) -> None:
        assert not self.ended.done(), f"{event} after the last event"
        self.events.append(event)
        if isinstance(event, Started):
            self.started.set()
        if isinstance(event, LAST_EVENTS):
            self.ended.set_result(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


def with_engine(body: Callable[[RemoteEngine, ChildProcess], Awaitable[None]], *, use_tcp: bool = False) -> None:
    async def run() -> None:
        child = start_child(CHILD, 3, use_tcp=use_tcp)
        try:
            engine = await RemoteEngine.connect(await child.connect())
            await engine.wait_ready()
            await asyncio.wait_for(body(engine, child), 20)
            engine.close()
            await engine.wait_closed()
            assert await asyncio.to_thread(child.process.wait, 10) == 0 or child.process.returncode == -9
        finally:
            child.process.kill()
            child.process.wait()

    asyncio.run(run())


@pytest.mark.parametrize("use_tcp", [False, True])
def test_a_request_goes_there_and_its_events_come_back(use_tcp: bool) -> None:
    async def body(engine: RemoteEngine, _: ChildProcess) -> None:
        assert engine.ready.generation == 3
        assert engine.ready.models[0]["id"] == "scripted-135m"
        collected = Collected()
        engine.submit(prompt("a b c", logprobs=2, logit_bias={5: 1.0}), collected)
        assert isinstance(await collected.ended, Finished)
        assert collected.text == "a b c"
        assert engine.num_open_requests == 0

    with_engine(body, use_tcp=use_tcp)


def test_two_hundred_requests_at_once_keep_their_events() -> None:
    async def body(engine: RemoteEngine, _: ChildProcess) -> None:
        collected = {f"r{number}": Collected() for number in range(200)}
        for request_id, sink in collected.items():
            engine.submit(prompt(f"{request_id} x y", request_id), sink)
        await asyncio.gather(*(sink.ended for sink in collected.values()))
        assert all(sink.text == f"{request_id} x y" for request_id, sink in collected.items())

    with_engine(body)


def test_a_cancel_goes_there_and_statistics_come_back() -> None:
    async def body(engine: RemoteEngine, _: ChildProcess) -> None:
        waiting, counters = Collected(), Collected()
        engine.submit(prompt("a !wait"), waiting)
        await waiting.started.wait()
        engine.cancel("unknown")
        engine.cancel("r")
        last = await waiting.ended
        assert isinstance(last, Failed)
        assert last.code == "request_cancelled"
        engine.submit(StatsRequest(id="s"), counters)
        assert await counters.ended == Stats("s", {"running": 0})

    with_engine(body)


def test_an_id_in_use_is_refused() -> None:
    async def body(engine: RemoteEngine, _: ChildProcess) -> None:
        first, second = Collected(), Collected()
        engine.submit(prompt("a !wait"), first)
        engine.submit(prompt("a"), second)
        assert isinstance(await second.ended, Failed)
        assert not first.ended.done()
        engine.cancel("r")
        await first.ended

    with_engine(body)


def test_a_request_above_the_frame_limit_is_refused_alone() -> None:
    async def body(engine: RemoteEngine, _: ChildProcess) -> None:
        large, small = Collected(), Collected()
        engine.submit(prompt("x" * (33 << 20), "large"), large)
        engine.submit(prompt("a", "small"), small)
        last = await large.ended
        assert isinstance(last, Failed)
        assert last.status == 413
        assert isinstance(await small.ended, Finished)

    with_engine(body)


def test_events_above_the_frame_limit_are_sent_apart_and_one_alone_ends_its_request(tmp_path: Path) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        engine = await RemoteEngine.connect(ours)
        sinks = {request_id: Collected() for request_id in ("halves", "whole", "small")}
        for request_id, sink in sinks.items():
            engine.submit(prompt("a", request_id), sink)
        half, usage = "x" * (17 << 20), Usage(1, 1)
        events = [
            *(TextDelta("halves", 0, half), TextDelta("halves", 0, half), Finished("halves", usage)),
            *(TextDelta("whole", 0, half + half), Finished("whole", usage), Finished("small", usage)),
        ]
        await asyncio.to_thread(ChildLink(theirs, ResultFiles(tmp_path)).send, events)
        assert isinstance(await sinks["halves"].ended, Finished)
        assert len(sinks["halves"].text) == 34 << 20
        assert isinstance(await sinks["whole"].ended, Failed)
        assert isinstance(await sinks["small"].ended, Finished)
        engine.close()
        await engine.wait_closed()
        theirs.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_when_the_child_is_killed_its_requests_end_with_engine_died() -> None:
    async def body(engine: RemoteEngine, child: ChildProcess) -> None:
        collected = [Collected() for _ in range(5)]
        for number, sink in enumerate(collected):
            engine.submit(prompt("a !wait", f"r{number}"), sink)
            await sink.started.wait()
        child.process.send_signal(signal.SIGKILL)
        for sink in collected:
            last = await sink.ended
            assert isinstance(last, Failed)
            assert (last.status, last.code) == (503, "engine_died")
        late = Collected()
        engine.submit(prompt("a"), late)
        assert isinstance(await late.ended, Failed)
        with pytest.raises(NotReady):
            _ = engine.ready

    with_engine(body)


def test_the_child_ends_when_the_socket_closes() -> None:
    async def body(engine: RemoteEngine, child: ChildProcess) -> None:
        sink = Collected()
        engine.submit(prompt("a !wait"), sink)
        await sink.started.wait()
        assert engine._transport is not None
        engine._transport.abort()  # no word of shutting down
        await sink.ended
        assert await asyncio.to_thread(child.process.wait, 10) == 0

    with_engine(body)


def test_a_child_that_loads_ends_when_the_socket_closes() -> None:
    child = start_child([*CHILD, "--slow-start", "60"], 1)
    assert child.sock is not None
    child.sock.close()
    assert child.process.wait(10) == 0


def test_a_stranger_without_the_token_is_not_the_child() -> None:
    async def run() -> None:
        child = start_child([*CHILD, "--slow-start", "0.2"], 1, use_tcp=True)
        assert child.listener is not None
        with socket.create_connection(child.listener.getsockname()) as stranger:
            stranger.sendall(b"x" * 32)
            sock = await child.connect()
            engine = await RemoteEngine.connect(sock)
            assert (await asyncio.wait_for(engine.wait_ready(), 10)).generation == 1
            stranger.settimeout(5)
            assert stranger.recv(1) == b""
        engine.close()
        await engine.wait_closed()
        child.process.wait(10)

    asyncio.run(run())


@pytest.mark.parametrize("rubbish", [b"\xff\xff\xff\xff", frame(b"\xc1"), frame(msgspec.msgpack.encode([["what", 1]]))])
def test_rubbish_from_the_child_closes_the_connection(rubbish: bytes) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        engine = await RemoteEngine.connect(ours)
        theirs.sendall(rubbish)
        await asyncio.wait_for(engine.wait_closed(), 5)
        with pytest.raises(EngineDied):
            await engine.wait_ready()
        theirs.close()

    asyncio.run(run())


def test_rubbish_from_the_parent_ends_the_child() -> None:
    child = start_child(CHILD, 1)
    assert child.sock is not None
    child.sock.setblocking(True)
    child.sock.sendall(b"\xff\xff\xff\xff")
    assert child.process.wait(10) == 0
    child.sock.close()


PARENT = """
import asyncio, sys
from braid.rest.child import ChildLink
from braid.rest.child_process import start_child
from braid.rest.remote import RemoteEngine

async def main():
    child = start_child(sys.argv[1:], 1)
    if "--slow-start" not in sys.argv:
        engine = await RemoteEngine.connect(await child.connect())
        await engine.wait_ready()
    print(child.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("options", [[], ["--slow-start", "60"]], ids=["ready", "loading"])
def test_when_the_parent_is_killed_the_child_ends(options: list[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, *CHILD, *options], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        child.wait(10)
    except psutil.TimeoutExpired:  # nobody reaps orphans here
        assert child.status() == psutil.STATUS_ZOMBIE


ORPHAN = """
import os, subprocess, sys
child = "import sys, time; from braid.rest.child import die_with_parent; die_with_parent(int(sys.argv[1])); "
child += "print(flush=True); time.sleep(60)"
with subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    print(process.pid, flush=True)
    process.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_the_kernel_ends_the_child_of_a_killed_parent_without_any_socket() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    try:
        child.wait(10)
    except psutil.TimeoutExpired:
        assert child.status() == psutil.STATUS_ZOMBIE


def supervised(body: Callable[[Supervisor, asyncio.Task[None]], Awaitable[None]], *options: str, **more: Any) -> None:
    async def run() -> None:
        supervisor = Supervisor(
            lambda generation: start_child([*CHILD, *options], generation), name="scripted", restarts=QUICK, **more
        )
        task = asyncio.create_task(supervisor.run())
        try:
            await asyncio.wait_for(body(supervisor, task), 30)
        finally:
            supervisor.close()
            await asyncio.wait([task])

    asyncio.run(run())


def test_a_dead_engine_is_started_again_with_a_higher_generation() -> None:
    ready: asyncio.Queue[EngineReady] = asyncio.Queue()

    async def body(supervisor: Supervisor, _: asyncio.Task[None]) -> None:
        with pytest.raises(NotReady, match="loading scripted"):
            _ = supervisor.ready
        for generation in (1, 2, 3):
            assert (await ready.get()).generation == generation
            assert supervisor.ready.generation == generation
            sink = Collected()
            supervisor.submit(prompt("a !wait", f"r{generation}"), sink)
            await sink.started.wait()
            assert supervisor.process_id is not None
            os.kill(supervisor.process_id, signal.SIGKILL)
            last = await sink.ended
            assert isinstance(last, Failed)
            assert last.code == "engine_died"
            late = Collected()
            supervisor.submit(prompt("a !wait"), late)
            refused = await late.ended
            assert isinstance(refused, Failed)
            assert refused.status == 503

    supervised(body, on_ready=ready.put_nowait)


def test_while_it_restarts_the_reason_is_told() -> None:
    ready: asyncio.Queue[EngineReady] = asyncio.Queue()

    async def body(supervisor: Supervisor, _: asyncio.Task[None]) -> None:
        await ready.get()
        sink = Collected()
        supervisor.submit(prompt("a !die"), sink)
        await sink.ended
        reasons = set()
        while ready.empty():
            try:
                _ = supervisor.ready
            except NotReady as error:
                reasons.add(error.message)
            await asyncio.sleep(0.005)
        assert "the engine ended with exit code 9 and is started again (generation 2)" in reasons

    supervised(body, on_ready=ready.put_nowait)


def test_an_engine_that_cannot_load_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def body(_: Supervisor, task: asyncio.Task[None]) -> None:
        with pytest.raises(RequestFailed, match="not b'GGUF'") as caught:
            await task
        assert caught.value.code == "invalid_model_file"

    supervised(body, "--broken")
    assert not [record for record in caplog.records if "ended" in record.message]


def test_a_server_that_is_stopped_while_its_engine_loads_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def body(supervisor: Supervisor, task: asyncio.Task[None]) -> None:
        while supervisor.process_id is None:
            await asyncio.sleep(0)
        supervisor.close()
        await task

    supervised(body, "--slow-start", "60")
    assert caplog.records == []


def test_an_engine_that_always_dies_while_loading_is_given_up() -> None:
    async def body(_: Supervisor, task: asyncio.Task[None]) -> None:
        with pytest.raises(BraidError, match=r"exit code 7.*never ready in 3 starts"):
            await task

    supervised(body, "--crash")
