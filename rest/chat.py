"""`POST /v1/chat/completions`: OpenAI's fields, ours, and what this server refuses rather than ignores."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.errors import InvalidRequest, Unsupported
from braid.llm_core.engine.messages import (
    CompletionEnd,
    Event,
    Finished,
    GenerateRequest,
    Started,
    TextDelta,
    TokenLogprob,
)
from braid.rest.body import convert, read_json
from braid.rest.chat_messages import template_messages
from braid.rest.identity import completion_id
from braid.rest.logprobs import ChatLogprobs, chat_logprobs
from braid.rest.models import ServedModel, resolve
from braid.rest.sampling import MAX_TOP_LOGPROBS, Int64, SamplingFields, request_class, sampling_params
from braid.rest.stream import answer
from braid.rest.trace_place import traceparent_of
from braid.rest.usage import UsageBody, usage_body

HINTS = frozenset(
    {
        *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store", "user"),
        "verbosity",
    }
)
"""Known fields that change no answer of a local model, and are accepted for the clients that send them."""


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against traffic analysis; not done, and nobody can tell the difference from its absence."""


class ChatBody(SamplingFields, kw_only=True):
    """The fields of a chat request that are used, or looked at to refuse them."""

    messages: Any = None
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None


KNOWN_FIELDS = frozenset(ChatBody.__struct_fields__) | HINTS


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, streaming or not."""
    state = request.app.state
    raw = await read_json(request, limit_bytes=state.max_body_bytes)
    state.unknown_fields.notice(raw, KNOWN_FIELDS, url="/v1/chat/completions")
    body = convert(raw, ChatBody)
    check_supported(body)
    model = resolve(state.engine.ready, body.model)
    generate = chat_request(body, model=model, request_id=completion_id("chatcmpl"))
    generate = msgspec.structs.replace(generate, traceparent=traceparent_of(request), tenant=request.state.owner)
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    form = ChatFormat(generate.id, model.name, include_usage=include_usage, has_logprobs=bool(body.logprobs))
    return await answer(request, state.engine, [generate], form, is_stream=bool(body.stream))


def chat_request(body: ChatBody, *, model: ServedModel, request_id: str) -> GenerateRequest:
    """The engine's request for a chat body.

    Raises:
        InvalidRequest: naming the field.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is only for stream=true", param="stream_options")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if max_tokens is not None and max_tokens < 1:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise InvalidRequest(f"{name}={max_tokens} must be at least 1", param=name)
    return GenerateRequest(
        id=request_id,
        model=model.id,
        messages=template_messages(body.messages),
        sampling=sampling_params(body, max_tokens=max_tokens, logprobs=_num_logprobs(body)),
        request_class=request_class(body.priority),
    )


def check_supported(body: ChatBody) -> None:
    """Refuse what would change the answer and cannot be done yet.

    Raises:
        Unsupported: naming the field.
    """
    for name in ("tools", "functions"):
        if getattr(body, name):
            raise Unsupported(f"{name} are not supported yet; leave the field out", param=name)
    for name in ("audio", "web_search_options", "moderation"):
        if getattr(body, name) is not None:
            raise Unsupported(f"{name} is not supported yet; leave the field out", param=name)
    for name in ("tool_choice", "function_call"):
        if getattr(body, name) not in (None, "none", "auto"):
            raise Unsupported(f"{name} may only be 'none' or 'auto': tools are not supported yet", param=name)
    _check_response_format(body.response_format)
    _check_modalities(body.modalities)


def _check_response_format(response_format: dict[str, Any] | None) -> None:
    kind = "text" if response_format is None else response_format.get("type")
    if kind in ("json_object", "json_schema"):
        message = f"response_format of type {kind!r} is not supported yet, only 'text'"
        raise Unsupported(message, param="response_format")
    if kind != "text":
        message = f"response_format.type={str(kind)[:100]!r} must be 'text'"
        raise InvalidRequest(message, param="response_format.type")


def _check_modalities(modalities: list[str] | None) -> None:
    for modality in modalities or ():
        if modality == "audio":
            raise Unsupported("modalities with 'audio' is not supported yet, only ['text']", param="modalities")
        if modality != "text":
            raise InvalidRequest(f"modalities holds {modality[:100]!r}; it may hold 'text'", param="modalities")


