"""The sampling fields that chat and completions share: their types, their ranges, and the engine's `SamplingParams`.

The engine checks them again and alone has the last word (it knows the vocabulary and the context); what is cheap to see
is refused here, before a message crosses to it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from braid.errors import InvalidRequest
from braid.llm_core.engine.messages import SamplingParams

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

MAX_TOP_LOGPROBS = 20

NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
"""Inclusive on both sides."""

POSITIVE_NUMBERS: dict[str, float] = {"top_p": 1, "repetition_penalty": 10}
"""Greater than 0, and at most this."""

INTEGERS: dict[str, tuple[int, int]] = {"n": (1, 128), "top_k": (-1, 2**31 - 1), "min_tokens": (0, 2**31 - 1)}
"""Inclusive on both sides; a `top_k` of -1 is how other servers say "all"."""

PRIORITIES = ("interactive", "standard", "batch")
"""The names of `RequestClass`, in its order."""


class SamplingFields(msgspec.Struct, kw_only=True):
    """How to choose tokens, as OpenAI and its relatives name it. `null` is the same as absent."""

    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    max_tokens: Int64 | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int64 | None = None
    stop_token_ids: list[Int64] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    priority: str | None = None


def sampling_params(fields: SamplingFields, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """The engine's parameters; what is absent takes the engine's default.

    Raises:
        InvalidRequest: a value out of its range.
    """
    _check_ranges(fields)
    given = {name: getattr(fields, name) for name in _PLAIN if getattr(fields, name) is not None}
    if given.get("top_k") == -1:
        given["top_k"] = 0
    stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    if "" in stop:
        raise InvalidRequest("stop holds an empty string, which would end every text at once", param="stop")
    return SamplingParams(
        **given,
        stop=tuple(stop),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        max_tokens=max_tokens,
        logprobs=logprobs,
    )


def request_class(priority: str | None) -> int:
    """The number of a priority class; none given is interactive."""
    if priority is None:
        return 0
    if priority not in PRIORITIES:
        raise InvalidRequest(f"priority={priority!r} must be one of {', '.join(PRIORITIES)}", param="priority")
    return PRIORITIES.index(priority)


_PLAIN = (
    "temperature",
    "top_p",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
)


def _check_ranges(fields: SamplingFields) -> None:
    for name, (low, high) in NUMBERS.items():
        _check_number(name, getattr(fields, name), low, high)
    for name, high in POSITIVE_NUMBERS.items():
        value = getattr(fields, name)
        if value is not None and not 0 < value <= high:
            raise InvalidRequest(f"{name}={value!r} must be a number greater than 0 and at most {high}", param=name)
    for name, (first, last) in INTEGERS.items():
        count = getattr(fields, name)
        if count is not None and not first <= count <= last:
            raise InvalidRequest(f"{name}={count!r} must be an integer from {first} to {last}", param=name)
    for token_id, bias in (fields.logit_bias or {}).items():
        check_token_id(token_id, param="logit_bias")
        _check_number(f"logit_bias.{token_id}", bias, -100, 100, param="logit_bias")
    for token_id in fields.stop_token_ids or ():
        check_token_id(token_id, param="stop_token_ids")


def _check_number(name: str, value: float | None, low: float, high: float, *, param: str | None = None) -> None:
    if value is not None and not low <= value <= high:
        message = f"{name}={value!r} must be a number at least {low} and at most {high}"
        raise InvalidRequest(message, param=param or name)


def check_token_id(token_id: int, *, param: str) -> None:
    """Refuse what cannot be a token of any vocabulary."""
    if not 0 <= token_id < 2**31:
        raise InvalidRequest(f"{param} holds {token_id}, which is not a token id", param=param)
