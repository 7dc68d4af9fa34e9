"""Generation: what a request for text means, from its sampled tokens to the events its owner reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from braid.errors import BraidError
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import (
    CompletionEnd,
    Finished,
    SamplingParams,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from braid.llm_core.engine.sampling import SampledToken, SamplingState, completion_seed
from braid.llm_core.sequence import Sequence
from braid.llm_core.text.detokenizer import IncrementalDetokenizer
from braid.llm_core.text.stop import StopStrings
from braid.llm_core.text.tokenizer import Tokenizer

FIRST_TOKEN_TARGET_S = {RequestClass.INTERACTIVE: 0.5, RequestClass.STANDARD: 5.0, RequestClass.BATCH: 60.0}
NEXT_TOKEN_TARGET_S = {RequestClass.INTERACTIVE: 0.05, RequestClass.STANDARD: 0.5, RequestClass.BATCH: 5.0}
"""When a reader of each class begins to feel that it waits; the scheduler's deadlines."""


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """A checked request for text."""

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    max_new_tokens: int
    """What `sampling.max_tokens`, the context and the memory leave."""
    use_prefix_cache: bool = True
    echo_text: str = ""

    @property
    def longest(self) -> int:
        """Tokens that a sequence may come to."""
        return len(self.prompt_token_ids) + self.max_new_tokens


class Completion:
    """One of the n texts of a request: a sequence, its sampling state, and its text as far as it is certain."""

    hidden_layers: tuple[int, ...] = ()

    def __init__(self, job: GenerationJob, index: int, params: GenerateParams, tokenizer: Tokenizer) -> None:
        sampling = params.sampling
        self.sequence = Sequence(list(params.prompt_token_ids))
        self.use_prefix_cache = params.use_prefix_cache
        self.is_done = False
        self.index = index
        self.num_generated = 0
        self._job = job
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, list(params.prompt_token_ids), skip_special_tokens=sampling.skip_special_tokens
        )
        self._stop_strings = StopStrings(sampling.stop, include_stop=sampling.include_stop)
        ends = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends.update(tokenizer.eos_token_ids)
        self._end_token_ids = frozenset(ends)
        self.sampling: SamplingState | None = SamplingState(
            sampling,
            params.prompt_token_ids,
            completion_seed(params.seed, index),
            forbidden_until_min_tokens=tuple(sorted(ends)),
        )

    @property
    def is_prefilled(self) -> bool:
        return self.sequence.num_computed >= len(self._params.prompt_token_ids)

    def accept_token(self, token: SampledToken, now: float) -> None:
        """Append a token, emit its text and see whether the completion ends with it.

        Raises:
            BraidError: the model's logits for this token were not finite.
        """
        if token.error is not None:
            raise token.error
        assert self.sampling is not None
        self.sampling.observe(token.token_id)
        self.num_generated += 1
        self._job.note_token(now)
        if token.token_id in self._end_token_ids:
            self._end("stop")
            return
        self.sequence.token_ids.append(token.token_id)
        text, stopped = self._detokenizer.push(token.token_id), False
        if self.num_generated > self._params.sampling.min_tokens:
            text, stopped = self._stop_strings.push(text)
        self._emit(text, token)
        if stopped:
            self._end("stop", flush=False)
        elif self.num_generated >= self._params.max_new_tokens:
            self._end("length")

    def accept_hidden(self, hidden_states: Any) -> None:
        raise AssertionError("a completion asks for no hidden states")

    def _emit(self, text: str, token: SampledToken) -> None:
        logprobs = () if token.logprob is None else (self._logprob(token),)
        self._job.emit(TextDelta(self._job.request.id, self.index, text, (token.token_id,), logprobs))

    def _logprob(self, token: SampledToken) -> TokenLogprob:
        assert token.logprob is not None
        top = tuple(self._token_logprob(token_id, logprob) for token_id, logprob in token.top)
        return self._token_logprob(token.token_id, token.logprob, top)

    def _token_logprob(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        raw = self._tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, raw.decode("utf-8", "replace"), raw, logprob, top)

    def _end(self, reason: str, *, flush: bool = True) -> None:
        self.is_done = True
        job = self._job
        if flush:
            text, stopped = self._stop_strings.push(self._detokenizer.flush())
            text += "" if stopped else self._stop_strings.flush()
            if text:
                job.emit(TextDelta(job.request.id, self.index, text))
            reason = "stop" if stopped else reason
        job.emit(CompletionEnd(job.request.id, self.index, reason))


class GenerationJob:
    """A request for text: its completions, its times, its last event."""

    def __init__(self, request: Request, number: int, tokenizer: Tokenizer) -> None:
        params = request.params
        assert isinstance(params, GenerateParams)
        self.request = request
        self.number = number
        self.emit = request.sink
        self._params = params
        self._completions = [Completion(self, i, params, tokenizer) for i in range(params.sampling.n)]
        self._began_at: float | None = None
        self._first_token_at: float | None = None
        self._last_token_at = 0.0
        self._num_cached_tokens = 0

    @property
    def tasks(self) -> list[Completion]:
        """Siblings wait for the first completion's prompt, to find it in the prefix cache."""
        first = self._completions[0]
        if len(self._completions) > 1 and first.use_prefix_cache and not (first.is_prefilled or first.num_generated):
            return [first]
        return [completion for completion in self._completions if not completion.is_done]

    @property
    def is_done(self) -> bool:
        return all(completion.is_done for completion in self._completions)

    def deadline(self) -> float:
        if self._first_token_at is not None:
            return self._last_token_at + NEXT_TOKEN_TARGET_S[self.request.request_class]
        if self.request.deadline is not None:
            return self.request.deadline
        return self.request.arrival + FIRST_TOKEN_TARGET_S[self.request.request_class]

    def begin(self, now: float, num_cached_tokens: int) -> None:
        if self._began_at is not None:
            return
        self._began_at = now
        self._num_cached_tokens = num_cached_tokens
        num_prompt = len(self._params.prompt_token_ids)
        self.request.trace.phase("prefill", {"cached_tokens": num_cached_tokens, "prompt_tokens": num_prompt})
        self.emit(Started(self.request.id, num_prompt, num_cached_tokens, self._params.echo_text))

    def note_token(self, now: float) -> None:
        """A completion got a token at this time."""
        if self._first_token_at is None:
            self._first_token_at = now
            self.request.trace.phase("decode")
        self._last_token_at = now

    def finish(self, now: float) -> None:
        usage = Usage(
            prompt_tokens=len(self._params.prompt_token_ids),
            completion_tokens=sum(completion.num_generated for completion in self._completions),
            cached_tokens=self._num_cached_tokens,
        )
        self.request.trace.end({"completion_tokens": usage.completion_tokens})
        self.emit(Finished(self.request.id, usage, self._timings_ms()))

    def _timings_ms(self) -> dict[str, float]:
        assert self._began_at is not None and self._first_token_at is not None
        return {
            "queue": (self._began_at - self.request.arrival) * 1e3,
            "prefill": (self._first_token_at - self._began_at) * 1e3,
            "decode": (self._last_token_at - self._first_token_at) * 1e3,
        }

    def fail(self, error: BraidError) -> None:
        self.emit(failed(self.request.id, error))
