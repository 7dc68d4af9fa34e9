"""Which sequences go into the next forward call, with how many tokens, and the memory for them.

Two orders meet here. Time is handed out in the order of the policy (the jobs come most urgent first); memory is yielded
in the order of `Rank`, which never changes while a job lives. Who gets no memory takes no time from the others, so
whoever is first by rank gets on in every step in which nobody else does: there is no standstill.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from braid.llm_core.batching import BatchLimits, Pending, StepCost, plan_chunks
from braid.llm_core.job import Job, SequenceTask
from braid.llm_core.planned_step import Chunk
from braid.llm_core.sequence import Sequence as TokenSequence
from braid.llm_core.sequence_memory import SequenceMemory
from braid.llm_core.workspace import CanSpare, StepWorkspace
from braid.tracing.request_trace import PREEMPTED

Rank = tuple[int, int, int]
"""(class, arrival, index in the job): the place of a sequence in the order in which they yield memory, last first."""

WORTH_WAITING_TOKENS = 64
"""A prompt waits for another to be prefilled if that saves it so many tokens: about what one more step costs."""


@dataclass(slots=True)
class PlanningCounters:
    """What planning has done since it started."""

    cached_tokens: int = 0
    """Found in the prefix cache by sequences that began to run."""
    preemptions: int = 0
    """Sequences that yielded what they had computed."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A sequence that may share the step; it has a row."""

    job: Job
    task: SequenceTask
    began_now: bool
    """It was waiting, and what it holds was in the prefix cache."""


