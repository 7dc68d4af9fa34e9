"""The nouns of the shared core: what a request is, what a workload promises, what a step was.

Nothing here knows text, images or video. A modality is a `Workload`; the scheduler sees only its `Offer`s.
All times are seconds of the scheduler's monotonic clock; durations carry `_ms`, sizes `_bytes`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from braid.errors import BraidError
from braid.tracing.request_trace import NULL_TRACE, RequestTrace


class RequestClass(enum.IntEnum):
    """How urgently somebody waits. Lower is more urgent; the order breaks ties between equal deadlines."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2


class EventSink(Protocol):
    """Where a request's events go. Called on the engine thread: it must only hand over, never block."""

    def __call__(self, event: Any, /) -> None: ...


@dataclass(slots=True)
class Request:
    """What a user asked for, from submission to its last event.

    `params` is frozen and belongs to exactly one workload, which recognises it by type.
    """

    id: str
    params: Any
    sink: EventSink
    request_class: RequestClass = RequestClass.INTERACTIVE
    tenant: str = ""
    """Whose share this counts against: an API key's id, or empty."""
    deadline: float | None = None
    """Clock time by which the whole request should be done, or None for the workload's own default."""
    arrival: float = 0.0
    """Set by the scheduler at submission."""
    trace: RequestTrace = NULL_TRACE
    """Workloads open their spans on it."""


class Offer(msgspec.Struct, frozen=True):
    """One bounded step that one request could take now."""

    request_id: str
    workload: str
    kind: str
    """What the step does, for the journal and the cost model: `decode`, `prefill`, `denoise`, `decode_tile`."""
    batch_key: Hashable
    """Offers of one workload with equal keys may share a step. `None` never shares."""
    request_class: RequestClass
    deadline: float
    cost_ms: float
    """Predicted time of this step run alone."""
    num_bytes: int = 0
    """Predicted peak of this step's workspace."""
    tenant: str = ""
    units: int = 1
    """Tokens, latent tokens, tiles: what the cost model counts."""
    payload: Any = None
    """The workload's own handle on what to run; the scheduler never looks inside."""


class StepResult(msgspec.Struct, frozen=True, gc=False):
    """What a step did, as measured by whoever ran it."""

    request_ids: tuple[str, ...]
    """The requests that were in the step, which may be fewer than were offered."""
    kind: str
    units: int
    device_ms: float
    host_ms: float = 0.0
    """Time around the device work: planning, sampling on the host, detokenising."""
    peak_bytes: int = 0
    predicted_ms: float = 0.0


class Workload(Protocol):
    """A modality. Deciding (`offers`) is kept apart from doing (`run`)."""

    name: str

    def accepts(self, params: Any) -> bool:
        """Whether requests with these params are this workload's."""
        ...

    def admit(self, request: Request, now: float) -> None:
        """Take a request. Raises `BraidError` to refuse it, and is then not left with any of its state."""
        ...

    def offers(self, now: float) -> Iterable[Offer]:
        """The steps that could run now, at most one per request. Must not change anything a user can see."""
        ...

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        """Run one step for these offers, most urgent first; they share a batch key.

        The step must be predicted to end within `budget_ms`; offers that do not fit are left out (the first never is).
        If it raises, no request has advanced: the scheduler may run the offers one by one to find the bad one.
        """
        ...

    def cancel(self, request_id: str, error: BraidError) -> bool:
        """End a request now, free all it holds and emit `error` to its sink. False if it is not here."""
        ...


class JournalEntry(msgspec.Struct, frozen=True, gc=False):
    """One step that ran."""

    number: int
    workload: str
    kind: str
    request_ids: tuple[str, ...]
    lane: str
    start: float
    device_ms: float
    host_ms: float
    predicted_ms: float
    peak_bytes: int
    units: int
    error: str | None = None


@dataclass(slots=True)
class Cancellation:
    """A cancel that waits in the scheduler's inbox."""

    request_id: str
    reason: str = "cancelled by the client"


Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How long a step may hold the device."""

    max_step_ms: float = 60.0
    """While an interactive request waits. Default for a CPU; 30 on a GPU."""
    idle_step_ms: float = 250.0
    """While nobody interactive waits."""

    def __post_init__(self) -> None:
        if not 0 < self.max_step_ms <= self.idle_step_ms:
            raise ValueError(f"max_step_ms={self.max_step_ms} must be positive and at most {self.idle_step_ms=}")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What `policy.pick` promises to whom."""

    min_share: dict[RequestClass, float] = field(
        default_factory=lambda: {
            RequestClass.INTERACTIVE: 0.5,
            RequestClass.STANDARD: 0.2,
            RequestClass.BATCH: 0.2,
        }
    )
    """The part of device time that a class with waiting work gets in every window. A chat writes as fast as it is let,
    several times faster than anybody reads, so what films get costs its reader nothing."""
    share_window_ms: float = 2000.0

    def __post_init__(self) -> None:
        if any(s < 0 for s in self.min_share.values()) or sum(self.min_share.values()) >= 1:
            raise ValueError(f"min_share={self.min_share} must be non-negative and add up to less than 1")
