"""The engine's side of the socket: an in-process engine, driven by frames of requests, answering in frames of events.

One thread reads, one writes; the engine has its own. The process ends when the socket does: a parent that was killed
leaves no engine behind.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from braid.diffusion.jobs.messages import CancelJob, JobsWaiting
from braid.errors import BraidError
from braid.llm_core.engine.failure import as_braid_error, failed
from braid.llm_core.engine.messages import CancelRequest, Encoded, EncodeRequest, EngineReady, ShutdownRequest
from braid.rest.frames import FrameReader, ProtocolError, frame
from braid.rest.result_files import ResultFiles
from braid.rest.wire_messages import MediaEngine, OwnEvent, WireEvent, WireMessage

logger = logging.getLogger("braid.engine")

TOKEN_VARIABLE = "BRAID_ENGINE_TOKEN"
"""Environment, not arguments: other users can read a process's arguments."""

MAX_WAITING_EVENTS = 200_000
"""Events that the parent has not read. It always reads; if it does not, it hangs, and memory must not fill."""

MAX_WAITING_REQUESTS = 1024
"""Read and not yet taken by the engine; beyond them the socket fills, and then the parent refuses."""

Tell = Callable[[OwnEvent], None]
MAX_EVENTS_PER_FRAME = 512
READ_BYTES = 1 << 18
CLOSE_GRACE_S = 5.0
EXIT_CANNOT_LOAD = 3
PR_SET_PDEATHSIG = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `child_process.start_child` appends to the command of a child."""
    parser.add_argument("--socket", required=True, help="fd:N, or tcp:PORT with a token in the environment")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--generation", type=int, required=True, help="how many engines there were, this one included")
    parser.add_argument("--files", type=Path, required=True, help="a folder to make for results that are large")


def run_child(arguments: argparse.Namespace, build: Callable[[Tell], MediaEngine]) -> int:
    """Be an engine process until the parent is gone or says stop; returns the exit code.

    Args:
        build: loads, given what takes events that the engine tells of its own accord, from any thread. If it raises a
            `BraidError`, that is told to the parent: trying again would not help.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole terminal or service; the parent decides
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(arguments.parent)
    link = ChildLink(connect(arguments.socket), ResultFiles(arguments.files), generation=arguments.generation)
    link.start_reading()
    try:
        engine = build(link.tell)
    except BraidError as error:
        link.send([failed("", error)])
        return EXIT_CANNOT_LOAD
    link.send_ready(engine.ready)
    link.serve(engine)
    _exit_even_if_stuck()
    engine.close()
    link.close()
    return 0


