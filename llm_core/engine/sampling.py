"""Sampling parameters as a user gives them, and what one sequence remembers between its tokens.

The arithmetic is in `kernels.sampling` (the specification) and its kernels; this module turns parameters and history
into the rows that those take.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from braid.errors import ContextLengthExceeded, InvalidRequest
from braid.kernels import sampling as specification
from braid.kernels.sampling import FloatArray, IntArray, SampledToken, SampleKernel, SampleRow
from braid.llm_core.engine.messages import SamplingParams
from braid.llm_core.engine.uniform import completion_seed, stream, uniform

__all__ = ["SampledToken", "Sampler", "SamplingState", "check", "completion_seed"]

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
_INTEGERS = (("n", 1, 128), ("top_k", 0, 2**31 - 1), ("min_tokens", 0, 2**31 - 1))


def check(params: SamplingParams, *, vocab_size: int, context_length: int) -> None:
    """Refuse parameters that can never be right.

    Raises:
        InvalidRequest: naming the field, its value and the right range.
        ContextLengthExceeded: `max_tokens` is more than the model's whole context.
    """
    _check_numbers(params)
    for name, low, high in _INTEGERS:
        _check_integer(name, getattr(params, name), low, high)
    if params.logprobs is not None:
        _check_integer("logprobs", params.logprobs, 0, specification.MAX_TOP, param="top_logprobs")
    if params.seed is not None:
        _check_integer("seed", params.seed, -(2**63), 2**64 - 1)
    _check_length(params, context_length)
    _check_stop(params, vocab_size)
    _check_bias(params, vocab_size)


def _check_numbers(params: SamplingParams) -> None:
    _check_number("temperature", params.temperature, 0, 2)
    _check_number("top_p", params.top_p, 0, 1, excludes_low=True)
    _check_number("min_p", params.min_p, 0, 1)
    _check_number("presence_penalty", params.presence_penalty, -2, 2)
    _check_number("frequency_penalty", params.frequency_penalty, -2, 2)
    _check_number("repetition_penalty", params.repetition_penalty, 0, 10, excludes_low=True)


def _check_number(
    name: str, value: object, low: float, high: float, *, excludes_low: bool = False, param: str | None = None
) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (low < value if excludes_low else low <= value) or not value <= high:  # type: ignore[operator]
        lower = f"greater than {low}" if excludes_low else f"at least {low}"
        raise InvalidRequest(f"{name}={value!r} must be a number {lower} and at most {high}", param=param or name)


def _check_integer(name: str, value: object, low: int, high: int, *, param: str | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(f"{name}={value!r} must be an integer from {low} to {high}", param=param or name)


def _check_length(params: SamplingParams, context_length: int) -> None:
    longest = context_length
    if params.max_tokens is not None:
        _check_integer("max_tokens", params.max_tokens, 1, 2**63 - 1)
        if params.max_tokens > context_length:
            raise ContextLengthExceeded(
                f"max_tokens={params.max_tokens} is more than the model's context of {context_length} tokens",
                param="max_tokens",
            )
        longest = params.max_tokens
    if params.min_tokens > longest:
        raise InvalidRequest(f"min_tokens={params.min_tokens} must be at most {longest}", param="min_tokens")


def _check_stop(params: SamplingParams, vocab_size: int) -> None:
    if isinstance(params.stop, str) or len(params.stop) > MAX_STOP_STRINGS:
        given = "one string" if isinstance(params.stop, str) else f"{len(params.stop)} strings"
        raise InvalidRequest(f"stop is {given}; it must be a list of at most {MAX_STOP_STRINGS} strings", param="stop")
    for i, text in enumerate(params.stop):
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            shown = repr(text) if len(repr(text)) <= 80 else f"{repr(text)[:80]}..."
            raise InvalidRequest(
                f"stop.{i}={shown} must be a string of 1 to {MAX_STOP_CHARACTERS} characters", param=f"stop.{i}"
            )
    for i, token_id in enumerate(params.stop_token_ids):
        _check_integer(f"stop_token_ids.{i}", token_id, 0, vocab_size - 1)


def _check_bias(params: SamplingParams, vocab_size: int) -> None:
    for token_id, bias in params.logit_bias.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"logit_bias has the token id {token_id!r}; ids are integers from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        _check_number(f"logit_bias.{token_id}", bias, -100, 100, param="logit_bias")


class TokenCounts:
    """Which tokens a sequence holds, and how often each was generated. Arrays grow by doubling."""

    def __init__(self, prompt_token_ids: Sequence[int] | IntArray) -> None:
        distinct = np.unique(np.asarray(prompt_token_ids, np.int32))
        self._slots = {token_id: slot for slot, token_id in enumerate(distinct.tolist())}
        self._ids = np.concatenate((distinct, np.zeros(64, np.int32)))
        self._counts = np.zeros(len(self._ids), np.int32)

    def add(self, token_id: int) -> None:
        """Count one generated token."""
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros(slot, np.int32)))
            self._counts = np.concatenate((self._counts, np.zeros(slot, np.int32)))
        self._ids[slot] = token_id
        self._counts[slot] += 1

    def seen(self) -> IntArray:
        """(num_seen,) distinct tokens, a view."""
        return self._ids[: len(self._slots)]

    def counts(self) -> IntArray:
        """(num_seen,) how often each was generated, a view."""
        return self._counts[: len(self._slots)]


class SamplingState:
    """One sequence's parameters and history.

    It can be built again at any time from the same arguments by observing the generated tokens anew: then it goes on
    with the same random numbers.

    Args:
        params: checked.
        prompt_token_ids: for the repetition penalty.
        seed: the request's, drawn by the caller where the user gave none.
            Give each of n completions its own `completion_seed`.
        forbidden_until_min_tokens: tokens that end a text.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int] | IntArray,
        seed: int,
        *,
        forbidden_until_min_tokens: Sequence[int] = (),
    ) -> None:
        self.params = params
        self.num_generated = 0
        self._stream = stream(seed)
        self._counts = TokenCounts(prompt_token_ids) if _has_penalties(params) else None
        self._row = _constant_row(params)
        if params.min_tokens > 0:
            self._row.forbidden = np.unique(np.asarray(forbidden_until_min_tokens, np.int32))

    def observe(self, token_id: int) -> None:
        """Take note of a token that now belongs to the sequence's answer."""
        self.num_generated += 1
        if self._counts is not None:
            self._counts.add(token_id)
        if self.num_generated == self.params.min_tokens:
            self._row.forbidden = self._row.forbidden[:0]

    def row(self) -> SampleRow:
        """What to ask of the next logits; valid until the next `observe`."""
        row = self._row
        row.uniform = uniform(self._stream, self.num_generated)
        if self._counts is not None:
            row.seen, row.counts = self._counts.seen(), self._counts.counts()
        return row


def _has_penalties(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _constant_row(params: SamplingParams) -> SampleRow:
    """The part of a row that never changes."""
    return SampleRow(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        num_top=-1 if params.logprobs is None else params.logprobs,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias_ids=np.fromiter(params.logit_bias.keys(), np.int32),
        bias=np.fromiter(params.logit_bias.values(), np.float32),
    )


class Sampler:
    """Chooses the next token of each sequence.

    Args:
        kernel: what does it, such as `Ops.sample`; the specification if None.
    """

    def __init__(self, kernel: SampleKernel | None = None) -> None:
        self._kernel = specification.sample if kernel is None else kernel

    def sample(self, logits: Tensor | FloatArray, states: Sequence[SamplingState]) -> list[SampledToken]:
        """Choose one token for each row, without observing it.

        Args:
            logits: (num_rows, vocab_size) float32, numpy or torch, unchanged.
            states: one for each row.
        Returns:
            For each row its token, or in `error` why its request must end; the other rows are unaffected.
        """
        return self._kernel(logits, [state.row() for state in states])
