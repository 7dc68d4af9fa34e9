"""The loop that owns the device: admit, pick, run, finish.

It knows workloads and their offers, never what they do. Everything but `add`, `submit`, `cancel`, `wake`, `drain` and
`stop` happens on the one thread that calls `run` (or `run_once`); those six may be called from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from braid.errors import BraidError, EngineDied, InvalidRequest, NotReady, Overloaded, RequestCancelled
from braid.llm_core.core import (
    Cancellation,
    Clock,
    JournalEntry,
    Offer,
    PolicyConfig,
    Request,
    RequestClass,
    StepLimits,
    StepResult,
    Workload,
)
from braid.llm_core.engine.failure import as_braid_error
from braid.llm_core.scheduler.cost import CostModel
from braid.llm_core.scheduler.journal import Journal
from braid.llm_core.scheduler.policy import Decision, ServiceHistory, pick
from braid.llm_core.scheduler.ticket import Ticket

LANE = "device"
"""The one lane of a device that takes turns."""

_REQUEST_COST = "request"
"""Under this key the cost model learns the device time of whole requests."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Timed(Protocol):
    """A workload that may have nothing to offer now and something later without being told."""

    def next_wake(self, now: float) -> float | None:
        """Clock time at which to ask for offers again, or None."""
        ...


