"""How much of a request becomes spans: stages always do, steps within them as somebody chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from braid.tracing.sampling import TraceSampling, ratio_from

SEGMENTS_VARIABLE = "BRAID_TRACE_SEGMENTS"
"""1 makes every step of the device a span."""
STEPS_VARIABLE = "BRAID_TRACE_STEPS"
"""The share of traces, 0 to 1, in which the steps of samplers are spans; all if left out."""


@dataclass(frozen=True, slots=True)
class SpanDetail:
    """What becomes a span beside requests and their phases."""

    has_segments: bool = False
    """Every step of the device."""
    step_sampling: TraceSampling = field(default_factory=lambda: TraceSampling(follows_parent=False))
    """In which traces the steps of samplers do. What a span would have said then stands at its stage."""

    def has_sampler_steps(self, trace_id: str) -> bool:
        """The same answer for one trace in every process, so that a film that goes on elsewhere has all or none."""
        return self.step_sampling.wants(trace_id, None)


def detail_from(environment: Mapping[str, str]) -> SpanDetail:
    """As the variables say; a share that cannot be is logged and left out."""
    return SpanDetail(
        has_segments=environment.get(SEGMENTS_VARIABLE) == "1",
        step_sampling=TraceSampling(ratio_from(environment, STEPS_VARIABLE), follows_parent=False),
    )
