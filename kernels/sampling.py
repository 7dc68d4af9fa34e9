"""Choosing a token from logits: what a row asks for, what comes back, and the plain version that is the specification.

The order is fixed: penalties, bias, forbidden tokens, temperature, top-k, top-p, min-p, and then the inverse of the
cumulative distribution over tokens of descending probability, the lower id first among equals. Every filter keeps a
prefix of that order. The uniform number comes from outside: this module draws nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from braid.errors import BraidError

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: float32 could not tell them apart."""
MAX_TOP = 20


def _no_ids() -> IntArray:
    return np.empty(0, np.int32)


@dataclass(slots=True)
class SampleRow:
    """What one row of logits asks for. Arrays are C-contiguous; ids are unique within each and in the vocabulary."""

    temperature: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0
    """In [0, 1)."""
    num_top: int = -1
    """How many of the likeliest tokens to report with logprobs, 0 to 20; -1: not even the chosen token's logprob."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seen: IntArray = field(default_factory=_no_ids)
    """(num_seen,) tokens of prompt and answer: those that penalties look at."""
    counts: IntArray = field(default_factory=_no_ids)
    """(num_seen,) how often each was generated; 0 where it stands in the prompt alone."""
    bias_ids: IntArray = field(default_factory=_no_ids)
    bias: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))
    """(num_bias,) added to the logits of `bias_ids`."""
    forbidden: IntArray = field(default_factory=_no_ids)
    """Tokens that must not be chosen now."""


class BadLogits(BraidError):
    """The model gave logits that no token can be drawn from; this row's request ends, its batch-mates go on."""

    code = "bad_logits"


class SampledToken(NamedTuple):
    """A choice. Logprobs are of the model's own distribution, before any parameter."""

    token_id: int
    """-1 beside an error."""
    logprob: float | None = None
    """None if the row did not ask."""
    top: tuple[tuple[int, float], ...] = ()
    """(token_id, logprob), likeliest first, the lower id first among equals; impossible tokens are left out."""
    error: BadLogits | None = None
    """Why this row has no token: its request must end, and no other."""


class SampleKernel(Protocol):
    """Choose one token for each row of logits; a row's result does not depend on the other rows.

    Args:
        logits: (num_rows, vocab_size) float32; left as they are.
    """

    def __call__(self, logits: Tensor | FloatArray, rows: list[SampleRow]) -> list[SampledToken]: ...


def not_a_distribution() -> SampledToken:
    """For a row whose logits, as the model gave them, are no distribution."""
    error = BadLogits("the model's logits hold NaN or +inf, or nothing but -inf: no token can be chosen from them")
    return SampledToken(-1, error=error)


def nothing_allowed() -> SampledToken:
    """For a row whose parameters leave no distribution."""
    error = BadLogits("no token can be chosen: the request's penalties, logit_bias and min_tokens exclude all of them")
    return SampledToken(-1, error=error)


def sample(logits: Tensor | FloatArray, rows: list[SampleRow]) -> list[SampledToken]:
    """The specification of `SampleKernel`, on any device, one row at a time."""
    tensor = logits if isinstance(logits, Tensor) else torch.from_numpy(logits)
    return [sample_row(tensor[i], row) for i, row in enumerate(rows)]


def sample_row(logits: Tensor, row: SampleRow) -> SampledToken:
    """Choose from one row, (vocab_size,) float32."""
    if not bool((logits < math.inf).all()) or bool((logits == -math.inf).all()):
        return not_a_distribution()
    adjusted = adjust(logits, row)
    largest = float(adjusted.max())
    if not largest < math.inf or largest == -math.inf:
        return nothing_allowed()
    token_id = greedy(adjusted) if row.temperature < GREEDY_BELOW else draw(adjusted, row)
    return with_logprobs(token_id, logits, row.num_top)


def adjust(logits: Tensor, row: SampleRow) -> Tensor:
    """Apply penalties, bias and forbidden tokens, in float32. Returns a new tensor.

    Source: the repetition penalty divides positive logits and multiplies negative ones (CTRL, Keskar et al. 2019,
    section 4.1, as all servers do it); the other two are subtracted (OpenAI's API reference).
    """

    def on_device(array: IntArray | FloatArray) -> Tensor:
        return torch.from_numpy(array).to(logits.device)

    adjusted = logits.clone()
    seen, counts = on_device(row.seen).long(), on_device(row.counts)
    repetition = torch.full((), row.repetition_penalty, dtype=torch.float32, device=logits.device)
    z = adjusted[seen]
    z = torch.where(z > 0, z / repetition, z * repetition)
    z = z - counts.float() * row.frequency_penalty
    adjusted[seen] = torch.where(counts > 0, z - row.presence_penalty, z)
    adjusted[on_device(row.bias_ids).long()] += on_device(row.bias)
    adjusted[on_device(row.forbidden).long()] = -math.inf
    return adjusted


def greedy(logits: Tensor) -> int:
    """The largest logit's token, the lowest id among equals."""
    return int((logits == logits.max()).nonzero()[0])


def draw(logits: Tensor, row: SampleRow) -> int:
    """Draw by temperature and filters; probabilities and their sums are float64."""
    descending, order = torch.sort(logits, descending=True, stable=True)
    z = descending.double()
    weights = torch.exp((z - z[0]) / row.temperature)
    if row.top_k:
        weights = weights[: row.top_k]
    cumulative = weights.cumsum(0)
    num_kept = min(len(weights), int((weights > 0).sum()))
    if row.top_p < 1:
        num_kept = min(num_kept, 1 + int((cumulative < row.top_p * cumulative[-1]).sum()))
    if row.min_p > 0:
        num_kept = min(num_kept, int((z >= z[0] + row.temperature * math.log(row.min_p)).sum()))
    target = row.uniform * cumulative[num_kept - 1]
    return int(order[min(num_kept - 1, int((cumulative <= target).sum()))])


def with_logprobs(token_id: int, logits: Tensor, num_top: int) -> SampledToken:
    """Report the choice with the logprobs that were asked for, from the model's own logits."""
    if num_top < 0:
        return SampledToken(token_id)
    logprobs = torch.log_softmax(logits.double(), 0)
    descending, order = torch.sort(logprobs, descending=True, stable=True)
    top = zip(order[:num_top].tolist(), descending[:num_top].tolist(), strict=True)
    return SampledToken(token_id, float(logprobs[token_id]), tuple(pair for pair in top if pair[1] > -math.inf))