class Scheduler:
    """Runs one bounded step after the other.

    Args:
        workloads: asked in this order who accepts a request.
        costs: learns the device time of requests, for `Overloaded.retry_after_s`.
        max_waiting_requests: requests that may wait for their first step; more are refused with `Overloaded`.
    """

    def __init__(
        self,
        workloads: Sequence[Workload],
        *,
        policy: PolicyConfig | None = None,
        limits: StepLimits | None = None,
        journal: Journal | None = None,
        costs: CostModel | None = None,
        clock: Clock = time.monotonic,
        max_waiting_requests: int = 1024,
    ) -> None:
        self.journal = journal or Journal()
        self.limits = limits or StepLimits()
        self._policy = policy or PolicyConfig()
        self._costs = costs or CostModel()
        self._history = ServiceHistory(self._policy, self.limits.idle_step_ms)
        self._clock = clock
        self._max_waiting_requests = max_waiting_requests
        self._workloads = {workload.name: workload for workload in workloads}
        if len(self._workloads) != len(workloads):
            raise ValueError(f"workloads must have different names: {[w.name for w in workloads]}")
        self._timed = [workload for workload in workloads if isinstance(workload, Timed)]

        self._live: dict[str, Ticket] = {}
        self._suspects: set[str] = set()
        """Requests of a shared step that failed; each runs alone next, so that the bad one is found."""
        self._is_stalled = False
        """In the last step nobody ran."""
        self._collected_at = 0.0
        """When offers were last asked for."""
        self._is_stepping = False
        self._leaving: list[Ticket] = []
        """Requests that ended in the step under way. They are told after it was written, so that whoever has a result
        finds all its steps in the journal."""
        self._ghosts: set[str] = set()
        """Requests that ended but that their workload failed to let go of; their offers are ignored."""

        self._lock = threading.Lock()
        self._wakeup = threading.Condition(self._lock)
        self._all_ended = threading.Condition(self._lock)
        # Guarded by the lock:
        self._inbox: deque[Ticket | Cancellation] = deque()
        self._num_open = 0
        self._num_leaving = 0
        """Requests that ended and whose last event has not been handed over."""
        self._num_waiting = 0
        self._is_nudged = False
        self._is_draining = False
        self._is_stopping = False
        self._is_closed = False

    # -- from any thread ---------------------------------------------------------------------------------------------

    def add(self, workload: Workload) -> None:
        """One more workload; asked last who accepts a request.

        Raises:
            ValueError: there is one of that name.
        """
        with self._lock:
            if workload.name in self._workloads:
                raise ValueError(f"there is a workload {workload.name!r} already")
            # New containers: the engine thread may be going through the old ones.
            self._workloads = {**self._workloads, workload.name: workload}
            self._timed = [*self._timed, workload] if isinstance(workload, Timed) else self._timed
            self._wakeup.notify()

    def submit(self, request: Request, *, may_refuse: bool = True) -> None:
        """Hand over a request; never blocks and never raises. It ends with exactly one last event on its sink.

        Args:
            may_refuse: False for work on behalf of a request that was accepted: it is let in when the queue is full and
                while the scheduler drains.
        """
        request.arrival = self._clock()
        ticket = Ticket(request, on_end=self._leave, on_deaf=self._cancel_deaf)
        with self._lock:
            ticket.refusal = self._refusal() if may_refuse or self._is_closed else None
            ticket.is_waiting = ticket.refusal is None
            self._num_waiting += ticket.is_waiting
            self._num_open += 1
            if not self._is_closed:
                self._inbox.append(ticket)
                self._wakeup.notify()
                return
        ticket.fail(_stopped())

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        """End a request before the next step. Unknown ids are ignored."""
        with self._lock:
            if not self._is_closed:
                self._inbox.append(Cancellation(request_id, reason))
                self._wakeup.notify()

    def wake(self) -> None:
        """Have offers collected again: a workload has something new to offer."""
        with self._lock:
            self._is_nudged = True
            self._wakeup.notify()

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the others to end. False if some did not within `timeout` seconds."""
        with self._lock:
            self._is_draining = True
            return self._all_ended.wait_for(lambda: self._num_open == self._num_leaving == 0, timeout)

    def stop(self) -> None:
        """Let `run` return after the step under way; what has not ended by then ends with `EngineDied`."""
        with self._lock:
            self._is_stopping = True
            self._wakeup.notify()

    @property
    def num_open_requests(self) -> int:
        """Requests submitted and not ended."""
        return self._num_open

    @property
    def num_waiting_requests(self) -> int:
        """Of those, the ones whose first step has not run."""
        return self._num_waiting

    def _refusal(self) -> BraidError | None:
        if self._is_closed:
            return _stopped()
        if self._is_draining:
            return NotReady("the engine is finishing what it has and takes no new requests")
        if self._num_waiting >= self._max_waiting_requests:
            request_s = self._costs.predict(_REQUEST_COST, (1.0,)) / 1000
            return Overloaded(
                f"{self._num_waiting} requests are waiting, as many as may (max_waiting_requests)",
                retry_after_s=min(max(1.0, self._num_waiting * request_s), 3600.0),
            )
        return None

    # -- on the engine thread ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run steps until `stop`; parked while there is nothing to do."""
        try:
            while not self._is_stopping:
                if not self.run_once():
                    self._park()
        finally:
            self._close()

    def run_once(self) -> bool:
        """Take in what was submitted and cancelled, then run one step. False if nothing was on offer."""
        self._is_nudged = False
        if self._inbox:
            self._open_inbox()
        now = self._collected_at = self._clock()
        offers = self._collect(now)
        if not offers:
            self._history.rest()
            return False
        self._history.notice(offers)
        decision = pick(offers, now, self._history, self._policy)
        assert decision is not None
        self._step(decision, offers)
        return True

    def _open_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Cancellation):
                ticket = self._live.get(item.request_id)
                if ticket is not None:
                    self._end(ticket, RequestCancelled(f"request {item.request_id} ended: {item.reason}"))
            elif item.refusal is not None:
                item.fail(item.refusal)
            else:
                self._admit(item)

    def _admit(self, ticket: Ticket) -> None:
        request = ticket.request
        if request.id in self._live:
            ticket.fail(InvalidRequest(f"id={request.id!r} belongs to a request that has not ended", param="id"))
            return
        self._live[request.id] = ticket
        self._ghosts.discard(request.id)
        try:
            ticket.give_to(self._workload_for(request))
            assert ticket.workload is not None
            ticket.workload.admit(request, self._clock())
            request.trace.event("admitted")
        except Exception as error:
            self._end(ticket, as_braid_error(error, f"admitting request {request.id}"))

    def _workload_for(self, request: Request) -> Workload:
        for workload in self._workloads.values():
            if workload.accepts(request.params):
                return workload
        raise InvalidRequest(
            f"nothing here runs a {type(request.params).__name__}; there is {', '.join(self._workloads) or 'nothing'}"
        )

    def _collect(self, now: float) -> list[Offer]:
        offers: list[Offer] = []
        for workload in self._workloads.values():
            try:
                offers += workload.offers(now)
            except Exception as error:
                offers = [offer for offer in offers if offer.workload != workload.name]
                self._end_all_of(workload, as_braid_error(error, f"collecting the offers of {workload.name}"))
        if self._ghosts:
            offers = [offer for offer in offers if offer.request_id not in self._ghosts]
        return offers

    def _step(self, decision: Decision, offers: Sequence[Offer]) -> None:
        members = self._apart(decision.members) if self._suspects else decision.members
        lead = members[0]
        tickets = [self._live.get(member.request_id) for member in members]
        budget_ms = self._budget_ms(members, offers)
        start = self._clock()
        problem = None
        self._is_stepping = True
        try:
            result = self._workloads[lead.workload].run(members, budget_ms)
        except Exception as error:
            problem = error
            elapsed_ms = (self._clock() - start) * 1000
            result = StepResult(tuple(member.request_id for member in members), lead.kind, 0, elapsed_ms)
        self._account(members, tickets, result)
        has_run = bool(result.request_ids)
        if has_run or not self._is_stalled:  # a wait for memory is one entry, however often it is tried again
            self._write(lead, start, result, problem)
        self._is_stalled = not has_run
        self._tell_leaving()
        if problem is not None:
            self._blame(members, problem)
        elif self._suspects:
            self._suspects.difference_update(result.request_ids)

    def _budget_ms(self, members: Sequence[Offer], offers: Sequence[Offer]) -> float:
        """Short while somebody interactive waits on the work of another, inside the step or out of it."""
        interactive = [offer for offer in offers if offer.request_class == RequestClass.INTERACTIVE]
        is_for_itself = len(interactive) == len(members) == 1 and interactive[0] is members[0]
        return self.limits.max_step_ms if interactive and not is_for_itself else self.limits.idle_step_ms

    def _apart(self, members: tuple[Offer, ...]) -> tuple[Offer, ...]:
        """Where suspects would share the step, the most urgent of them runs alone instead."""
        for member in members:
            if member.request_id in self._suspects:
                return (member,)
        return members

    def _account(self, members: Sequence[Offer], tickets: Sequence[Ticket | None], result: StepResult) -> None:
        ran, ran_tickets = members, tickets
        if len(result.request_ids) != len(members):
            ids = set(result.request_ids)
            ran = [member for member in members if member.request_id in ids]
            ran_tickets = [ticket for ticket in tickets if ticket is not None and ticket.request.id in ids]
        self._history.record(self._clock(), ran, result.device_ms)
        part_ms = result.device_ms / max(len(ran), 1)
        for ticket in ran_tickets:
            if ticket is None:
                continue
            ticket.device_ms += part_ms
            if ticket.is_waiting:
                self._has_run(ticket)
            if ticket.is_ended:
                self._costs.observe(_REQUEST_COST, (1.0,), ticket.device_ms)

    def _write(self, lead: Offer, start: float, result: StepResult, problem: Exception | None) -> None:
        self.journal.append(
            JournalEntry(
                number=self.journal.next_number,
                workload=lead.workload,
                kind=result.kind,
                request_ids=result.request_ids,
                lane=LANE,
                start=start,
                device_ms=result.device_ms,
                host_ms=result.host_ms,
                predicted_ms=result.predicted_ms or lead.cost_ms,
                peak_bytes=result.peak_bytes,
                units=result.units,
                error=None if problem is None else f"{type(problem).__name__}: {problem}",
            )
        )

    def _blame(self, members: Sequence[Offer], problem: Exception) -> None:
        """A request whose step failed alone ends; those that failed together are each tried alone first."""
        if len(members) > 1:
            _log.warning("a step of %d requests failed (%r); they run one by one", len(members), problem)
            self._suspects.update(member.request_id for member in members)
            return
        (offer,) = members
        self._suspects.discard(offer.request_id)
        ticket = self._live.get(offer.request_id)
        error = as_braid_error(problem, f"step {offer.workload}/{offer.kind} of request {offer.request_id}")
        if ticket is None:
            self._ghosts.add(offer.request_id)
        else:
            self._end(ticket, error)

    def _end(self, ticket: Ticket, error: BraidError) -> None:
        """End a request wherever it is: its workload frees what it holds and tells it; failing that, we tell it."""
        if ticket.workload is not None:
            try:
                ticket.workload.cancel(ticket.request.id, error)
            except Exception:
                _log.exception("workload %s could not let go of request %s", ticket.workload.name, ticket.request.id)
                self._ghosts.add(ticket.request.id)
        if not ticket.is_ended:
            ticket.fail(error)

    def _end_all_of(self, workload: Workload, error: BraidError) -> None:
        for ticket in list(self._live.values()):
            if ticket.workload is workload:
                self._end(ticket, error)

    def _has_run(self, ticket: Ticket) -> None:
        with self._lock:
            self._num_waiting -= ticket.is_waiting
            ticket.is_waiting = False

    def _leave(self, ticket: Ticket) -> None:
        self._forget(ticket)
        if self._is_stepping:
            self._leaving.append(ticket)
        else:
            self._tell(ticket)

    def _forget(self, ticket: Ticket) -> None:
        if self._live.get(ticket.request.id) is ticket:
            del self._live[ticket.request.id]
            self._suspects.discard(ticket.request.id)
        with self._lock:
            self._num_waiting -= ticket.is_waiting
            ticket.is_waiting = False
            self._num_open -= 1
            self._num_leaving += 1

    def _tell_leaving(self) -> None:
        self._is_stepping = False
        if self._leaving:
            leaving, self._leaving = self._leaving, []
            for ticket in leaving:
                self._tell(ticket)

    def _tell(self, ticket: Ticket) -> None:
        ticket.tell_end()
        with self._lock:
            self._num_leaving -= 1
            if self._num_open == self._num_leaving == 0:
                self._all_ended.notify_all()

    def _cancel_deaf(self, ticket: Ticket) -> None:
        self.cancel(ticket.request.id, "cancelled because its listener failed")

    def _park(self) -> None:
        # Asked as of the moment at which there were no offers: a wait that has ended since then must not be missed.
        wakes = [wake for workload in self._timed if (wake := workload.next_wake(self._collected_at)) is not None]
        with self._lock:
            if not (self._inbox or self._is_nudged or self._is_stopping):
                self._wakeup.wait(max(0.0, min(wakes) - self._clock()) if wakes else None)

    def _close(self) -> None:
        self._tell_leaving()  # of a step that broke off
        with self._lock:
            self._is_closed = True
        for ticket in list(self._live.values()):
            self._end(ticket, _stopped())
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Ticket):
                item.fail(_stopped())


def _stopped() -> BraidError:
    return EngineDied("the engine was stopped before this request ended")
