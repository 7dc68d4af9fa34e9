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

MAX_COMPLETIONS = 128
MAX_TOP_LOGPROBS = 20

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "n": (1, MAX_COMPLETIONS),
}
"""Inclusive on both sides."""

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
    if given.get("top_k") == -1:  # how other servers say "all"
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
    for name, (low, high) in RANGES.items():
        value = getattr(fields, name)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name}={value} must be between {low:g} and {high:g}", param=name)
    for token_id, bias in (fields.logit_bias or {}).items():
        if not -100 <= bias <= 100:
            message = f"logit_bias of token {token_id} is {bias}; it must be between -100 and 100"
            raise InvalidRequest(message, param="logit_bias")
        check_token_id(token_id, param="logit_bias")
    for token_id in fields.stop_token_ids or ():
        check_token_id(token_id, param="stop_token_ids")


def check_token_id(token_id: int, *, param: str) -> None:
    """Refuse what cannot be a token of any vocabulary."""
    if not 0 <= token_id < 2**31:
        raise InvalidRequest(f"{param} holds {token_id}, which is not a token id", param=param)
