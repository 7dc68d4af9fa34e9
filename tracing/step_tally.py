"""What the steps within a span come to: times, bytes, who shared them, and who ran in between."""

from __future__ import annotations

from dataclasses import dataclass, field

from braid.tracing.span import AttributeValue
from braid.tracing.step_record import StepRecord

MAX_NAMED = 16
"""Requests that a span names one by one."""


@dataclass(slots=True)
class Gap:
    """What ran on the lane between two steps of one request."""

    ms: float = 0.0
    by_request: dict[str, float] = field(default_factory=dict)
    """Milliseconds of the steps that each was in."""


@dataclass(slots=True)
class StepTally:
    """The sum of some steps, as one of their requests sees it."""

    num_steps: int = 0
    device_ms: float = 0.0
    share_ms: float = 0.0
    """Of the device time, with each step divided by the number of requests in it."""
    host_ms: float = 0.0
    predicted_ms: float = 0.0
    units: int = 0
    peak_bytes: int = 0
    lanes: dict[str, None] = field(default_factory=dict)
    mates: dict[str, None] = field(default_factory=dict)
    others_ms: float = 0.0
    others: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    num_passes: int = 0
    """Of guidance, in all evaluations."""
    _last_ids: tuple[str, ...] = ()

    def add(self, step: StepRecord) -> None:
        """One more step."""
        self.num_steps += 1
        self.device_ms += step.device_ms
        self.host_ms += step.host_ms
        self.predicted_ms += step.predicted_ms
        self.units += step.units
        self.peak_bytes = max(self.peak_bytes, step.peak_bytes)
        ids = step.request_ids
        self.share_ms += step.device_ms / max(len(ids), 1)
        if ids is not self._last_ids:  # batches stay together for many steps
            self._last_ids = ids
            self.mates.update(dict.fromkeys(ids))
            self.lanes[step.lane] = None

    def add_gap(self, gap: Gap) -> None:
        """The lane was others' for this time."""
        self.others_ms += gap.ms
        for request_id, ms in gap.by_request.items():
            self.others[request_id] = self.others.get(request_id, 0.0) + ms

    def add_operation(self, kind: str, *, num_passes: int = 0) -> None:
        """A pipeline began one more operation of this kind."""
        self.operations[kind] = self.operations.get(kind, 0) + 1
        self.num_passes += num_passes

    def merge(self, part: StepTally) -> None:
        """Add what a child span came to."""
        self.num_steps += part.num_steps
        self.device_ms += part.device_ms
        self.share_ms += part.share_ms
        self.host_ms += part.host_ms
        self.predicted_ms += part.predicted_ms
        self.units += part.units
        self.peak_bytes = max(self.peak_bytes, part.peak_bytes)
        self.lanes.update(part.lanes)
        self.mates.update(part.mates)
        self.others_ms += part.others_ms
        for request_id, ms in part.others.items():
            self.others[request_id] = self.others.get(request_id, 0.0) + ms
        for kind, count in part.operations.items():
            self.operations[kind] = self.operations.get(kind, 0) + count
        self.num_passes += part.num_passes

    def attributes(self) -> dict[str, AttributeValue]:
        """As a span shows them; nothing where no step ran."""
        found: dict[str, AttributeValue] = {
            f"braid.operations.{kind}": count for kind, count in self.operations.items()
        }
        if self.num_passes:
            found["braid.guidance_passes"] = self.num_passes
        if self.others_ms:
            first = sorted(self.others, key=self.others.__getitem__, reverse=True)[:MAX_NAMED]
            found |= {"braid.preempted_ms": round(self.others_ms, 3), "braid.preempted_by": first}
        if not self.num_steps:
            return found
        return found | {
            "braid.steps": self.num_steps,
            "braid.device_ms": round(self.device_ms, 4),
            "braid.device_share_ms": round(self.share_ms, 4),
            "braid.host_ms": round(self.host_ms, 4),
            "braid.predicted_ms": round(self.predicted_ms, 4),
            "braid.units": self.units,
            "braid.peak_bytes": self.peak_bytes,
            "braid.lane": ",".join(self.lanes),
        }
