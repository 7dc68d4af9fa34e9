"""What a job keeps from step to step and from operation to operation, leased as long as the job is under way.

Networks and their work are leased by each operation, and whoever waits for those holds none of them. Latents, and the
frames of a result that is kept in memory, stay while a job waits: so they are taken with the promise of the arena that
everybody still gets on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from braid.diffusion.job import Job
from braid.diffusion.pieces import Pieces
from braid.diffusion.relay import relayed
from braid.errors import MemoryPressure
from braid.llm_core.memory.arena import Arena, Lease
from braid.llm_core.pipeline import Checkpoint, Pipeline, StartPipeline, Wait
from braid.tracing.request_trace import AttributeValue


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of one job in one arena."""

    kept: int
    largest: int
    """What any of its operations needs beside that."""


NeedsOf = Callable[[Job], list[tuple[Arena, Needs]]]


class Holding:
    """The leases of one job. A context manager, which gives them back."""

    def __init__(self, needs: list[tuple[Arena, Needs]]) -> None:
        self._needs = needs
        self._leases: list[Lease] = []

    def take(self) -> Pieces[None]:
        """All of them, or none while others hold what is needed.

        Raises:
            CannotFit: it never will be there.
        """
        while not self._taken():
            yield Wait(self._is_possible)

    def _taken(self) -> bool:
        try:
            for arena, needs in self._needs:
                lease = arena.keep("films under way", needs.kept, largest_bytes=needs.largest, kind="latents")
                self._leases.append(lease)
        except MemoryPressure:
            self.release()
        return self.is_taken

    @property
    def num_bytes(self) -> int:
        """Of all its leases."""
        return sum(needs.kept for _, needs in self._needs)

    @property
    def is_taken(self) -> bool:
        return bool(self._leases)

    def _is_possible(self) -> bool:
        return all(
            arena.can_promise(needs.kept, needs.largest) and arena.can_lease(needs.kept) for arena, needs in self._needs
        )

    def release(self) -> None:
        for lease in self._leases:
            lease.release()
        self._leases.clear()

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True, slots=True)
class HoldMemory:
    """A job's own bytes, before it makes latents. Gives None."""

    holding: Holding
    kind = "hold_memory"

    @property
    def trace_attributes(self) -> dict[str, AttributeValue]:
        """What is told of it."""
        return {"held_bytes": self.holding.num_bytes}


def hold_memory(operation: HoldMemory) -> Pieces[None]:
    """`HoldMemory`, for `InPieces`."""
    yield from operation.holding.take()


def holding(start: StartPipeline, needs_of: NeedsOf) -> StartPipeline:
    """A pipeline of `Job`s that holds what each keeps: from its first checkpoint on, when its prompt is encoded.

    Until then it keeps next to nothing, and the language model may need much for the prompt.
    """

    def run(job: Job, state: Any | None = None, /) -> Pipeline:
        with closing(start(job, state)) as pipeline, Holding(needs_of(job)) as held:
            if state is not None:
                yield HoldMemory(held)
            return (yield from relayed(pipeline, partial(_said, held)))

    return run


def _said(held: Holding, asked: Any) -> Pipeline:
    answer = yield asked
    if isinstance(asked, Checkpoint) and not held.is_taken:
        yield HoldMemory(held)
    return answer