def _num_logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs is None:
        return 0 if body.logprobs else None
    if not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs=true", param="top_logprobs")
    if not 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS:
        message = f"top_logprobs={body.top_logprobs} must be between 0 and {MAX_TOP_LOGPROBS}"
        raise InvalidRequest(message, param="top_logprobs")
    return body.top_logprobs


class Delta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct):
    """One choice of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """One `chat.completion.chunk`; `usage` is absent unless it was asked for."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | msgspec.UnsetType | None = msgspec.UNSET


class Message(msgspec.Struct):
    """The assistant's message."""

    content: str
    role: str = "assistant"
    refusal: None = None


class Choice(msgspec.Struct):
    """One of the n answers."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str


class Completion(msgspec.Struct):
    """A `chat.completion`."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody


class _Answer:
    """One of the n answers while it grows."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason = ""


class ChatFormat:
    """Engine events as chat chunks or as one chat completion."""

    def __init__(self, answer_id: str, model: str, *, include_usage: bool, has_logprobs: bool) -> None:
        self._id = answer_id
        self._model = model
        self._created = int(time.time())
        self._include_usage = include_usage
        self._has_logprobs = has_logprobs
        self._seen: set[int] = set()
        self._answers: dict[int, _Answer] = {}
        self._usage: UsageBody = usage_body(())
        self._encode = msgspec.json.Encoder().encode

    def chunks(self, event: Event) -> list[bytes]:
        """A role chunk before each choice's first text, then its text, then its end."""
        if isinstance(event, TextDelta):
            return self._text_chunks(event)
        if isinstance(event, CompletionEnd):
            return [*self._role(event.index), self._chunk(event.index, Delta(), finish_reason=event.finish_reason)]
        if isinstance(event, Started):
            return self._role(0)
        if isinstance(event, Finished):
            self._usage = usage_body([event.usage])
        return []

    def last_chunks(self) -> list[bytes]:
        """The usage chunk, which has no choices."""
        if not self._include_usage:
            return []
        return [self._encode(self._envelope([], self._usage))]

    def collect(self, event: Event) -> None:
        """Add to one of the answers, or take the counts."""
        if isinstance(event, TextDelta):
            growing = self._answer(event.index)
            growing.texts.append(event.text)
            growing.logprobs += event.logprobs
        elif isinstance(event, CompletionEnd):
            self._answer(event.index).finish_reason = event.finish_reason
        elif isinstance(event, Finished):
            self._usage = usage_body([event.usage])

    def body(self) -> bytes:
        """The whole completion, choices in order."""
        choices = [
            Choice(index, Message("".join(done.texts)), self._logprobs(done.logprobs), done.finish_reason)
            for index, done in sorted(self._answers.items())
        ]
        return self._encode(Completion(self._id, "chat.completion", self._created, self._model, choices, self._usage))

    def _text_chunks(self, event: TextDelta) -> list[bytes]:
        if not event.text and not event.logprobs:
            return []  # a token whose character is not complete yet
        text = self._chunk(event.index, Delta(content=event.text), logprobs=self._logprobs(event.logprobs))
        return [*self._role(event.index), text]

    def _role(self, index: int) -> list[bytes]:
        if index in self._seen:
            return []
        self._seen.add(index)
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def _chunk(
        self, index: int, delta: Delta, *, logprobs: ChatLogprobs | None = None, finish_reason: str | None = None
    ) -> bytes:
        return self._encode(self._envelope([ChunkChoice(index, delta, logprobs, finish_reason)], None))

    def _envelope(self, choices: list[ChunkChoice], usage: UsageBody | None) -> Chunk:
        shown = usage if self._include_usage else msgspec.UNSET
        return Chunk(self._id, "chat.completion.chunk", self._created, self._model, choices, shown)

    def _logprobs(self, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
        return chat_logprobs(tokens) if self._has_logprobs else None

    def _answer(self, index: int) -> _Answer:
        return self._answers.setdefault(index, _Answer())
