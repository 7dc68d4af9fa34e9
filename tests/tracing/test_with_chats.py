"""Real chats on a tiny language model, many at once: the trees, and the device time that they account for."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest

from braid.config import BraidConfig
from braid.factory import build_engine
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.messages import Failed, Finished, GenerateRequest, SamplingParams
from braid.tests.tiny_models import write_gguf
from braid.tests.tracing.stage import check_tree
from braid.tracing.engine_tracing import EngineTracing
from braid.tracing.span import Span
from braid.tracing.trace_store import TraceStore

NUM_CHATS, NUM_TOKENS = 6, 12


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_gguf(tmp_path_factory.mktemp("language") / "tiny.gguf", "llama")
    engine = build_engine(BraidConfig(model=str(path)))
    yield engine
    engine.close()


def last_event(events: queue.SimpleQueue[Any]) -> Any:
    while not isinstance(event := events.get(timeout=60), Finished | Failed):
        pass
    return event


def test_chats_that_share_steps_are_whole_trees_that_account_for_the_device(engine: Engine) -> None:
    store = TraceStore()
    tracing = EngineTracing(store.add, {})
    engine._open_trace = tracing.open
    stop = engine.scheduler.journal.subscribe(tracing.note_step)
    first_step = engine.scheduler.journal.next_number
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    waiting = []
    for i in range(NUM_CHATS):
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        prompt = list(range(5, 30))
        engine.submit(GenerateRequest(id=f"chat-{i}", prompt_token_ids=prompt, sampling=sampling), events.put)
        waiting.append(events)
    engine.cancel("chat-5")
    ends = [last_event(events) for events in waiting]
    tracing.close()
    stop()

    traces = [store.get(trace.trace_id) for trace in store.recent()]
    assert len(traces) == NUM_CHATS
    requests: dict[str, Span] = {}
    for spans in traces:
        check_tree(spans)
        requests[str(spans[0].attributes["braid.request.id"])] = spans[0]
    for i, end in enumerate(ends):
        assert requests[f"chat-{i}"].error == (end.code if isinstance(end, Failed) else None)
    done = [spans for spans in traces if spans[0].error is None]
    for spans in done:
        assert spans[0].attributes["gen_ai.usage.output_tokens"] == NUM_TOKENS
        (decode,) = (span for span in spans if span.name == "decode")
        assert sum(event.name == "token" for event in decode.events) == NUM_TOKENS - 1
        assert {span.name for span in spans} >= {
            "text_completion tiny", "tokenise", "queue", "prefill", "prefill chunk", "decode",
        }  # fmt: skip
        (waiting_span,) = (span for span in spans if span.name == "queue")
        assert [event.name for event in waiting_span.events] == ["admitted"]
    links = [link for spans in done for span in spans for link in span.links]
    assert any(link.attributes["braid.relation"] == "batch_mate" for link in links)

    entries = engine.scheduler.journal.since(first_step)
    shares = sum(float(str(span.attributes.get("braid.device_share_ms", 0.0))) for span in requests.values())
    assert shares == pytest.approx(sum(entry.device_ms for entry in entries if entry.request_ids), rel=0.02)
