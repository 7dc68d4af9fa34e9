"""Which traces are recorded: OpenTelemetry's own variables decide, `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.

Source: OpenTelemetry specification, SDK environment variables and `TraceIdRatioBased`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from braid.tracing.trace_context import TraceContext

_log = logging.getLogger(__name__)

_ROOT_RATIOS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
_DEFAULT = "parentbased_always_on"
_PARENT_BASED = "parentbased_"


@dataclass(frozen=True, slots=True)
class TraceSampling:
    """The part of all traces that is recorded."""

    ratio: float = 1.0
    """Of those that begin here."""
    follows_parent: bool = True
    """Whoever began a trace decides for all of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} must be between 0 and 1")

    def wants(self, trace_id: str, parent: TraceContext | None) -> bool:
        """Whether to record; the same answer for one trace in every process."""
        if parent is not None and self.follows_parent:
            return parent.is_sampled
        return int(trace_id[16:], 16) < round(self.ratio * 2**64)


def sampling_from(environment: Mapping[str, str]) -> TraceSampling:
    """As the variables say; what they say wrongly is logged and left out."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return TraceSampling(0.0, follows_parent=False)
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() or _DEFAULT
    root = name.removeprefix(_PARENT_BASED)
    if root not in _ROOT_RATIOS:
        _log.warning("OTEL_TRACES_SAMPLER=%r is not known; every trace is recorded", name)
        return TraceSampling()
    ratio = _ROOT_RATIOS[root]
    if ratio is None:
        ratio = ratio_from(environment, "OTEL_TRACES_SAMPLER_ARG")
    return TraceSampling(ratio, follows_parent=name.startswith(_PARENT_BASED))


def ratio_from(environment: Mapping[str, str], variable: str) -> float:
    """A part of all traces: 1 where the variable is not set, or wrong, which is logged."""
    text = environment.get(variable, "").strip() or "1"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if 0 <= ratio <= 1:
        return ratio
    _log.warning("%s=%r must be between 0 and 1; it counts as 1", variable, text)
    return 1.0
