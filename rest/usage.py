"""Token counts as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from braid.llm_core.engine.messages import Usage


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How much of the prompt came from the prefix cache."""

    cached_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """The `usage` object."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_body(usages: Iterable[Usage]) -> UsageBody:
    """The sum over the engine requests of one call."""
    prompt = completion = cached = 0
    for usage in usages:
        prompt += usage.prompt_tokens
        completion += usage.completion_tokens
        cached += usage.cached_tokens
    return UsageBody(prompt, completion, prompt + completion, PromptTokensDetails(cached))
