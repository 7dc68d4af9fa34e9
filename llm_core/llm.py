"""The Python face of the language model: chat, generate, encode; at once, as a stream, or awaited.

A thin face over an engine handle; whoever builds the engine (the package root) gives it one.
"""

from __future__ import annotations

import asyncio
import queue
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from braid.errors import InvalidRequest
from braid.llm_core.engine.face import EngineFace
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.handle import EngineHandle, Submission
from braid.llm_core.engine.messages import (
    CompletionEnd,
    Encoded,
    EncodeRequest,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    Started,
    Stats,
    StatsRequest,
    TextDelta,
    TokenLogprob,
    Usage,
)

Messages = Sequence[dict[str, Any]]
Prompt = str | Sequence[int]


@dataclass(slots=True)
class GeneratedText:
    """One of the n texts of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Without the token that ended it."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""
    """`stop` or `length`."""


@dataclass(slots=True)
class Generation:
    """What a request gave."""

    request_id: str
    texts: list[GeneratedText]
    usage: Usage = field(default_factory=Usage)
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0].text

    def take(self, event: Event) -> bool:
        """Add an event; True when it was the last.

        Raises:
            RequestFailed: the request failed.
        """
        if isinstance(event, TextDelta):
            text = self.texts[event.index]
            text.text += event.text
            text.token_ids.extend(event.token_ids)
            text.logprobs.extend(event.logprobs)
        elif isinstance(event, CompletionEnd):
            self.texts[event.index].finish_reason = event.finish_reason
        elif isinstance(event, Finished):
            self.usage, self.timings_ms = event.usage, event.timings_ms
        return _is_last(event)


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Encoded prompts."""

    hidden_states: Any
    """(num_prompts, length, hidden_size, num_layers) float32; zeros where padded."""
    attention_mask: Any
    """(num_prompts, length) int64; 1 for tokens, 0 for padding."""


