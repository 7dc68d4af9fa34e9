"""How many tokens of which sequence go into the next forward call: pure arithmetic, no memory and no device.

Decode tokens go first, one a sequence: they are cheap together, because a step reads the weights once for all of them.
Prefill chunks then fill the time that is left, in the order of urgency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

StepCost = Callable[[int, int, int], float]
"""(decode tokens, prefill tokens, sum of their context lengths) -> predicted ms"""

Take = Callable[[int, int], bool]
"""(which sequence, how many tokens) -> whether it may have them"""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one forward call may hold."""

    max_sequences: int = 64
    max_step_tokens: int = 1024
    min_chunk_tokens: int = 16
    """A prefill that leads a step advances by at least this, whatever the budget."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_chunk_tokens <= self.max_step_tokens:
            raise ValueError(f"min_chunk_tokens={self.min_chunk_tokens} must be from 1 to {self.max_step_tokens=}")
        if not 1 <= self.max_sequences <= self.max_step_tokens:
            raise ValueError(f"max_sequences={self.max_sequences} must be from 1 to {self.max_step_tokens=}")


@dataclass(frozen=True, slots=True)
class Pending:
    """What one sequence could compute now."""

    num_tokens: int
    context: int
    """Positions already computed."""


def plan_chunks(
    pending: Sequence[Pending],
    limits: BatchLimits,
    cost: StepCost,
    budget_ms: float,
    *,
    max_prefill_tokens: int | None = None,
    take: Take = lambda index, num_tokens: True,
) -> list[int]:
    """Tokens to compute of each sequence, most urgent first in and 0 where it must wait.

    Args:
        max_prefill_tokens: what memory allows, at least `min_chunk_tokens`; None is no limit.
        take: asked once for each chunk, in this order, when its length is decided; one that is refused takes no time
            from those after it.
    Returns:
        As many numbers as `pending`. The first that `take` allows is never 0.
    """
    num_decode = sum(p.num_tokens == 1 for p in pending)
    context = sum(p.context for p in pending if p.num_tokens == 1)
    most = limits.max_step_tokens - num_decode
    if max_prefill_tokens is not None:
        most = min(most, max_prefill_tokens)
    chunks = [0] * len(pending)
    num_prefill = 0
    is_empty, is_full = True, False
    for i, p in enumerate(pending):
        if p.num_tokens == 1:
            fit = 1
        elif is_full:  # a later prompt does not overtake, however short
            continue
        else:
            room = most - num_prefill
            fit = _tokens_within(p, room, num_decode, num_prefill, context, cost, budget_ms)
            if is_empty:
                fit = max(fit, min(limits.min_chunk_tokens, p.num_tokens, room))
        if fit == 0:
            is_full = True
        elif take(i, fit):
            chunks[i], is_empty = fit, False
            if p.num_tokens > 1:
                num_prefill += fit
                context += fit * p.context
    return chunks


def _tokens_within(
    p: Pending, room: int, num_decode: int, num_prefill: int, context: int, cost: StepCost, budget_ms: float
) -> int:
    """The longest chunk of `p` that keeps the step within the budget, by bisection over a cost that grows."""

    def fits(n: int) -> bool:
        return cost(num_decode, num_prefill + n, context + n * p.context) <= budget_ms

    high = min(p.num_tokens, max(room, 0))
    if fits(high):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
