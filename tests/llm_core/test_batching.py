"""How many tokens of which sequence go into a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.llm_core.batching import BatchLimits, Pending, plan_chunks

LIMITS = BatchLimits(max_sequences=8, max_step_tokens=128, min_chunk_tokens=16)


def one_ms_a_token(num_decode: int, num_prefill: int, context: int) -> float:
    return float(num_decode + num_prefill)


def test_decode_tokens_come_first_and_prefill_fills_the_rest_of_the_budget() -> None:
    pending = [Pending(100, 0), Pending(1, 50), Pending(1, 60)]
    assert plan_chunks(pending, LIMITS, one_ms_a_token, 40) == [38, 1, 1]


def test_a_leading_prefill_advances_even_when_the_budget_is_spent() -> None:
    assert plan_chunks([Pending(100, 0), Pending(1, 9)], LIMITS, one_ms_a_token, 0.5) == [16, 1]


def test_a_later_prefill_waits_when_the_budget_is_spent() -> None:
    assert plan_chunks([Pending(1, 9), Pending(100, 0)], LIMITS, one_ms_a_token, 1.5) == [1, 0]


def test_a_short_prompt_does_not_overtake_a_longer_one_before_it() -> None:
    assert plan_chunks([Pending(1, 0), Pending(100, 0), Pending(2, 0)], LIMITS, one_ms_a_token, 50) == [1, 49, 0]


def test_context_makes_a_chunk_shorter() -> None:
    def cost(num_decode: int, num_prefill: int, context: int) -> float:
        return num_decode + num_prefill + context * 1e-2

    assert plan_chunks([Pending(100, 0)], LIMITS, cost, 80) == [80]
    assert plan_chunks([Pending(100, 100)], LIMITS, cost, 80) == [40]


@given(
    st.lists(st.builds(Pending, st.integers(1, 300), st.integers(0, 500)), min_size=1, max_size=8),
    st.floats(0.1, 300),
)
def test_a_plan_stays_within_limits_and_budget(pending: list[Pending], budget_ms: float) -> None:
    chunks = plan_chunks(pending, LIMITS, one_ms_a_token, budget_ms)
    assert chunks[0] >= 1
    assert all(0 <= chunk <= p.num_tokens for chunk, p in zip(chunks, pending, strict=True))
    assert sum(chunks) <= LIMITS.max_step_tokens
    num_decode = sum(p.num_tokens == 1 for p in pending)
    least = num_decode + (min(16, pending[0].num_tokens) if pending[0].num_tokens > 1 else 0)
    assert sum(chunks) <= max(budget_ms, least)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="max_sequences=9"):
        BatchLimits(max_sequences=9, max_step_tokens=8, min_chunk_tokens=4)


def test_a_leading_prefill_leaves_the_decode_tokens_their_room() -> None:
    limits = BatchLimits(max_sequences=16, max_step_tokens=16, min_chunk_tokens=16)
    assert sum(plan_chunks([Pending(100, 0), *[Pending(1, 9)] * 15], limits, one_ms_a_token, 0.5)) == 16


def test_prefill_stays_within_what_memory_allows() -> None:
    pending = [Pending(1, 50), Pending(100, 0), Pending(100, 0)]
    assert plan_chunks(pending, LIMITS, one_ms_a_token, 1000, max_prefill_tokens=20) == [1, 20, 0]


def test_a_chunk_that_is_refused_takes_no_time_from_those_after_it() -> None:
    pending = [Pending(100, 0), Pending(1, 9), Pending(1, 9), Pending(100, 0)]
    asked: list[tuple[int, int]] = []

    def take(index: int, num_tokens: int) -> bool:
        asked.append((index, num_tokens))
        return index in (2, 3)

    assert plan_chunks(pending, LIMITS, one_ms_a_token, 40, take=take) == [0, 0, 1, 38]
    assert asked == [(0, 38), (1, 1), (2, 1), (3, 38)]


def test_whoever_is_first_allowed_advances_even_when_the_budget_is_spent() -> None:
    pending = [Pending(100, 0), Pending(100, 0)]
    assert plan_chunks(pending, LIMITS, one_ms_a_token, 0.5, take=lambda index, _: index == 1) == [0, 16]
