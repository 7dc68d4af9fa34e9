"""Putting an engine together and taking it apart, with a tiny model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braid import LLM, Braid, BraidConfig, SamplingParams
from braid.errors import InvalidRequest
from braid.factory import backend_of, build_engine
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.messages import Failed, GenerateRequest, TextDelta
from braid.tests.tiny_models import write_gguf

ENDLESS = SamplingParams(max_tokens=100, ignore_eos=True, seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"))


@pytest.fixture
def llm(model: Path) -> Iterator[LLM]:
    with LLM(str(model), kernels="torch", device="cpu", num_threads=1) as llm:
        yield llm


def test_closing_gives_every_byte_back(model: Path) -> None:
    llm = LLM(str(model), kernels="torch", device="cpu", num_threads=1)
    llm.generate("a b c " * 20, SamplingParams(max_tokens=4, ignore_eos=True))
    threading.Thread(target=lambda: llm.engine.submit(_endless("open"), lambda event: None)).start()
    llm.close()
    memory = llm.engine._stats()["memory"]  # type: ignore[attr-defined]
    assert (memory["leased_bytes"], memory["evictable_bytes"]) == (0, 0)
    with pytest.raises(RequestFailed, match="stopped"):
        llm.generate("a")


def _endless(request_id: str) -> GenerateRequest:
    return GenerateRequest(id=request_id, prompt="a b", sampling=ENDLESS)


def test_where_the_system_does_not_say_which_processors_may_be_used_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert backend_of(BraidConfig(device="cpu")).num_threads == 7


def test_a_context_beyond_the_models_is_refused(model: Path) -> None:
    with pytest.raises(InvalidRequest, match="context_length=1000000 is more than"):
        build_engine(BraidConfig(model=str(model), context_length=1_000_000, device="cpu"))


def test_a_server_object_shares_the_engine_that_it_is_given(llm: LLM) -> None:
    with Braid(engine=llm.engine) as braid:
        assert braid.llm.engine is braid.engine is llm.engine
    assert llm.generate("a b", SamplingParams(max_tokens=2, ignore_eos=True)).usage.completion_tokens == 2


def test_a_server_object_closes_the_engine_that_it_made(model: Path) -> None:
    with Braid(str(model), kernels="torch", device="cpu") as braid:
        braid.llm.generate("a b", SamplingParams(max_tokens=2))
    with pytest.raises(RequestFailed):
        braid.llm.generate("a b")


def test_when_one_of_many_prompts_fails_the_others_are_cancelled(llm: LLM) -> None:
    with pytest.raises(RequestFailed):
        llm.generate_all([[], "a b", "c d"], ENDLESS)
    llm.generate("a", SamplingParams(max_tokens=1))
    stats = llm.stats()
    assert stats["requests"]["open"] == 0
    assert stats["language"]["failed"] == 2


def test_a_prompt_of_a_wrong_type_lets_none_of_the_others_start(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        llm.generate_all(["a b", ["c"]], ENDLESS)  # type: ignore[list-item]
    assert llm.stats()["requests"]["open"] == 0


def test_leaving_an_awaited_stream_cancels_its_request(model: Path) -> None:
    with LLM("smollm2", num_threads=1) as llm:

        async def leave() -> Any:
            stream = llm.astream_chat([{"role": "user", "content": "Hello"}], SamplingParams(seed=1, ignore_eos=True))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            await llm.agenerate("x", SamplingParams(max_tokens=1))
            return llm.stats()["requests"]["open"]

        assert asyncio.run(leave()) == 0


def test_events_stop_at_the_last_one_when_the_engine_closes(model: Path) -> None:
    events: list[Any] = []
    began = threading.Event()

    def on_event(event: Any) -> None:
        events.append(event)
        if isinstance(event, TextDelta):
            began.set()

    llm = LLM(str(model), kernels="torch", device="cpu", num_threads=1)
    llm.engine.submit(_endless("a"), on_event)
    assert began.wait(30)
    llm.close()
    assert isinstance(events[-1], Failed)
    assert sum(isinstance(event, Failed) for event in events) == 1
