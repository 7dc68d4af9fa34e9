"""`POST /v1/completions`: continue a text; one or many prompts, as text or as token ids."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.errors import InvalidRequest, MissingField, Unsupported
from braid.llm_core.engine.messages import (
    CompletionEnd,
    Event,
    Finished,
    GenerateRequest,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from braid.rest.body import convert, read_json, type_name
from braid.rest.chat import HINTS, StreamOptions
from braid.rest.errors import InvalidType
from braid.rest.identity import completion_id
from braid.rest.logprobs import TextLogprobs, text_logprobs
from braid.rest.models import ServedModel, resolve
from braid.rest.sampling import (
    MAX_TOP_LOGPROBS,
    Int64,
    SamplingFields,
    check_token_id,
    request_class,
    sampling_params,
)
from braid.rest.stream import answer
from braid.rest.trace_place import traceparent_of
from braid.rest.usage import UsageBody, usage_body

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

Prompt = str | list[int]


class CompletionBody(SamplingFields, kw_only=True):
    """The fields of a completion request."""

    prompt: Any = None
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Int64 | None = None
    echo: bool | None = None
    best_of: Int64 | None = None
    suffix: str | None = None


KNOWN_FIELDS = frozenset(CompletionBody.__struct_fields__) | HINTS


async def completions(request: Request) -> Response:
    """Continue one or many prompts, streaming or not."""
    state = request.app.state
    raw = await read_json(request, limit_bytes=state.max_body_bytes)
    state.unknown_fields.notice(raw, KNOWN_FIELDS, url="/v1/completions")
    body = convert(raw, CompletionBody)
    check_supported(body)
    model = resolve(state.engine.ready, body.model)
    answer_id = completion_id("cmpl")
    requests = completion_requests(
        body,
        model=model,
        answer_id=answer_id,
        traceparent=traceparent_of(request),
        tenant=request.state.owner,
    )
    form = CompletionFormat(
        answer_id,
        model.name,
        num_choices_per_prompt=body.n or 1,
        request_ids=[generate.id for generate in requests],
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        has_logprobs=body.logprobs is not None,
    )
    return await answer(request, state.engine, requests, form, is_stream=bool(body.stream))


def completion_requests(
    body: CompletionBody, *, model: ServedModel, answer_id: str, traceparent: str | None, tenant: str = ""
) -> list[GenerateRequest]:
    """One engine request a prompt, in order.

    Raises:
        BraidError: naming the field.
    """
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens < 1:
        raise InvalidRequest(f"max_tokens={max_tokens} must be at least 1", param="max_tokens")
    sampling = sampling_params(body, max_tokens=max_tokens, logprobs=body.logprobs)
    urgency = request_class(body.priority)
    return [
        GenerateRequest(
            id=f"{answer_id}-{number}",
            model=model.id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=None if isinstance(prompt, str) else prompt,
            sampling=sampling,
            request_class=urgency,
            traceparent=traceparent,
            tenant=tenant,
            echo=bool(body.echo),
        )
        for number, prompt in enumerate(read_prompts(body.prompt))
    ]


def check_supported(body: CompletionBody) -> None:
    """Refuse what would change the answer and cannot be done, and what contradicts itself.

    Raises:
        InvalidRequest: naming the field.
    """
    if body.suffix:
        raise Unsupported("suffix is not supported; leave the field out", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        message = f"best_of={body.best_of} is only supported equal to n={body.n or 1}"
        raise Unsupported(message, param="best_of")
    if body.echo and body.logprobs is not None:
        raise Unsupported("logprobs of the prompt (echo with logprobs) are not supported yet", param="logprobs")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
        message = f"logprobs={body.logprobs} must be between 0 and {MAX_TOP_LOGPROBS}"
        raise InvalidRequest(message, param="logprobs")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is only for stream=true", param="stream_options")


def read_prompts(prompt: object) -> list[Prompt]:
    """The prompts of one call: a string, token ids, or a list of either.

    Raises:
        BraidError: naming the place.
    """
    if prompt is None:
        raise MissingField("prompt is missing; send a string, token ids, or a list of either", param="prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise InvalidType(f"prompt must be a string or an array, not {type_name(prompt)}", param="prompt")
    if not prompt:
        raise InvalidRequest("prompt is empty; send at least one prompt", param="prompt")
    if isinstance(prompt[0], int):
        return [_token_ids(prompt, "prompt")]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt holds {len(prompt)} prompts; at most {MAX_PROMPTS} in one call", param="prompt")
    return [_one_prompt(item, f"prompt.{index}") for index, item in enumerate(prompt)]


def _one_prompt(prompt: object, place: str) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return _token_ids(prompt, place)
    raise InvalidType(f"{place} must be a string or an array of token ids, not {type_name(prompt)}", param=place)


def _token_ids(token_ids: list[Any], place: str) -> list[int]:
    if not token_ids:
        raise InvalidRequest(f"{place} is an empty array of token ids", param=place)
    for token_id in token_ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise InvalidType(f"{place} must hold token ids only, not {type_name(token_id)}", param=place)
        check_token_id(token_id, param=place)
    return token_ids


class Choice(msgspec.Struct):
    """One choice, of a chunk or of the whole answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A `text_completion`; chunks have the same form."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody | msgspec.UnsetType | None = msgspec.UNSET


