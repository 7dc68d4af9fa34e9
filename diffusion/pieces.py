"""What every handler does around a piece of its work: say what it will cost, learn what it took, lease its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from braid.errors import CannotFit
from braid.llm_core.core import Clock
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Segment, Wait
from braid.llm_core.scheduler.cost import CostModel

Result = TypeVar("Result")
MACS_A_UNIT = 1_000_000
"""Pieces of networks are counted in millions of multiply-adds."""


class Meter:
    """Predicts pieces by kind and units, and learns from what they took.

    Args:
        costs: shared by all handlers of a device; keys are kinds of pieces, features (1, units).
    """

    def __init__(self, costs: CostModel, *, clock: Clock = time.perf_counter) -> None:
        self._costs = costs
        self._clock = clock

    def segment(self, kind: str, units: int, *, num_bytes: int = 0) -> Segment:
        """A piece about to be run, priced."""
        cost_ms = self._costs.predict(kind, (1.0, float(units)))
        return Segment(cost_ms, num_bytes=num_bytes, units=units, kind=kind)

    @contextmanager
    def measured(self, kind: str, units: int) -> Iterator[None]:
        """Around the piece itself; one that fails teaches nothing."""
        began = self._clock()
        yield
        self._costs.observe(kind, (1.0, float(units)), (self._clock() - began) * 1e3)


Pieces = Generator[Segment | Wait, None, Result]
"""Work that is cut into pieces, and what it gives in the end."""


def piece(meter: Meter, kind: str, units: int, work: Callable[[], Result], *, num_bytes: int = 0) -> Pieces[Result]:
    """One piece of work."""
    yield meter.segment(kind, units, num_bytes=num_bytes)
    with meter.measured(kind, units):
        return work()


def in_pieces(
    meter: Meter, kind: str, work: Generator[int | None, None, Result], *, num_bytes: int = 0
) -> Pieces[Result]:
    """Work of a network that says in front of each of its pieces how many multiply-adds it has.

    Args:
        num_bytes: that are leased for it.
    """
    with closing(work):
        try:
            macs = next(work)
            while True:
                units = max(1, (macs or 0) // MACS_A_UNIT)
                yield meter.segment(kind, units, num_bytes=num_bytes)
                with meter.measured(kind, units):
                    macs = next(work)
        except StopIteration as stop:
            result: Result = stop.value
            return result


def room_for(arena: Arena, what: str, num_bytes: int) -> Wait:
    """A wait for memory, by somebody who holds nothing of it now.

    Args:
        num_bytes: all that will be leased together. What of it is kept in the meantime, for whoever needs it more,
            counts as room: it would be given back, or found still there.
    Raises:
        CannotFit: there never will be so much.
    """
    if not arena.could_ever_fit(num_bytes):
        raise CannotFit(what, needed_bytes=num_bytes, budget_bytes=arena.lasting_bytes)
    return Wait(lambda: arena.can_lease(num_bytes))
