"""An engine that is started again when it dies: the `EngineHandle` that `braid serve` gives to HTTP.

While no engine is there, `ready` raises `NotReady` with the reason, and requests end with it.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from braid.diffusion.jobs.messages import JobEvent, Nudge
from braid.errors import BraidError, EngineDied, NotReady
from braid.llm_core.engine.failure import RequestFailed, failed
from braid.llm_core.engine.messages import EngineReady
from braid.rest.child_process import ChildProcess
from braid.rest.remote import RemoteEngine
from braid.rest.wire_messages import OnJobEvent, OnSpans, WireSubmission

logger = logging.getLogger("braid.rest")

StartChild = Callable[[int], ChildProcess]
"""Starts the engine of a generation."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """How a dead engine is started again."""

    first_delay_s: float = 0.25
    max_delay_s: float = 30.0
    """The delay doubles up to here."""
    steady_after_s: float = 30.0
    """An engine that was ready this long has earned the first delay again."""
    max_failed_starts: int = 3
    """So many deaths before the first engine was ever ready, and we give up."""
    exit_timeout_s: float = 10.0
    """A process that has closed its socket and does not end is killed after this."""

    def __post_init__(self) -> None:
        if not 0 < self.first_delay_s <= self.max_delay_s:
            raise ValueError(f"{self.first_delay_s=} must be positive and at most {self.max_delay_s=}")


class Supervisor:
    """Keeps one engine process alive.

    Args:
        start_child: spawns the engine of a generation, without waiting for it.
        name: what is loaded, for messages.
        first: the first engine's process, where it was started before the event loop.
        on_ready: called each time an engine has loaded, and when it has loaded more.
        on_job_event: told how far jobs are.
        on_spans: given the spans of engines.
    """

    def __init__(
        self,
        start_child: StartChild,
        *,
        name: str,
        first: ChildProcess | None = None,
        on_ready: Callable[[EngineReady], None] = lambda ready: None,
        on_job_event: OnJobEvent = lambda event: None,
        on_spans: OnSpans = lambda event: None,
        restarts: Restarts | None = None,
    ) -> None:
        self._start_child = start_child
        self._name = name
        self._first = first
        self.on_ready = on_ready
        self.on_job_event = on_job_event
        self._on_spans = on_spans
        self._restarts = restarts or Restarts()
        self._generation = first.generation - 1 if first else 0
        self._engine: RemoteEngine | None = None
        self._child: ChildProcess | None = first
        self._is_stopping = False
        self._was_ready = False
        self._why_not = f"the engine is loading {name}"

    @property
    def ready(self) -> EngineReady:
        """What the engine loaded.

        Raises:
            NotReady: there is no engine now; the message says why.
        """
        if self._engine is None:
            raise NotReady(self._why_not)
        return self._engine.ready

    @property
    def process_id(self) -> int | None:
        """Of the engine that is running or loading."""
        return None if self._child is None else self._child.process.pid

    def submit(self, request: WireSubmission, on_event: Callable[[Any], None]) -> None:
        """Pass on; without an engine the request ends with `not_ready`."""
        if self._engine is None:
            on_event(failed(request.id, NotReady(self._why_not)))
        else:
            self._engine.submit(request, on_event)

    def send(self, nudge: Nudge) -> None:
        """Pass on; without an engine it is lost, and the next one looks into the store by itself."""
        if self._engine is not None:
            self._engine.send(nudge)

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        """Pass on."""
        if self._engine is not None:
            self._engine.cancel(request_id, reason)

    def cancel_all(self, reason: str) -> None:
        """Ask for the end of every open request."""
        if self._engine is not None:
            self._engine.cancel_all(reason)

    def close(self) -> None:
        """Stop the engine and start no other."""
        self._is_stopping = True
        self._why_not = "the server is stopping"
        if self._engine is not None:
            self._engine.close()
        elif self._child is not None:
            self._child.process.kill()  # still loading: nothing to lose

    async def run(self) -> None:
        """Start engines until `close`.

        Raises:
            RequestFailed: the engine says that it cannot load; starting it again would not help.
            EngineDied: it died again and again without ever being ready.
        """
        delay_s = self._restarts.first_delay_s
        num_failed_starts = 0
        while not self._is_stopping:
            seconds_ready = await self._run_one()
            num_failed_starts = 0 if self._was_ready else num_failed_starts + 1
            if self._is_stopping:
                return
            if num_failed_starts >= self._restarts.max_failed_starts:
                raise EngineDied(f"{self._why_not}; it was never ready in {num_failed_starts} starts")
            if seconds_ready >= self._restarts.steady_after_s:
                delay_s = self._restarts.first_delay_s
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._restarts.max_delay_s)

    async def _run_one(self) -> float:
        """One engine from its start to its end; returns how many seconds it was ready."""
        loop = asyncio.get_running_loop()
        self._generation += 1
        self._child = child = self._first or self._start_child(self._generation)
        self._first = None
        remote: RemoteEngine | None = None
        try:
            remote = await RemoteEngine.connect(await child.connect())
            remote.on_ready, remote.on_job_event = self._tell_ready, self._tell_job
            remote.on_spans = self._on_spans
            ready = await remote.wait_ready()
            since = loop.time()
            self._engine, self._was_ready = remote, True
            self.on_ready(ready)
            if self._is_stopping:
                remote.close()
            await remote.wait_closed()
            return loop.time() - since
        except RequestFailed as error:  # it has said why it ends; no other is started
            self._is_stopping, self._why_not = True, error.message
            raise
        except (BraidError, TimeoutError, OSError) as error:
            if not self._is_stopping:  # else it is we who ended it
                logger.warning("the engine did not start: %s", error)
            return 0.0
        finally:
            self._engine = None
            if remote is None:
                child.process.kill()
            else:
                remote.close()
            code = await _exit_code(child.process, self._restarts.exit_timeout_s)
            await asyncio.to_thread(child.remove_files)
            self._child = None
            self._tell_end(code)

    def _tell_ready(self, ready: EngineReady) -> None:
        self.on_ready(ready)

    def _tell_job(self, event: JobEvent) -> None:
        self.on_job_event(event)

    def _tell_end(self, code: int) -> None:
        if self._is_stopping:
            return
        cause = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        self._why_not = f"the engine ended {cause} and is started again (generation {self._generation + 1})"
        logger.error("engine %d of %s ended %s", self._generation, self._name, cause)


async def _exit_code(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Wait for a process that has closed its socket; kill it if it does not end."""
    try:
        return await asyncio.to_thread(process.wait, timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return await asyncio.to_thread(process.wait)
