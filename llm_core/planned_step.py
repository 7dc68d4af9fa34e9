"""One forward call, planned: which tokens of which sequences, and all that is known of it before it runs.

A step that only decodes is followed by another just like it, until one of its sequences ends or another comes. So it is
planned once, and then moved on by a token at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from braid.llm_core.engine.sampling import SamplingState
from braid.llm_core.job import Job, SequenceTask
from braid.llm_core.models.model import ForwardBatch, IntArray

REPEATS_A_LESSON = 8

Features = tuple[float, float, float, float]
"""What the time of a step depends on: (1, decode tokens, prefill tokens, keys attended to)."""


@dataclass(slots=True)
class Chunk:
    """The part of a sequence that one step computes."""

    job: Job
    task: SequenceTask
    num_tokens: int
    reaches_end: bool
    """The step computes the sequence's last token, whose logits choose the next."""

    @property
    def is_decode(self) -> bool:
        return self.reaches_end and self.num_tokens == 1


class PlannedStep:
    """Args:
        jobs: those that the step was planned for, in this order; some may have no chunk in it.
        chunks: in the order of their sequences' rows of the block tables.
        token_rows: (3, max_step_tokens) int32, overwritten: the batch holds views of it. So a step is of use until the
            next one is planned.
        block_tables: of all sequences.
    """

    __slots__ = ("_token_rows", "batch", "chunks", "features", "jobs", "num_decode", "num_prefill", "peak_bytes",
                 "predicted_bytes", "predicted_ms", "request_ids", "sampling", "times_repeated")  # fmt: skip

    def __init__(
        self, jobs: Sequence[Job], chunks: Sequence[Chunk], token_rows: IntArray, block_tables: IntArray
    ) -> None:
        self.jobs = jobs
        self.chunks = chunks
        self.request_ids = tuple(dict.fromkeys(chunk.job.request.id for chunk in chunks))
        self.num_decode = sum(chunk.is_decode for chunk in chunks)
        self.num_prefill = sum(chunk.num_tokens for chunk in chunks) - self.num_decode
        self.sampling: list[SamplingState] = [
            chunk.task.sampling for chunk in chunks if chunk.reaches_end and chunk.task.sampling is not None
        ]
        """Of each row of logits."""
        self.times_repeated = 0
        self.predicted_ms = 0.0
        self.predicted_bytes = 0
        self.peak_bytes = 0
        """As it was measured, or else predicted."""
        self._token_rows = token_rows
        self.batch = self._write(block_tables)
        self.features = self._features()

    @property
    def is_decode(self) -> bool:
        return self.num_prefill == 0

    @property
    def is_lesson(self) -> bool:
        """Whether to predict and to learn from it. Repetitions are all alike: to learn from each would cost more than
        it teaches, and make the others forgotten."""
        return self.times_repeated % REPEATS_A_LESSON == 0

    def move_on(self) -> None:
        """Become the step after this one, in which each of the same sequences decodes the token that it has got now."""
        input_ids, positions, _ = self._token_rows
        context = 0
        for i, chunk in enumerate(self.chunks):
            sequence = chunk.task.sequence
            input_ids[i] = sequence.token_ids[-1]
            positions[i] = sequence.num_computed
            context += sequence.num_computed
        self.features = (1.0, float(self.num_decode), 0.0, float(context))
        self.times_repeated += 1

    def _features(self) -> Features:
        context = sum(chunk.num_tokens * chunk.task.sequence.num_computed for chunk in self.chunks)
        return (1.0, float(self.num_decode), float(self.num_prefill), float(context))

    def _write(self, block_tables: IntArray) -> ForwardBatch:
        input_ids, positions, rows = self._token_rows
        logits_rows: list[int] = []
        hidden_rows: list[int] = []
        hidden_layers: tuple[int, ...] = ()
        end = 0
        for chunk in self.chunks:
            task, sequence = chunk.task, chunk.task.sequence
            start, end = end, end + chunk.num_tokens
            first = sequence.num_computed
            input_ids[start:end] = sequence.token_ids[first : first + chunk.num_tokens]
            positions[start:end] = np.arange(first, first + chunk.num_tokens, dtype=np.int32)
            rows[start:end] = sequence.slot
            if chunk.reaches_end and task.sampling is not None:
                logits_rows.append(end - 1)
            if task.hidden_layers:
                hidden_layers = task.hidden_layers
                hidden_rows.extend(range(start, end))
        return ForwardBatch(
            input_ids=input_ids[:end],
            positions=positions[:end],
            sequence_index=rows[:end],
            block_tables=block_tables,
            logits_rows=np.array(logits_rows, dtype=np.int32),
            hidden_rows=np.array(hidden_rows, dtype=np.int32) if hidden_rows else None,
            hidden_layers=hidden_layers,
        )
