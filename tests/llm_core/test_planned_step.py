"""A step moved on by a token is the step that would have been planned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from braid.llm_core.planned_step import Chunk, PlannedStep
from braid.llm_core.sequence import Sequence

BLOCK_TABLES = np.zeros((4, 8), np.int32)


def chunk(name: str, sequence: Sequence, *, num_tokens: int = 1, reaches_end: bool = True) -> Chunk:
    job: Any = SimpleNamespace(request=SimpleNamespace(id=name))
    task: Any = SimpleNamespace(sequence=sequence, sampling=object(), hidden_layers=())
    return Chunk(job, task, num_tokens, reaches_end)


def planned(chunks: list[Chunk]) -> PlannedStep:
    return PlannedStep([c.job for c in chunks], chunks, np.full((3, 32), -1, np.int32), BLOCK_TABLES)


def test_a_step_moved_on_is_the_one_that_would_have_been_planned() -> None:
    first = Sequence([5, 6, 7], num_computed=2, slot=0)
    second = Sequence([8, 9], num_computed=1, slot=3)
    chunks = [chunk("a", first), chunk("b", second)]
    step = planned(chunks)
    for token_id in (11, 12):
        for sequence in (first, second):
            sequence.num_computed += 1
            sequence.token_ids.append(token_id + sequence.slot)
        step.move_on()
        fresh = planned(chunks)
        assert step.features == fresh.features
        assert step.request_ids == fresh.request_ids == ("a", "b")
        for name in ("input_ids", "positions", "sequence_index", "logits_rows"):
            np.testing.assert_array_equal(getattr(step.batch, name), getattr(fresh.batch, name), err_msg=name)
    assert step.times_repeated == 2


def test_prefill_and_decode_tokens_are_counted_apart() -> None:
    whole = Sequence(list(range(6)), num_computed=1, slot=0)
    step = planned([chunk("a", whole, num_tokens=3, reaches_end=False), chunk("b", Sequence([1, 2], num_computed=1))])
    assert (step.num_decode, step.num_prefill, step.is_decode) == (1, 3, False)
    assert step.features == (1.0, 1.0, 3.0, 3 * 1 + 1)
    assert step.batch.positions.tolist() == [1, 2, 3, 1]
    assert step.batch.logits_rows.tolist() == [3]
    assert len(step.sampling) == 1
