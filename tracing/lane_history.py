"""The last steps of the device, to tell who ran between two steps of one request."""

from __future__ import annotations

from collections import deque

from braid.tracing.step_record import StepRecord
from braid.tracing.step_tally import Gap

LOOK_BACK = 512
"""Steps. What ran before them in a long gap is not named."""


class LaneHistory:
    """A ring of the last steps of all lanes."""

    def __init__(self, look_back: int = LOOK_BACK) -> None:
        self._steps: deque[StepRecord] = deque(maxlen=look_back)

    def add(self, step: StepRecord) -> None:
        """The next step that ran."""
        self._steps.append(step)

    def between(self, number: int, step: StepRecord, request_id: str) -> Gap | None:
        """Who had the step's lane after step `number`, up to `step`, which is the newest; None if nobody did."""
        if step.number == number + 1:
            return None
        gap = Gap()
        for other in reversed(self._steps):
            if other.number <= number:
                break
            if other.number < step.number and other.lane == step.lane and request_id not in other.request_ids:
                ms = other.device_ms + other.host_ms
                gap.ms += ms
                for other_id in other.request_ids:
                    gap.by_request[other_id] = gap.by_request.get(other_id, 0.0) + ms
        return gap if gap.by_request else None
