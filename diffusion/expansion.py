"""Operations that are made of others: a pipeline asks for the whole, the workload is asked for the parts.

Also where a job's stages are timed, since here passes all that its pipeline says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

from braid.diffusion.job import GenerationResult
from braid.diffusion.relay import relayed
from braid.llm_core.core import Clock
from braid.llm_core.pipeline import Pipeline, Progress, StartPipeline

Expansion = Callable[[Any], Generator[Any, Any, Any]]
"""From an operation to a generator of the operations that it is made of; it returns the whole's result."""


def expanded(start: StartPipeline, expansions: Mapping[type, Expansion], clock: Clock) -> StartPipeline:
    """A pipeline whose operations of these types never leave it."""

    def run(params: Any, state: Any | None = None, /) -> Pipeline:
        timer = _StageTimer(clock)

        def say(asked: Any) -> Pipeline:
            timer.hear(asked)
            expansion = expansions.get(type(asked))
            return (yield asked) if expansion is None else (yield from expansion(asked))

        return timer.written_on((yield from relayed(start(params, state), say)))

    return run


class _StageTimer:
    """Seconds from the first word of a stage to that of the next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stage = ""
        self._began = 0.0
        self._seconds: dict[str, float] = {}

    def hear(self, asked: Any) -> None:
        if isinstance(asked, Progress) and asked.stage != self._stage:
            self._end_stage()
            self._stage, self._began = asked.stage, self._clock()

    def written_on(self, result: Any) -> Any:
        self._end_stage()
        return replace(result, timings=self._seconds) if isinstance(result, GenerationResult) else result

    def _end_stage(self) -> None:
        if self._stage:
            seconds = self._clock() - self._began
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + seconds
