"""What the trace of a request says of it from the start: names of OpenTelemetry's conventions for generative AI where
there are some, and what metrics tell requests apart by. A prompt only where somebody asked for that.

Source: OpenTelemetry semantic conventions for generative AI, client spans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from braid.llm_core.core import RequestClass
from braid.llm_core.engine.messages import EncodeRequest, GenerateRequest
from braid.tracing.logs import MAX_PROMPT_CHARS
from braid.tracing.request_trace import AttributeValue

REQUEST = "request"
"""The name of a request's span that no convention names."""


class Classed(Protocol):
    """What every request has."""

    @property
    def request_class(self) -> int: ...


def describe(request: GenerateRequest | EncodeRequest, model: str) -> tuple[str, dict[str, AttributeValue]]:
    """The name and the attributes of a language request's span.

    Args:
        model: the one that is asked, whether the request names it or not.
    """
    common = class_attributes(request) | {"gen_ai.request.model": model}
    if isinstance(request, EncodeRequest):
        return REQUEST, common
    operation = "text_completion" if request.messages is None else "chat"
    sampling = request.sampling
    said: Mapping[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.seed": sampling.seed,
    }
    return f"{operation} {model}", common | {name: value for name, value in said.items() if value is not None}


def class_attributes(request: Classed) -> dict[str, AttributeValue]:
    """The class's name, or the number that is none, and the deadline if there is one."""
    number = request.request_class
    names = {known.value: known.name.lower() for known in RequestClass}
    found: dict[str, AttributeValue] = {"request_class": names.get(number, str(number))}
    deadline_s: float | None = getattr(request, "deadline_s", None)
    return found if deadline_s is None else found | {"deadline_s": deadline_s}


def prompt_of(request: object) -> str:
    """What was asked, in text and cut off where it is long; the messages of a chat as JSON."""
    messages = getattr(request, "messages", None)
    if messages is not None:
        return msgspec.json.encode(messages).decode()[:MAX_PROMPT_CHARS]
    prompts = getattr(request, "prompts", None)
    text = "\n".join(prompts) if prompts else getattr(request, "prompt", None)
    return (text or "")[:MAX_PROMPT_CHARS]
