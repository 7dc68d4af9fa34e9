"""An engine that says what its prompt tells it to, on a thread of its own: for tests of protocols only.

The last message (or the prompt) is the script: words separated by spaces. `!wait` stops until a cancel, `!fail` fails
in the middle, `!refuse` refuses at once, `!overload` refuses with a time to come again, `!die` ends the process,
`!slow` waits 20 ms, `!silent` gives an event without text; every other word is one token.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from dataclasses import dataclass, field

from braid.diffusion.jobs.messages import Nudge
from braid.errors import BraidError, InvalidRequest, Overloaded, RequestCancelled
from braid.llm_core.engine.handle import OnEvent
from braid.llm_core.engine.messages import (
    CompletionEnd,
    EngineReady,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    Started,
    Stats,
    TextDelta,
    TokenLogprob,
    Usage,
)
from braid.rest.wire_messages import WireSubmission

READY = EngineReady(
    (
        {
            "id": "scripted-135m",
            "aliases": ["scripted", "org/scripted"],
            "context_length": 8192,
            "architecture": "none",
            "capabilities": ["chat"],
            "kernels": {},
        },
    )
)


def failed(request_id: str, error: BraidError) -> Failed:
    retry_after_s = getattr(error, "retry_after_s", None)
    return Failed(request_id, error.message, error.status, error.type, error.code, error.param, retry_after_s)


def logprob(word: str, k: int) -> TokenLogprob:
    top = tuple(TokenLogprob(i, f"t{i}", b"t%d" % i, -math.inf if i else -0.5) for i in range(k))
    return TokenLogprob(7, word, word.encode(), -0.5, top)


@dataclass
class Running:
    request: GenerateRequest
    on_event: OnEvent
    cancelled: threading.Event = field(default_factory=threading.Event)


class ScriptedEngine:
    """Remembers what it was asked and what was cancelled."""

    def __init__(self, ready: EngineReady = READY) -> None:
        self.ready = ready
        self.submitted: list[WireSubmission] = []
        self.nudges: list[Nudge] = []
        self.cancelled: queue.Queue[str] = queue.Queue()
        self._running: dict[str, Running] = {}
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, request: WireSubmission, on_event: OnEvent) -> None:
        self.submitted.append(request)
        if not isinstance(request, GenerateRequest):
            on_event(Stats(request.id, {"running": self.running}))
            return
        running = Running(request, on_event)
        with self._lock:
            self._running[request.id] = running
        threading.Thread(target=self._run, args=(running,), daemon=True).start()

    def send(self, nudge: Nudge) -> None:
        self.nudges.append(nudge)

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        self.cancelled.put(request_id)
        with self._lock:
            running = self._running.get(request_id)
        if running:
            running.cancelled.set()

    def close(self) -> None:
        for running in list(self._running.values()):
            running.cancelled.set()

    def _run(self, running: Running) -> None:
        request = running.request
        try:
            last: Event = self._play(running)
        except BraidError as error:
            last = failed(request.id, error)
        with self._lock:
            del self._running[request.id]
        running.on_event(last)

    def _play(self, running: Running) -> Finished:
        request, emit = running.request, running.on_event
        words = script(request).split(" ")
        sampling = request.sampling
        if words[0] == "!refuse":
            raise InvalidRequest("max_tokens=9 is not to my taste", param="max_tokens")
        if words[0] == "!overload":
            raise Overloaded("256 requests are waiting", retry_after_s=2.3)
        emit(Started(request.id, prompt_tokens=11, cached_tokens=4, prompt=script(request) if request.echo else ""))
        num_tokens = 0
        for place, word in enumerate(words[: sampling.max_tokens]):
            for index in range(sampling.n):
                if self._act(word, running):
                    continue
                text = word if place == 0 else " " + word
                logprobs = () if sampling.logprobs is None else (logprob(text, sampling.logprobs),)
                emit(TextDelta(request.id, index, text, (7,), logprobs))
                num_tokens += 1
        reason = "length" if sampling.max_tokens is not None and len(words) > sampling.max_tokens else "stop"
        for index in range(sampling.n):
            emit(CompletionEnd(request.id, index, reason))
        return Finished(request.id, Usage(11, num_tokens, 4), {"queue": 0.1, "prefill": 1.0, "decode": 2.0})

    def _act(self, word: str, running: Running) -> bool:
        if word == "!wait" and running.cancelled.wait(timeout=30):
            raise RequestCancelled("cancelled by the client")
        if word == "!fail":
            raise BraidError("the step failed")
        if word == "!die":
            os._exit(9)
        if word == "!slow":
            running.cancelled.wait(0.02)
            if running.cancelled.is_set():
                raise RequestCancelled("cancelled by the client")
        if word == "!silent":
            running.on_event(TextDelta(running.request.id, 0, "", (7,)))
        return word.startswith("!")


def script(request: GenerateRequest) -> str:
    if request.messages is not None:
        return str(request.messages[-1]["content"])
    if request.prompt is not None:
        return request.prompt
    return " ".join(f"id{token_id}" for token_id in request.prompt_token_ids or ())