class _Answer:
    """One choice while it grows."""

    def __init__(self, prompt: str) -> None:
        self.texts = [prompt]
        self.logprobs: list[TokenLogprob] = []
        self.num_chars = len(prompt)
        self.finish_reason = ""


class CompletionFormat:
    """Engine events as completion chunks or as one completion.

    Choices are numbered over all prompts: prompt p has `p * n` to `p * n + n - 1`.
    """

    def __init__(
        self,
        answer_id: str,
        model: str,
        *,
        num_choices_per_prompt: int,
        request_ids: Sequence[str],
        include_usage: bool,
        has_logprobs: bool,
    ) -> None:
        self._id = answer_id
        self._model = model
        self._created = int(time.time())
        self._n = num_choices_per_prompt
        self._first_index = {request_id: p * self._n for p, request_id in enumerate(request_ids)}
        self._include_usage = include_usage
        self._has_logprobs = has_logprobs
        self._answers: dict[int, _Answer] = {}
        self._usages: list[Usage] = []
        self._encode = msgspec.json.Encoder().encode

    def chunks(self, event: Event) -> list[bytes]:
        """Text (after the prompt, for `echo`), then the end of the choice."""
        if isinstance(event, Started):
            self.collect(event)
            return [self._chunk(self._echo(index)) for index in self._indices(event) if event.prompt]
        if isinstance(event, TextDelta) and (event.text or event.logprobs):
            return [self._chunk(self._text(event))]
        if isinstance(event, CompletionEnd):
            return [self._chunk(Choice(self._index(event), "", finish_reason=event.finish_reason))]
        if isinstance(event, Finished):
            self.collect(event)
        return []

    def last_chunks(self) -> list[bytes]:
        """The usage chunk, which has no choices."""
        if not self._include_usage:
            return []
        return [self._encode(self._envelope([], usage_body(self._usages)))]

    def collect(self, event: Event) -> None:
        """Add to one of the choices, or take the counts."""
        if isinstance(event, Started):
            self._answers.update({index: _Answer(event.prompt) for index in self._indices(event)})
        elif isinstance(event, TextDelta):
            growing = self._answers[self._index(event)]
            growing.texts.append(event.text)
            growing.logprobs += event.logprobs
        elif isinstance(event, CompletionEnd):
            self._answers[self._index(event)].finish_reason = event.finish_reason
        elif isinstance(event, Finished):
            self._usages.append(event.usage)

    def body(self) -> bytes:
        """The whole completion, choices in order."""
        choices = [
            Choice(index, "".join(done.texts), self._logprobs(done.logprobs, 0), done.finish_reason)
            for index, done in sorted(self._answers.items())
        ]
        return self._encode(
            Completion(self._id, "text_completion", self._created, self._model, choices, usage_body(self._usages))
        )

    def _echo(self, index: int) -> Choice:
        return Choice(index, self._answers[index].texts[0])

    def _text(self, event: TextDelta) -> Choice:
        growing = self._answers[self._index(event)]
        logprobs = self._logprobs(event.logprobs, growing.num_chars)
        growing.num_chars += sum(len(token.token) for token in event.logprobs)
        return Choice(self._index(event), event.text, logprobs)

    def _chunk(self, choice: Choice) -> bytes:
        return self._encode(self._envelope([choice], None))

    def _envelope(self, choices: list[Choice], usage: UsageBody | None) -> Completion:
        shown = usage if self._include_usage else msgspec.UNSET
        return Completion(self._id, "text_completion", self._created, self._model, choices, shown)

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> TextLogprobs | None:
        return text_logprobs(tokens, offset=offset) if self._has_logprobs else None

    def _index(self, event: TextDelta | CompletionEnd) -> int:
        return self._first_index[event.request_id] + event.index

    def _indices(self, event: Started) -> range:
        first = self._first_index[event.request_id]
        return range(first, first + self._n)