class LLM(EngineFace[EngineHandle]):
    """Talk to the language model of an engine."""

    # -- one answer

    @overload
    def chat(
        self, messages: Messages, sampling: SamplingParams | None = None, *, stream: Literal[False] = False
    ) -> Generation: ...
    @overload
    def chat(
        self, messages: Messages, sampling: SamplingParams | None = None, *, stream: Literal[True]
    ) -> Iterator[str]: ...
    def chat(
        self, messages: Messages, sampling: SamplingParams | None = None, *, stream: bool = False
    ) -> Generation | Iterator[str]:
        """Answer a conversation in OpenAI's form.

        Returns:
            The answer, or with `stream` an iterator of pieces of the first text; leaving it early cancels the request.
        Raises:
            RequestFailed: with the status, code and field that HTTP would give.
        """
        request = _chat_request(messages, sampling)
        return self._stream_text(request) if stream else self._generate(request)

    def generate(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Generation:
        """Continue a text or a list of token ids.

        Raises:
            RequestFailed: with the status, code and field that HTTP would give.
        """
        return self._generate(_prompt_request(prompt, sampling))

    def generate_all(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | None = None
    ) -> list[Generation]:
        """Continue several prompts at once.

        Raises:
            RequestFailed: of the first prompt that failed; the others are cancelled.
        """
        requests = [_prompt_request(prompt, sampling) for prompt in prompts]
        pending = deque(self._submit(request) for request in requests)
        try:
            return [self._collect(*pending.popleft()) for _ in requests]
        finally:
            for request, _ in pending:  # what nobody is going to read
                self.engine.cancel(request.id)

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Iterator[str]:
        """Continue a text piece by piece; leaving the iterator early cancels the request."""
        return self._stream_text(_prompt_request(prompt, sampling))

    def encode(
        self,
        prompts: Sequence[str],
        *,
        layers: Sequence[int] | None = None,
        max_length: int | None = None,
        padding_side: str = "left",
    ) -> HiddenStates:
        """Hidden states of prompts, for conditioning.

        Args:
            layers: 0 is the embeddings, i the output of layer i, the last after the final norm; None is all.
            max_length: truncate and pad to so many tokens; None pads to the longest prompt.
            padding_side: `left` or `right`.
        """
        request = EncodeRequest(
            id=_new_id(),
            prompts=list(prompts),
            layers=None if layers is None else tuple(layers),
            max_length=max_length,
            padding_side=padding_side,
        )
        for event in self._events(request):
            if isinstance(event, Encoded):
                return HiddenStates(event.hidden_states, event.attention_mask)
        raise AssertionError("an encoding ends with Encoded")

    def stats(self) -> dict[str, Any]:
        """Counters of the engine."""
        for event in self._events(StatsRequest(id=_new_id())):
            if isinstance(event, Stats):
                return event.values
        raise AssertionError("a stats request ends with Stats")

    # -- awaited

    async def achat(self, messages: Messages, sampling: SamplingParams | None = None) -> Generation:
        """`chat` for coroutines; cancelling the coroutine cancels the request."""
        return await self._agenerate(_chat_request(messages, sampling))

    async def agenerate(self, prompt: Prompt, sampling: SamplingParams | None = None) -> Generation:
        """`generate` for coroutines."""
        return await self._agenerate(_prompt_request(prompt, sampling))

    async def astream_chat(self, messages: Messages, sampling: SamplingParams | None = None) -> AsyncIterator[str]:
        """Pieces of the first text of an answer; closing the iterator cancels the request."""
        async with aclosing(self._aevents(_chat_request(messages, sampling))) as events:
            async for event in events:
                if isinstance(event, TextDelta) and event.index == 0 and event.text:
                    yield event.text

    # -- how events come

    def _submit(self, request: Submission) -> tuple[Submission, queue.SimpleQueue[Event]]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engine.submit(request, events.put)
        return request, events

    def _events(self, request: Submission) -> Iterator[Event]:
        _, events = self._submit(request)
        yield from self._drain(request, events.get)

    def _drain(self, request: Submission, get: Callable[[], Event]) -> Iterator[Event]:
        is_last = False
        try:
            while not is_last:
                event = get()
                is_last = _is_last(event)
                yield event
        finally:
            if not is_last:
                self.engine.cancel(request.id)

    def _generate(self, request: GenerateRequest) -> Generation:
        return self._collect(*self._submit(request))

    def _collect(self, request: Submission, events: queue.SimpleQueue[Event]) -> Generation:
        assert isinstance(request, GenerateRequest)
        generation = _empty_generation(request)
        for event in self._drain(request, events.get):
            generation.take(event)
        return generation

    def _stream_text(self, request: GenerateRequest) -> Iterator[str]:
        for event in self._events(request):
            if isinstance(event, TextDelta) and event.index == 0 and event.text:
                yield event.text

    async def _aevents(self, request: Submission) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def on_event(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self.engine.submit(request, on_event)
        is_last = False
        try:
            while not is_last:
                event = await events.get()
                is_last = _is_last(event)
                yield event
        finally:
            if not is_last:
                self.engine.cancel(request.id)

    async def _agenerate(self, request: GenerateRequest) -> Generation:
        generation = _empty_generation(request)
        async for event in self._aevents(request):
            generation.take(event)
        return generation


def _new_id() -> str:
    return uuid.uuid4().hex


def _chat_request(messages: Messages, sampling: SamplingParams | None) -> GenerateRequest:
    return GenerateRequest(id=_new_id(), messages=list(messages), sampling=sampling or SamplingParams())


def _prompt_request(prompt: Prompt, sampling: SamplingParams | None) -> GenerateRequest:
    sampling = sampling or SamplingParams()
    if isinstance(prompt, str):
        return GenerateRequest(id=_new_id(), prompt=prompt, sampling=sampling)
    if not all(isinstance(token_id, int) for token_id in prompt):
        raise InvalidRequest("prompt must be a string or a list of token ids", param="prompt")
    return GenerateRequest(id=_new_id(), prompt_token_ids=list(prompt), sampling=sampling)


def _empty_generation(request: GenerateRequest) -> Generation:
    return Generation(request.id, [GeneratedText(i) for i in range(request.sampling.n)])


def _is_last(event: Event) -> bool:
    if isinstance(event, Failed):
        raise RequestFailed(event)
    return not isinstance(event, Started | TextDelta | CompletionEnd)
