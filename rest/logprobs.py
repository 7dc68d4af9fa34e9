"""Log probabilities in OpenAI's two forms: chat's objects and the parallel arrays of completions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from braid.llm_core.engine.messages import TokenLogprob

LOWEST = -9999.0
"""What OpenAI writes for a token that cannot happen; JSON has no minus infinity."""


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct, frozen=True):
    """The token that was chosen, and what else could have been."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`choices[].logprobs` of chat."""

    content: list[ContentLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """`choices[].logprobs` of completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """Chat's form."""
    return ChatLogprobs(
        [
            ContentLogprob(
                token.token,
                _finite(token.logprob),
                list(token.token_bytes),
                [TopLogprob(top.token, _finite(top.logprob), list(top.token_bytes)) for top in token.top],
            )
            for token in tokens
        ]
    )


def text_logprobs(tokens: Sequence[TokenLogprob], *, offset: int) -> TextLogprobs:
    """The form of completions; the chosen token is always among `top_logprobs`.

    Args:
        offset: characters of the choice's text before the first of these tokens.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        [token.token for token in tokens],
        [_finite(token.logprob) for token in tokens],
        [{top.token: _finite(top.logprob) for top in (*token.top, token)} for token in tokens],
        offsets,
    )


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST  # a NaN becomes the lowest too
