"""The Python face and the engine behind it, with the real small model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from braid import LLM, SamplingParams
from braid.benchmarks.reference import hugging_face_llama
from braid.errors import CannotFit, ModelNotFound
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.messages import Failed, Finished, GenerateRequest, TextDelta
from braid.llm_core.loading.checkpoint import open_checkpoint

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(num_threads=2) as llm:
        yield llm


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    answer = llm.chat(FRANCE, GREEDY)
    assert "Paris" in answer.text
    assert answer.texts[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(answer.texts[0].token_ids) + 1  # the token that ended it counts
    assert set(answer.timings_ms) == {"queue", "prefill", "decode"}


def test_a_stream_is_the_text_in_pieces(llm: LLM) -> None:
    pieces = list(llm.chat(FRANCE, GREEDY, stream=True))
    assert len(pieces) > 3
    assert "".join(pieces) == llm.chat(FRANCE, GREEDY).text


def test_leaving_a_stream_cancels_the_request(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=4000, ignore_eos=True, seed=1))
    next(stream)
    before = llm.stats()["language"]["failed"]
    stream.close()  # type: ignore[attr-defined]
    llm.generate("x", SamplingParams(max_tokens=1))
    stats = llm.stats()
    assert stats["language"]["failed"] == before + 1
    assert stats["requests"]["open"] == 0


def test_the_same_seed_gives_the_same_text_and_another_seed_another(llm: LLM) -> None:
    def text(seed: int) -> str:
        return llm.generate("The weather today is", SamplingParams(seed=seed, max_tokens=20)).text

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_n_completions_differ_and_the_first_is_that_of_n_1(llm: LLM) -> None:
    several = llm.generate("My favourite colour is", SamplingParams(seed=3, max_tokens=12, n=3))
    assert len({text.text for text in several.texts}) == 3
    one = llm.generate("My favourite colour is", SamplingParams(seed=3, max_tokens=12))
    assert several.texts[0].token_ids == one.texts[0].token_ids
    assert several.usage.completion_tokens == sum(len(t.token_ids) + (t.finish_reason == "stop") for t in several.texts)


def test_logprobs_are_those_of_the_float32_model(llm: LLM) -> None:
    checkpoint = open_checkpoint("smollm2")
    prompt = checkpoint.tokenizer().encode("The quick brown fox jumps over the", add_special_tokens=True)
    answer = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=3, logprobs=5, ignore_eos=True))
    token_ids = answer.texts[0].token_ids
    with torch.inference_mode():
        logits = hugging_face_llama(checkpoint)(torch.tensor([[*prompt, *token_ids]])).logits[0].float()
    logprobs = logits.log_softmax(-1)
    assert len(answer.texts[0].logprobs) == 3
    for i, entry in enumerate(answer.texts[0].logprobs):
        row = logprobs[len(prompt) - 1 + i]
        assert entry.token_id == token_ids[i] == int(row.argmax())
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=0.02)
        assert [top.token_id for top in entry.top] == row.topk(5).indices.tolist()


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    whole = llm.generate("One, two, three,", SamplingParams(temperature=0, max_tokens=30)).text
    stop = whole[10:14]
    cut = llm.generate("One, two, three,", SamplingParams(temperature=0, max_tokens=30, stop=(stop,)))
    assert cut.text == whole[: whole.index(stop)]
    assert cut.texts[0].finish_reason == "stop"


def test_stop_token_ids_and_ignore_eos(llm: LLM) -> None:
    first = llm.generate("One, two, three,", GREEDY).texts[0].token_ids
    stopped = llm.generate("One, two, three,", SamplingParams(temperature=0, max_tokens=24, stop_token_ids=(first[4],)))
    assert stopped.texts[0].token_ids == first[: first.index(first[4])]
    endless = llm.chat(FRANCE, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    assert len(endless.texts[0].token_ids) == 30
    assert endless.texts[0].finish_reason == "length"


def test_logit_bias_bans_and_forces_tokens(llm: LLM) -> None:
    prompt = "The capital of France is"
    free = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1)).texts[0].token_ids[0]
    banned = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1, logit_bias={free: -100}))
    assert banned.texts[0].token_ids != [free]
    forced = llm.generate(prompt, SamplingParams(max_tokens=4, logit_bias={1234: 100}, seed=0))
    assert forced.texts[0].token_ids == [1234] * 4


def test_min_tokens_keeps_the_text_from_ending(llm: LLM) -> None:
    assert llm.chat(FRANCE, SamplingParams(temperature=0, max_tokens=40, min_tokens=20)).usage.completion_tokens >= 20


def test_min_tokens_holds_off_stop_strings_too(llm: LLM) -> None:
    prompt = "One, two, three,"
    free = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=24)).texts[0]
    at_once = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=24, stop=(",",))).texts[0]
    later = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=24, stop=(",",), min_tokens=6)).texts[0]
    assert at_once.finish_reason == later.finish_reason == "stop"
    assert len(at_once.token_ids) < 6 < len(later.token_ids)
    assert free.text.startswith(later.text + ",")
    assert "," in later.text


def test_many_requests_at_once_give_what_each_gives_alone(llm: LLM) -> None:
    prompts = [f"Story number {i}:" for i in range(20)]
    sampling = SamplingParams(seed=11, max_tokens=8)
    together = [answer.texts[0].token_ids for answer in llm.generate_all(prompts, sampling)]
    assert together == [llm.generate(prompt, sampling).texts[0].token_ids for prompt in prompts]


def test_a_shared_prefix_is_computed_once(llm: LLM) -> None:
    prefix = "A long introduction that many questions share. " * 30
    llm.generate(prefix + "First?", SamplingParams(max_tokens=1))
    second = llm.generate(prefix + "Second?", SamplingParams(max_tokens=1))
    assert second.usage.cached_tokens >= second.usage.prompt_tokens - 32


def test_hidden_states_are_those_of_transformers(llm: LLM) -> None:
    checkpoint = open_checkpoint("smollm2")
    tokenizer = checkpoint.tokenizer()
    prompts = ["a small red disc drifts to the left", "rain"]
    encoded = llm.encode(prompts, max_length=12, padding_side="left")
    assert encoded.hidden_states.shape == (2, 12, 576, 31)
    reference = hugging_face_llama(checkpoint)
    for i, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt, add_special_tokens=True)
        with torch.inference_mode():
            states = reference.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([state[0] for state in states], -1)
        got = encoded.hidden_states[i, 12 - len(ids) :]
        assert encoded.attention_mask[i].tolist() == [0] * (12 - len(ids)) + [1] * len(ids)
        assert (encoded.hidden_states[i, : 12 - len(ids)] == 0).all()
        error = (got - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < 3e-3


def test_encoding_truncates_pads_right_and_takes_chosen_layers(llm: LLM) -> None:
    full = llm.encode(["one two three four five six"], layers=[30])
    cut = llm.encode(["one two three four five six", ""], layers=[0, 30], max_length=4, padding_side="right")
    assert cut.hidden_states.shape == (2, 4, 576, 2)
    assert torch.equal(cut.hidden_states[0, :, :, 1], full.hidden_states[0, :4, :, 0])
    assert cut.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_encoding_beside_chat_gives_the_same_bits(llm: LLM) -> None:
    alone = llm.encode(["a blue square above a ring"]).hidden_states
    done = threading.Event()
    llm.engine.submit(
        GenerateRequest(id="beside", prompt="Tell me", sampling=SamplingParams(max_tokens=60, ignore_eos=True)),
        lambda event: done.set() if isinstance(event, Finished) else None,
    )
    beside = llm.encode(["a blue square above a ring"]).hidden_states
    assert done.wait(30)
    assert torch.equal(alone, beside)


def test_awaited_answers_run_side_by_side(llm: LLM) -> None:
    async def both() -> list[str]:
        answers = await asyncio.gather(llm.achat(FRANCE, GREEDY), llm.agenerate("One, two,", GREEDY))
        pieces = [piece async for piece in llm.astream_chat(FRANCE, GREEDY)]
        return [answers[0].text, answers[1].text, "".join(pieces)]

    chat, text, streamed = asyncio.run(both())
    assert chat == streamed == llm.chat(FRANCE, GREEDY).text
    assert text == llm.generate("One, two,", GREEDY).text


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt_token_ids": []}, "invalid_value", "prompt"),
    ({"prompt_token_ids": [49152]}, "invalid_value", "prompt"),
    ({"prompt_token_ids": [-1]}, "invalid_value", "prompt"),
    ({"prompt_token_ids": [5] * 8192}, "context_length_exceeded", "prompt"),
    ({"prompt": "x", "messages": []}, "missing_required_parameter", ""),
    ({}, "missing_required_parameter", ""),
    ({"prompt": "x", "model": "gpt-4"}, "model_not_found", "model"),
    ({"prompt": "x", "sampling": SamplingParams(temperature=3.0)}, "invalid_value", "temperature"),
    ({"prompt": "x", "sampling": SamplingParams(max_tokens=8192)}, "context_length_exceeded", "max_tokens"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages.0.role"),
]


@pytest.mark.parametrize(("fields", "code", "param"), WRONG)
def test_a_wrong_request_fails_with_its_field(llm: LLM, fields: dict[str, Any], code: str, param: str) -> None:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    llm.engine.submit(GenerateRequest(id="wrong", **fields), events.put)
    event = events.get(timeout=10)
    assert isinstance(event, Failed)
    assert (event.code, event.param or "") == (code, param)
    assert event.status in (400, 404)
    assert "Paris" in llm.chat(FRANCE, GREEDY).text


def test_requests_of_a_closed_engine_fail() -> None:
    llm = LLM(num_threads=2, context_length=512)
    llm.engine.close()
    with pytest.raises(RequestFailed) as failure:
        llm.generate("x", GREEDY)
    assert failure.value.code == "engine_died"


def test_a_budget_below_the_weights_is_refused_with_both_numbers() -> None:
    with pytest.raises(CannotFit) as refusal:
        LLM(memory_budget_bytes=50_000_000)
    assert refusal.value.budget_bytes <= 50_000_000 < refusal.value.needed_bytes


def test_a_sequence_that_can_never_fit_is_refused_and_an_open_ended_one_is_shortened() -> None:
    with LLM(memory_budget_bytes=135_000_000, num_threads=2) as llm:
        with pytest.raises(RequestFailed) as refusal:
            llm.generate("x", SamplingParams(max_tokens=4000))
        assert refusal.value.code == "insufficient_memory"
        answer = llm.generate("x", SamplingParams(ignore_eos=True, seed=0))
        assert answer.texts[0].finish_reason == "length"


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelNotFound, match="no-such-model"):
        LLM("./no-such-model")


def test_every_request_leaves_one_trace(llm: LLM) -> None:
    before = llm.stats()["spans"]
    llm.chat(FRANCE, GREEDY)
    deadline = time.monotonic() + 10
    while llm.stats()["spans"] < before + 5:  # the chat, its queue, prefill with a chunk, and decode
        assert time.monotonic() < deadline
        time.sleep(0.02)
    names = {family["spec"]["name"] for family in llm.stats()["metrics"]}
    assert {"braid_requests_total", "braid_step_device_seconds", "braid_time_to_first_token_seconds"} <= names


def test_text_deltas_of_a_cancelled_request_stop(llm: LLM) -> None:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sampling = SamplingParams(max_tokens=4000, ignore_eos=True, seed=2)
    llm.engine.submit(GenerateRequest(id="long", prompt="Once", sampling=sampling), events.put)
    while not isinstance(events.get(timeout=10), TextDelta):
        pass
    llm.engine.cancel("long")
    event = events.get(timeout=10)
    while isinstance(event, TextDelta):
        event = events.get(timeout=10)
    assert isinstance(event, Failed)
    assert event.code == "request_cancelled"
    llm.generate("x", SamplingParams(max_tokens=1))
    assert events.empty()


def test_nothing_is_leased_when_all_is_done(llm: LLM) -> None:
    kv_pages = llm.stats()["kv_pages"]
    assert kv_pages["used"] == kv_pages["cached"]
    assert llm.stats()["requests"] == {"open": 0, "waiting": 0}
