"""Drives the language workload through any order of steps, without a scheduler, and records the bits of every logit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
from torch import Tensor

from braid.kernels.ops import Ops
from braid.llm_core.batching import BatchLimits
from braid.llm_core.core import Offer, Request, RequestClass
from braid.llm_core.decode import GenerateParams
from braid.llm_core.engine.messages import Failed, Finished, SamplingParams, TextDelta
from braid.llm_core.engine.sampling import SampledToken, Sampler, SamplingState
from braid.llm_core.language_workload import LanguageWorkload
from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.kv_pages import KVPages
from braid.llm_core.memory.prefix_cache import PrefixCache
from braid.llm_core.models.model import LanguageModel
from braid.llm_core.scheduler.cost import CostModel
from braid.llm_core.sequence_memory import SequenceMemory
from braid.llm_core.text.tokenizer import Tokenizer
from braid.llm_core.workspace import StepWorkspace


@dataclass(frozen=True)
class Prompt:
    """A request of a trace."""

    token_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float


@dataclass
class Output:
    """What one request got: its tokens and a digest of the logits of each."""

    token_ids: list[int] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)
    last_event: Any = None


class RecordingSampler(Sampler):
    """A sampler that keeps a digest of every row of logits it saw, by sampling state."""

    def __init__(self) -> None:
        super().__init__(Ops().sample)
        self.digests: dict[int, list[str]] = {}

    def sample(self, logits: Any, states: Sequence[SamplingState]) -> list[SampledToken]:
        rows = np.ascontiguousarray(logits.numpy() if isinstance(logits, Tensor) else logits)
        for row, state in zip(rows, states, strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=12).hexdigest()
            self.digests.setdefault(id(state), []).append(digest)
        return super().sample(logits, states)


class FixedCost(CostModel):
    """One millisecond a token, whatever steps really take: a trace is then the same on every machine and model."""

    def predict(self, key: str, features: Sequence[float]) -> float:
        return 0.01 + features[1] + features[2]

    def observe(self, key: str, features: Sequence[float], ms: float) -> None:
        pass


class Rig:
    """A language workload over `num_pages` pages, with a cost of one millisecond a token."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, *, num_pages: int, max_sequences: int = 24) -> None:
        limits = BatchLimits(max_sequences=max_sequences, max_step_tokens=512, min_chunk_tokens=1)
        self.arena = Arena(num_pages * model.page_bytes)
        self.pages = KVPages(
            self.arena, page_bytes=model.page_bytes, page_tokens=model.page_tokens, slab_bytes=8 * model.page_bytes
        )
        self.prefix_cache = PrefixCache(self.pages, page_tokens=model.page_tokens)
        self.sampler = RecordingSampler()
        self.outputs: dict[str, Output] = {}
        self.open: set[str] = set()
        self._states: list[Any] = []
        self.workload = LanguageWorkload(
            model,
            tokenizer,
            memory=SequenceMemory(self.pages, self.prefix_cache, max_sequences=max_sequences, max_tokens=2048),
            sampler=self.sampler,
            cost=FixedCost(),
            workspace=StepWorkspace(model, Arena(1 << 40), replace(limits, min_chunk_tokens=512)),
            limits=limits,
        )

    def submit(
        self,
        name: str,
        prompt: Prompt,
        *,
        use_prefix_cache: bool,
        request_class: RequestClass = RequestClass.INTERACTIVE,
    ) -> None:
        output = self.outputs[name] = Output()

        def sink(event: Any) -> None:
            if isinstance(event, TextDelta):
                output.token_ids.extend(event.token_ids)
            elif isinstance(event, Finished | Failed):
                self.open.discard(name)
                output.last_event = event

        sampling = SamplingParams(temperature=prompt.temperature, max_tokens=prompt.max_tokens, ignore_eos=True)
        params = GenerateParams(prompt.token_ids, sampling, prompt.seed, prompt.max_tokens, use_prefix_cache)
        request = Request(name, params, sink, request_class)
        self.open.add(name)
        self.workload.admit(request, 0.0)
        state = self.workload._jobs[name].tasks[0].sampling
        self._states.append(state)  # keeps its id from being reused
        self.sampler.digests[id(state)] = output.logits

    def offers(self) -> list[Offer]:
        """All offers, most urgent first as the policy would have them: by class, then arrival."""
        return sorted(self.workload.offers(0.0), key=lambda offer: offer.request_class)

    def step(self, rng: Random) -> None:
        """One step for a random selection of the requests in a random order, within a random budget."""
        self.workload._stalled_until = 0.0
        offers = list(self.workload.offers(0.0))
        rng.shuffle(offers)
        count = rng.randint(1, len(offers))
        self.workload.run(offers[:count], budget_ms=rng.choice([1.0, 3.0, 17.0, 40.0, 400.0]))

    def run(self, rng: Random, arrivals: Sequence[tuple[str, Prompt, bool]]) -> None:
        """Submit in order at random times and step until all have ended."""
        waiting = list(arrivals)
        for _ in range(100_000):
            if waiting and (not self.open or rng.random() < 0.3):
                name, prompt, use_prefix_cache = waiting.pop(0)
                self.submit(name, prompt, use_prefix_cache=use_prefix_cache)
            elif self.open:
                self.step(rng)
            else:
                assert not [o.last_event for o in self.outputs.values() if isinstance(o.last_event, Failed)]
                return
        raise AssertionError(f"no end in sight for {sorted(self.open)}")