class StepPlanner:
    """Plans the forward calls of one language model.

    Args:
        jobs: all that have not ended, by request id; the live mapping.
        predict_ms: of a step.
        counters: to be counted on.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        memory: SequenceMemory,
        workspace: StepWorkspace,
        limits: BatchLimits,
        *,
        predict_ms: StepCost,
        can_spare: CanSpare,
        counters: PlanningCounters,
    ) -> None:
        self._jobs = jobs
        self._memory = memory
        self._workspace = workspace
        self._limits = limits
        self._predict_ms = predict_ms
        self._can_spare = can_spare
        self._counters = counters

    def plan(self, jobs: Sequence[Job], budget_ms: float) -> list[Chunk]:
        """The chunks of one step, in the order of their rows; none if nobody can have the memory that they need.

        Args:
            jobs: those that may share the step, most urgent first.
        """
        while jobs:
            candidates = self._candidates(jobs)
            chunks = self._chunks(candidates, budget_ms)
            self._settle(candidates, chunks)
            if chunks or not candidates:
                return sorted(chunks, key=lambda chunk: chunk.task.sequence.slot)
            # those that could not share a step with them may still have one
            tried = {id(candidate.job) for candidate in candidates}
            jobs = [job for job in jobs if id(job) not in tried]
        return []

    # -- who may share the step

    def _candidates(self, jobs: Sequence[Job]) -> list[_Candidate]:
        """Sequences that may share the next call: each has a row, and they want the same hidden layers.

        One whose prompt begins like that of an earlier one that is being prefilled waits, and then finds it in the
        prefix cache. The first by rank waits for nobody.
        """
        candidates: list[_Candidate] = []
        hidden_layers: tuple[int, ...] = ()
        prefilling: list[tuple[Rank, TokenSequence]] = []
        rowless: Rank | None = None  # from this rank on nobody gets a row in this step
        for job, task in _tasks(jobs):
            if task.hidden_layers and hidden_layers and task.hidden_layers != hidden_layers:
                continue
            rank, began_now = _rank(job, task), not task.sequence.is_running
            if began_now:
                if _waits_for_prefix(task, rank, prefilling) or (rowless is not None and rank >= rowless):
                    continue
                if not self._start(job, task):
                    rowless = rank
                    continue
            hidden_layers = hidden_layers or task.hidden_layers
            if task.use_prefix_cache and task.sequence.num_pending > 1:
                prefilling.append((rank, task.sequence))
            candidates.append(_Candidate(job, task, began_now))
        return candidates

    def _start(self, job: Job, task: SequenceTask) -> bool:
        """Give a waiting sequence a row; False if there is none that it may have."""
        if not self._memory.has_free_row:
            victims = self._running_after(job, task, keep=())
            if not victims:
                return False
            self._preempt(*victims[0], by=job, cause="rows")
        self._memory.start(task.sequence, use_prefix_cache=task.use_prefix_cache)
        return True

    def _settle(self, candidates: Sequence[_Candidate], chunks: Sequence[Chunk]) -> None:
        """Who began in vain holds nothing; the others are told that they run."""
        planned = {id(chunk.task) for chunk in chunks}
        for candidate in candidates:
            if not candidate.began_now:
                continue
            sequence = candidate.task.sequence
            if id(candidate.task) in planned:
                self._counters.cached_tokens += sequence.num_cached
                candidate.job.begin(time.monotonic(), sequence.num_cached)
            else:
                self._memory.end(sequence)

    # -- how many tokens each gets

    def _chunks(self, candidates: Sequence[_Candidate], budget_ms: float) -> list[Chunk]:
        chunks: list[Chunk] = []

        def take(index: int, num_tokens: int) -> bool:
            job, task = candidates[index].job, candidates[index].task
            if not self._make_room(job, task, num_tokens, chunks):
                return False
            chunks.append(Chunk(job, task, num_tokens, num_tokens == task.sequence.num_pending))
            return True

        pending = [Pending(c.task.sequence.num_pending, c.task.sequence.num_computed) for c in candidates]
        plan_chunks(
            pending,
            self._limits,
            self._predict_ms,
            budget_ms,
            max_prefill_tokens=self._max_prefill_tokens(candidates, pending),
            take=take,
        )
        return chunks

    def _max_prefill_tokens(self, candidates: Sequence[_Candidate], pending: Sequence[Pending]) -> int:
        """What the workspace has room for, of all that could be computed now."""
        wanted = sum(p.num_tokens for p in pending if p.num_tokens > 1)
        if wanted == 0:
            return 0
        num_layers = max(len(candidate.task.hidden_layers) for candidate in candidates)
        return self._workspace.prefill_within(min(wanted, self._limits.max_step_tokens), num_layers, self._can_spare)

    # -- memory

    def _make_room(self, job: Job, task: SequenceTask, num_tokens: int, planned: Sequence[Chunk]) -> bool:
        """Allocate what the chunk writes, preempting sequences that come after it; False if it must wait."""
        if not task.sequence.is_running:  # preempted a moment ago for the sake of an earlier one
            return False
        if self._memory.grow(task.sequence, num_tokens):
            return True
        victims = self._running_after(job, task, keep=[chunk.task for chunk in planned])
        num_pages = len({page for _, victim in victims for page in victim.sequence.pages})
        if not self._memory.could_grow(task.sequence, num_tokens, num_pages):
            return False  # somebody else has the memory: that others wait would not help
        for victim in victims:
            self._preempt(*victim, by=job, cause="memory")
            if self._memory.grow(task.sequence, num_tokens):
                return True
        return False

    def _running_after(
        self, job: Job, task: SequenceTask, *, keep: Sequence[SequenceTask]
    ) -> list[tuple[Job, SequenceTask]]:
        """The running sequences that can wait better than `task`, and the one that can wait best first: of the least
        urgent class, the latest arrival. None of those before `task`, so that the first in line always gets on."""
        rank, kept = _rank(job, task), {id(one) for one in keep}
        after = [
            (other, one)
            for other, one in _tasks(self._jobs.values())
            if one.sequence.is_running and _rank(other, one) > rank and id(one) not in kept
        ]
        return sorted(after, key=lambda pair: _rank(*pair), reverse=True)

    def _preempt(self, job: Job, task: SequenceTask, *, by: Job, cause: str) -> None:
        """Take the pages and the row of a sequence. What it has computed stays in the prefix cache for as long as
        nobody needs the pages, and the rest is computed again when its turn comes."""
        sequence = task.sequence
        if sequence.num_computed > sequence.num_cached:
            if task.use_prefix_cache:
                self._memory.remember(sequence)
            self._counters.preemptions += 1
            num_tokens = len(sequence.token_ids)
            job.request.trace.event(PREEMPTED, {"cause": cause, "by": by.request.id, "tokens": num_tokens})
        self._memory.end(sequence)


def _tasks(jobs: Iterable[Job]) -> Iterator[tuple[Job, SequenceTask]]:
    return ((job, task) for job in jobs for task in job.tasks)


def _waits_for_prefix(task: SequenceTask, rank: Rank, prefilling: Sequence[tuple[Rank, TokenSequence]]) -> bool:
    """Never for a later arrival, which may have to yield its memory again and again."""
    return task.use_prefix_cache and any(
        other < rank and _soon_shares(task.sequence, sequence) for other, sequence in prefilling
    )


def _soon_shares(sequence: TokenSequence, prefilling: TokenSequence) -> bool:
    """Whether enough of what `prefilling` is computing, and did not find in the cache itself, is of use to `sequence`,
    whose last token is always computed."""
    num_tokens = prefilling.num_cached + WORTH_WAITING_TOKENS
    is_longer = min(len(sequence.token_ids), len(prefilling.token_ids)) > num_tokens
    return is_longer and sequence.token_ids[:num_tokens] == prefilling.token_ids[:num_tokens]


def _rank(job: Job, task: SequenceTask) -> Rank:
    return (job.request.request_class, job.number, task.index)