class ChildLink:
    """The connection to the parent: a reading thread, one that writes files, and `serve` on the caller's.

    Args:
        files: where results go that are too large for the socket.
        generation: how many engines there were, this one included.
    """

    def __init__(self, sock: socket.socket, files: ResultFiles, *, generation: int = 1) -> None:
        self._socket = sock
        self._generation = generation
        self._files = files
        self._file_writer = ThreadPoolExecutor(1, thread_name_prefix="braid-link-files")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[WireMessage]).decode
        self._requests: queue.Queue[WireMessage | None] = queue.Queue(MAX_WAITING_REQUESTS)
        self._events: queue.SimpleQueue[WireEvent | None] = queue.SimpleQueue()
        self._is_serving = False

    def start_reading(self) -> None:
        """Notice the parent's end from now on, even while a model loads."""
        threading.Thread(target=self._read, name="braid-link-reader", daemon=True).start()

    def serve(self, engine: MediaEngine) -> None:
        """Pass requests to the engine and events to the parent, until either end stops."""
        self._is_serving = True
        threading.Thread(target=self._submit_all, args=(engine,), name="braid-link-intake", daemon=True).start()
        while (events := self._waiting_events()) is not None:
            try:
                self.send(events)
            except OSError:
                return  # the parent is gone; the reader sees it too

    def tell(self, event: OwnEvent) -> None:
        """Pass on what nobody has asked for, once the engine is served; never blocks."""
        self._events.put(self._with_generation(event) if isinstance(event, EngineReady) else event)

    def send_ready(self, ready: EngineReady) -> None:
        """Say what was loaded, before anything else is said.

        Raises:
            OSError: the parent is gone.
        """
        self.send([self._with_generation(ready)])

    def _with_generation(self, ready: EngineReady) -> EngineReady:
        return msgspec.structs.replace(ready, generation=self._generation)

    def close(self) -> None:
        """Remove what nobody has read."""
        self._file_writer.shutdown(cancel_futures=True)
        self._files.close()

    def send(self, events: Sequence[WireEvent]) -> None:
        """Write events in one frame; what cannot travel ends its own request only.

        Raises:
            OSError: the parent is gone.
        """
        try:
            data = frame(self._encode(events))
        except (ProtocolError, TypeError) as error:  # above the limit; a tensor
            if len(events) > 1:
                for event in events:
                    self.send([event])
                return
            request_id: str = getattr(events[0], "request_id", "")
            logger.error("an event of request %s cannot be sent: %s", request_id, error)
            data = frame(self._encode([failed(request_id, BraidError("the result is too large to send"))]))
        self._socket.sendall(data)

    def _waiting_events(self) -> list[WireEvent] | None:
        """The events that wait, at least one; None at the end."""
        if self._events.qsize() > MAX_WAITING_EVENTS:
            logger.error("the parent has left %d events unread: giving up", self._events.qsize())
            return None
        events: list[WireEvent] = []
        while not events or (len(events) < MAX_EVENTS_PER_FRAME and not self._events.empty()):
            event = self._events.get()
            if event is None:
                return None
            events.append(event)
        return events

    def _read(self) -> None:
        frames = FrameReader()
        try:
            while data := self._socket.recv(READ_BYTES):
                for payload in frames.feed(data):
                    for message in self._decode(payload):
                        self._requests.put(message)
        except (ProtocolError, msgspec.MsgspecError) as error:
            logger.error("the parent sent what cannot be read: %s", error)
        except OSError as error:
            logger.info("the connection to the parent broke: %s", error)
        self._stop()

    def _stop(self) -> None:
        if not self._is_serving:  # still loading, which may take long and cannot be interrupted
            os._exit(0)
        _exit_even_if_stuck()
        self._requests.put(None)
        self._events.put(None)

    def _submit_all(self, engine: MediaEngine) -> None:
        while (message := self._requests.get()) is not None:
            if isinstance(message, ShutdownRequest):
                self._events.put(None)
                return
            self._submit(engine, message)

    def _submit(self, engine: MediaEngine, message: WireMessage) -> None:
        assert not isinstance(message, ShutdownRequest)
        if isinstance(message, JobsWaiting | CancelJob):
            engine.send(message)
            return
        if isinstance(message, CancelRequest):
            engine.cancel(message.id, message.reason)
            return
        try:
            engine.submit(message, self._take_encoding if isinstance(message, EncodeRequest) else self._events.put)
        except Exception:  # one request must not end the process and with it all others
            logger.exception("request %s could not be submitted", message.id)
            self._events.put(failed(message.id, BraidError("the engine could not take this request")))

    def _take_encoding(self, event: WireEvent) -> None:
        """Called on the engine's thread, which a file must not hold up, nor the events of the others."""
        if isinstance(event, Encoded):
            self._file_writer.submit(self._write_file, event)
        else:
            self._events.put(event)

    def _write_file(self, event: Encoded) -> None:
        try:
            self._events.put(self._files.write(event))
        except Exception as error:
            logger.exception("the result of request %s could not be written", event.request_id)
            self._events.put(failed(event.request_id, as_braid_error(error, f"writing {event.request_id}")))


def connect(address: str) -> socket.socket:
    """The socket to the parent: inherited (`fd:N`), or on the loopback with the token as proof (`tcp:PORT`)."""
    kind, _, number = address.partition(":")
    if kind == "fd":
        return socket.socket(fileno=int(number))
    sock = socket.create_connection(("127.0.0.1", int(number)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(bytes.fromhex(os.environ[TOKEN_VARIABLE]))
    return sock


def die_with_parent(parent: int) -> None:
    """On Linux, have the kernel end this process with its parent; elsewhere the end of the socket does."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(0)


def _exit_even_if_stuck() -> None:
    timer = threading.Timer(CLOSE_GRACE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
