"""The workload that runs the language model: chat and encodings of all requests, batched into one forward call a step.

It decides nothing about order (the policy does) and nothing about meaning (the jobs do).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from braid.errors import BraidError, ContextLengthExceeded
from braid.llm_core.admission import Admission
from braid.llm_core.batching import BatchLimits
from braid.llm_core.core import Offer, Request, StepResult
from braid.llm_core.decode import GenerateParams, GenerationJob
from braid.llm_core.device_timer import DeviceTimer, device_timer
from braid.llm_core.encode import EncodeParams, EncodingJob
from braid.llm_core.engine.failure import as_braid_error
from braid.llm_core.engine.sampling import SampledToken, Sampler
from braid.llm_core.job import Job
from braid.llm_core.models.model import ForwardBatch, ForwardResult, LanguageModel
from braid.llm_core.peak_meter import PeakMeter, peak_meter
from braid.llm_core.planned_step import Chunk, PlannedStep
from braid.llm_core.scheduler.cost import CostModel
from braid.llm_core.sequence_memory import SequenceMemory
from braid.llm_core.step_planning import PlanningCounters, StepPlanner
from braid.llm_core.text.tokenizer import Tokenizer
from braid.llm_core.workspace import StepWorkspace

STEPS_A_PRICE = 16
"""Offers carry the same predictions for so many steps: to predict in each costs more than it tells."""

STALL_S = 0.005
"""How long to wait for memory that somebody else holds before asking again."""


@dataclass(slots=True)
class LanguageCounters(PlanningCounters):
    """What the workload has done since it started."""

    steps: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    finished: int = 0
    failed: int = 0
    forward_ms: float = 0.0
    sampling_ms: float = 0.0
    step_ms: float = 0.0


class LanguageWorkload:
    """Continuous batching with paged keys and values.

    Args:
        model: shared by chat and encodings.
        memory: of that model's page size.
        cost: learns the milliseconds of a step.
        workspace: of that model and these limits.
        meter: what measures the peak of a forward call; None for what the model's device has.
        timer: what measures the device's work; None for what the model's device has.
    """

    name = "language"

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        memory: SequenceMemory,
        sampler: Sampler,
        cost: CostModel,
        workspace: StepWorkspace,
        limits: BatchLimits,
        meter: PeakMeter | None = None,
        timer: DeviceTimer | None = None,
    ) -> None:
        self.model = model
        self.memory = memory
        self.counters = LanguageCounters()
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._cost = cost
        self._limits = limits
        self._workspace = workspace
        self._meter = meter or peak_meter(model.device)
        self._timer = timer or device_timer(model.device)
        self._admission = Admission(memory.pages)
        self._jobs: dict[str, Job] = {}
        self._planner = StepPlanner(
            self._jobs,
            memory,
            workspace,
            limits,
            predict_ms=self._predict_ms,
            can_spare=self._admission.can_spare,
            counters=self.counters,
        )
        self._num_admitted = 0
        self._stalled_until = 0.0
        self._offers_priced_until = 0
        self._decode_ms = self._prefill_ms = 0.0
        self._decode_bytes = self._prefill_bytes = 0
        self._repeatable: PlannedStep | None = None
        """The last step, if another just like it may follow."""
        self._token_rows = np.zeros((3, self._limits.max_step_tokens), dtype=np.int32)

    # -- taking and ending requests

    def accepts(self, params: Any) -> bool:
        return isinstance(params, GenerateParams | EncodeParams)

    def admit(self, request: Request, now: float) -> None:
        self._check_length(request.params.longest)
        self._num_admitted += 1
        result_bytes = request.params.num_bytes(self.model.config) if isinstance(request.params, EncodeParams) else 0
        self._admission.take(request.id, num_tokens=request.params.longest, result_bytes=result_bytes)
        try:
            job = self._job(request, self._num_admitted)
        except BaseException:
            self._admission.release(request.id)
            raise
        self._jobs[request.id] = job
        if job.is_done:  # nothing but empty prompts
            job.begin(now, 0)
            self._finish(job, now)

    def _check_length(self, num_tokens: int) -> None:
        """Params may come from another workload, which knows the context or does not."""
        if num_tokens > self.memory.max_tokens:
            raise ContextLengthExceeded(
                f"a sequence of {num_tokens} tokens exceeds the context of {self.memory.max_tokens}"
            )

    def _job(self, request: Request, number: int) -> Job:
        if isinstance(request.params, GenerateParams):
            return GenerationJob(request, number, self._tokenizer)
        return EncodingJob(request, number, self.model.config)

    def cancel(self, request_id: str, error: BraidError) -> bool:
        job = self._jobs.get(request_id)
        if job is not None:
            self._fail(job, error)
        return job is not None

    def _fail(self, job: Job, error: BraidError) -> None:
        self._repeatable = None
        for task in job.tasks:
            self.memory.end(task.sequence)
        self._jobs.pop(job.request.id, None)
        self._admission.release(job.request.id)
        self.counters.failed += 1
        job.fail(error)

    def _finish(self, job: Job, now: float) -> None:
        self._jobs.pop(job.request.id, None)
        self.counters.finished += 1
        self._admission.release(job.request.id)
        job.finish(now)

    # -- offering

    def offers(self, now: float) -> Iterable[Offer]:
        if now < self._stalled_until:
            return ()
        if self.counters.steps >= self._offers_priced_until:
            self._offers_priced_until = self.counters.steps + STEPS_A_PRICE
            self._decode_ms = self._predict_ms(1, 0, 0)
            self._prefill_ms = self._predict_ms(0, self._limits.min_chunk_tokens, 0)
            self._decode_bytes = self._workspace.predict(1, 1)
            self._prefill_bytes = self._workspace.predict(self._limits.min_chunk_tokens, 1)
        return [self._offer(job) for job in self._jobs.values()]

    def next_wake(self, now: float) -> float | None:
        """Clock time at which `offers` may say more than now, or None."""
        return self._stalled_until if now < self._stalled_until else None

    def _offer(self, job: Job) -> Offer:
        is_decode = job.tasks[0].sequence.num_pending == 1
        return Offer(
            job.request.id,
            self.name,
            "decode" if is_decode else "prefill",
            self.name,
            job.request.request_class,
            job.deadline(),
            self._decode_ms if is_decode else self._prefill_ms,
            self._decode_bytes if is_decode else self._prefill_bytes,
            tenant=job.request.tenant,
            payload=job,
        )

    def _predict_ms(self, num_decode: int, num_prefill: int, context: int) -> float:
        return self._cost.predict(self.name, (1.0, num_decode, num_prefill, context))

    # -- running a step

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        began = time.perf_counter()
        step = self._next_step([offer.payload for offer in offers], budget_ms)
        if step is None:
            self._stalled_until = time.monotonic() + STALL_S
            return StepResult((), "stall", 0, 0.0)

        if step.is_lesson:
            self._meter.start()
        forward_began = time.perf_counter()
        self._timer.start()
        result = self.model.forward(step.batch, self.memory.pages)
        self._timer.stop()
        sampling_began = time.perf_counter()
        tokens = self._sampler.sample(result.logits, step.sampling) if step.sampling else []
        device_ms = self._timer.elapsed_ms()
        sampling_ended = time.perf_counter()
        if step.is_lesson:
            self._learn(step, device_ms)
        self._repeatable = step if self._is_repeatable(step) else None
        self._advance(step.chunks, result, tokens)
        step_ms = (time.perf_counter() - began) * 1e3
        self._count(step, (sampling_began - forward_began) * 1e3, (sampling_ended - sampling_began) * 1e3, step_ms)
        return StepResult(
            step.request_ids,
            "decode" if step.is_decode else "prefill",
            step.num_decode + step.num_prefill,
            device_ms,
            max(step_ms - device_ms, 0.0),
            step.peak_bytes,
            step.predicted_ms,
        )

    def _learn(self, step: PlannedStep, device_ms: float) -> None:
        self._cost.observe(self.name, step.features, device_ms)
        if (peak_bytes := self._meter.stop()) is not None:
            self._workspace.learn(step.predicted_bytes, peak_bytes)
            step.peak_bytes = peak_bytes

    def _count(self, step: PlannedStep, forward_ms: float, sampling_ms: float, step_ms: float) -> None:
        counters = self.counters
        counters.steps += 1
        counters.decode_tokens += step.num_decode
        counters.prefill_tokens += step.num_prefill
        counters.forward_ms += forward_ms
        counters.sampling_ms += sampling_ms
        counters.step_ms += step_ms

    # -- planning

    def _next_step(self, jobs: list[Job], budget_ms: float) -> PlannedStep | None:
        """The last step once more where that is all there is to do, else one that is planned anew; None if nobody can
        have the memory that they need."""
        step, self._repeatable = self._repeatable, None
        if step is not None and step.jobs == jobs and all(self.memory.grow(c.task.sequence, 1) for c in step.chunks):
            step.move_on()
        else:
            chunks = self._planner.plan(jobs, budget_ms)
            if not chunks:
                return None
            step = PlannedStep(jobs, chunks, self._token_rows, self.memory.block_tables)
        if step.is_lesson:
            step.predicted_ms = self._cost.predict(self.name, step.features)
            step.peak_bytes = step.predicted_bytes = self._predict_bytes(step.batch)
        return step

    @staticmethod
    def _is_repeatable(step: PlannedStep) -> bool:
        """Whether its jobs, if none of their sequences ends with it, will want the same again: each decodes, and none
        was left out."""
        return step.times_repeated > 0 or (
            step.is_decode and len(step.chunks) == sum(len(job.tasks) for job in step.jobs)
        )

    def _predict_bytes(self, batch: ForwardBatch) -> int:
        num_hidden = 0 if batch.hidden_rows is None else len(batch.hidden_rows)
        return self._workspace.predict(
            len(batch.input_ids), len(batch.logits_rows), num_hidden=num_hidden, num_layers=len(batch.hidden_layers)
        )

    # -- doing

    def _advance(self, chunks: Sequence[Chunk], result: ForwardResult, tokens: list[SampledToken]) -> None:
        """Give each sequence what the step computed for it, and end the jobs that are done."""
        now = time.monotonic()
        sampled = iter(tokens)
        hidden_end = 0
        for chunk in chunks:
            task, sequence = chunk.task, chunk.task.sequence
            sequence.num_computed += chunk.num_tokens
            token = next(sampled) if chunk.reaches_end and task.sampling is not None else None
            hidden_start = hidden_end
            if task.hidden_layers:
                hidden_end += chunk.num_tokens
            if chunk.job.request.id not in self._jobs:  # a sibling of this step failed
                continue
            try:
                if task.hidden_layers:
                    task.accept_hidden(result.hidden_states[:, hidden_start:hidden_end])
                if chunk.reaches_end:
                    self._at_end(chunk, token, now)
            except Exception as error:
                self._fail(chunk.job, as_braid_error(error, f"taking the output of request {chunk.job.request.id}"))

    def _at_end(self, chunk: Chunk, token: SampledToken | None, now: float) -> None:
        task, job = chunk.task, chunk.job
        is_first = task.sampling is not None and task.sampling.num_generated == 0
        if task.use_prefix_cache and (is_first or not chunk.is_decode):
            self.memory.remember(task.sequence)
        if token is not None:
            task.accept_token(token, now)
        if not task.is_done:
            return
        self._repeatable = None
        if task.use_prefix_cache:
            self.memory.remember(task.sequence)
        self.memory.end(task.sequence)
        if job.is_done:
            self._finish(job, now)
