"""Pipelines as generators: straight-line Python that yields operations and gets their results.

    def film(params, state=None):
        state = state or FilmState(step=0, latents=..., prompt_embeds=(yield Encode(params.prompt)))
        while state.step < params.num_steps:
            denoised = yield Denoise(state.latents, ...)
            state = replace(state, step=state.step + 1, latents=...)
            yield Checkpoint(state)
        return (yield Decode(state.latents))

A pipeline owns no device, no stream and no queue; every `yield` is a place to preempt, cancel and share. How an
operation is carried out, and in which pieces, is its handler's business. Here are the nouns; `pipeline_workload` drives
them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Operation(Protocol):
    """What a pipeline asks for: a frozen dataclass whose type chooses the handler.

    It may have `trace_attributes`, a mapping: what its request's trace says of it beside its kind.
    """

    @property
    def kind(self) -> str:
        """For the journal and the cost model: `denoise`, `decode_tile`."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Yielded where a pipeline can be started again: `pipeline(params, state)` goes on after it.

    `state` is a frozen dataclass of all that it needs: tensors that nobody writes to any more, integers, and states of
    random generators. It must carry a schema version if it is to outlive the process.
    """

    state: Any


@dataclass(frozen=True, slots=True)
class Progress:
    """Yielded to tell the user how far it is."""

    stage: str
    step: int
    num_steps: int
    preview: Any = None
    """Something to look at meanwhile."""


Pipeline = Generator[Any, Any, Any]
"""Yields `Operation`s (and is sent their results, or their exceptions are thrown into it), `Checkpoint`s and `Progress`
(and is sent None); returns the result of the request."""


class StartPipeline(Protocol):
    """A pipeline before it runs: usually a generator function."""

    def __call__(self, params: Any, state: Any | None = None, /) -> Pipeline: ...


@dataclass(frozen=True, slots=True)
class Resumed:
    """The params of a request that goes on from a checkpoint."""

    params: Any
    state: Any


@dataclass(frozen=True, slots=True)
class Progressed:
    """Event: a request's `Progress`."""

    request_id: str
    stage: str
    step: int
    num_steps: int
    preview: Any = None


@dataclass(frozen=True, slots=True)
class Completed:
    """Event: what the pipeline returned; the last one of a request that did not fail."""

    request_id: str
    result: Any


@dataclass(frozen=True, slots=True)
class Segment:
    """The next bounded piece of an operation under way."""

    cost_ms: float
    """Predicted, alone."""
    num_bytes: int = 0
    units: int = 1
    batch_key: Hashable = None
    """Pieces of one type of operation with equal keys may run in one step. None never shares."""
    kind: str = ""
    """What the piece does, where the operation's own kind does not say it: `merge` within a `denoise`."""


@dataclass(frozen=True, slots=True)
class Wait:
    """In the place of a segment: there is nothing to do until others have given something back, such as memory."""

    is_over: Callable[[], bool]
    """Asked whenever offers are collected; then the execution is advanced, as if a piece of it had run."""
    cause: str = "memory"
    """What is waited for, for the trace."""


class Execution(Protocol):
    """One operation of one job under way; holds what lies between its pieces."""

    def segment(self) -> Segment | Wait | None:
        """The next piece, or None once the operation is done."""
        ...

    def result(self) -> Any:
        """What the operation gives; asked once, when it is done."""
        ...

    def close(self) -> None:
        """Free what is held: the operation is done, failed or no longer wanted."""
        ...


class OperationHandler(Protocol):
    """How one type of operation is carried out."""

    def begin(self, operation: Any) -> Execution:
        """Prepare an operation; no device work. What it raises is raised at the pipeline's `yield`."""
        ...

    def advance(self, executions: Sequence[Any]) -> None:
        """Run the next piece of each; several only where their segments have equal batch keys.

        If it raises for several, none may have advanced: they are tried again one by one. What it raises for one is
        raised at that pipeline's `yield`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Delegate:
    """An operation that another workload answers, such as encoding a prompt with the language model."""

    params: Callable[[Any, str], Any]
    """(operation, id of the new request) to that workload's params."""
    answer: type
    """The event that ends the request well, such as `Encoded`."""
    result: Callable[[Any], Any]
    """From that event to what the pipeline is sent."""
    gathers: type | None = None
    """Where the answer comes in many events, such as `TextDelta`: `result` is then given the list of those instead."""


class InPieces:
    """A handler made of a generator function, for operations that never share a step.

    `run(operation)` yields a `Segment` in front of each piece of work, to say what it will cost (or a `Wait`), and
    returns the result.
    """

    def __init__(self, run: Callable[[Any], Generator[Segment | Wait, None, Any]]) -> None:
        self._run = run

    def begin(self, operation: Any) -> Execution:
        return _Pieces(self._run(operation))

    def advance(self, executions: Sequence[_Pieces]) -> None:
        (execution,) = executions
        execution.advance()


class _Pieces:
    """The execution of `InPieces`."""

    def __init__(self, pieces: Generator[Segment | Wait, None, Any]) -> None:
        self._pieces = pieces
        self._segment: Segment | Wait | None = None
        self._result: Any = None
        self.advance()

    def advance(self) -> None:
        try:
            self._segment = next(self._pieces)
        except StopIteration as stop:
            self._segment, self._result = None, stop.value

    def segment(self) -> Segment | Wait | None:
        return self._segment

    def result(self) -> Any:
        return self._result

    def close(self) -> None:
        self._pieces.close()
