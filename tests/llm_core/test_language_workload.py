"""Memory, failure and order within the language workload, on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from braid.errors import CannotFit, ContextLengthExceeded, MemoryPressure, RequestCancelled
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.decode import GenerateParams
from braid.llm_core.encode import EncodeParams
from braid.llm_core.engine.messages import (
    CompletionEnd,
    Encoded,
    Failed,
    Finished,
    SamplingParams,
    Started,
    TextDelta,
)
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.models.model import ForwardBatch, ForwardResult, KVSlabs
from braid.llm_core.models.torch_model import TorchModel
from braid.llm_core.text.tokenizer import Tokenizer
from braid.tests.llm_core.trace_rig import Output, Prompt, Rig
from braid.tests.tiny_models import write_gguf
from braid.tracing.recorder import Mark, Recorder
from braid.tracing.request_trace import PREEMPTED

SHORT = Prompt(tuple(range(40, 60)), max_tokens=6, seed=1, temperature=1.0)
LONG = Prompt(tuple(range(30, 94)), max_tokens=40, seed=2, temperature=1.0)


class TroubledModel:
    """A real model whose forward calls can be made to go wrong."""

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self.fails = False
        self.poisoned_token: int | None = None
        """Logits computed for this input token are NaN."""
        self.batches: list[ForwardBatch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, batch: ForwardBatch, slabs: KVSlabs) -> ForwardResult:
        self.batches.append(batch)
        if self.fails:
            raise RuntimeError("the device is gone")
        result = self._model.forward(batch, slabs)
        logits = np.array(result.logits)
        logits[batch.input_ids[batch.logits_rows] == self.poisoned_token] = np.nan
        return ForwardResult(logits, result.hidden_states)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchModel, Tokenizer]:
    checkpoint = open_checkpoint(write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"))
    return TorchModel(checkpoint.config, checkpoint.weights, device="cpu"), checkpoint.tokenizer()


@pytest.fixture
def model(loaded: tuple[TorchModel, Tokenizer]) -> TroubledModel:
    return TroubledModel(loaded[0])


@pytest.fixture
def rigs(model: TroubledModel, loaded: tuple[TorchModel, Tokenizer]) -> Iterator[Any]:
    made: list[Rig] = []

    def make(num_pages: int) -> Rig:
        made.append(Rig(model, loaded[1], num_pages=num_pages))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        assert rig.pages.used_pages == rig.prefix_cache.cached_pages


def run_all(rig: Rig, *, steps: int = 500, budget_ms: float = 1000, latest_first: bool = False) -> None:
    for _ in range(steps):
        if not rig.open:
            return
        rig.workload._stalled_until = 0.0
        offers = rig.offers()
        rig.workload.run(offers[::-1] if latest_first else offers, budget_ms)
    raise AssertionError("no end in sight")


def alone(rigs: Any, prompt: Prompt) -> Output:
    rig = rigs(64)
    rig.submit("alone", prompt, use_prefix_cache=False)
    run_all(rig)
    output: Output = rig.outputs["alone"]
    return output


def test_a_step_that_raises_advances_nobody(rigs: Any, model: TroubledModel) -> None:
    expected = alone(rigs, SHORT)
    rig = rigs(64)
    rig.submit("a", SHORT, use_prefix_cache=True)
    for _ in range(3):
        rig.workload.run(rig.offers(), budget_ms=1000)
        model.fails = True
        with pytest.raises(RuntimeError, match="the device is gone"):
            rig.workload.run(rig.offers(), budget_ms=1000)
        model.fails = False
    run_all(rig)
    assert rig.outputs["a"].token_ids == expected.token_ids


def test_a_step_that_only_decodes_is_repeated_without_planning_until_somebody_comes_or_ends(
    rigs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: alone(rigs, prompt).logits for name, prompt in (("a", LONG), ("b", SHORT))}
    rig = rigs(64)
    planned_at: list[int] = []
    plan = rig.workload._planner.plan

    def noted(*args: Any) -> Any:
        planned_at.append(rig.workload.counters.steps)
        return plan(*args)

    monkeypatch.setattr(rig.workload._planner, "plan", noted)
    rig.submit("a", LONG, use_prefix_cache=False)
    for _ in range(5):
        rig.workload.run(rig.offers(), budget_ms=1000)
    assert planned_at == [0, 1]  # the prompt, and the first token after it
    rig.submit("b", SHORT, use_prefix_cache=False)
    run_all(rig)
    # step 5 has b's prompt, 6 its first decode, 10 its last token; 11 is a's first step alone again
    assert planned_at == [0, 1, 5, 6, 11]
    assert {name: rig.outputs[name].logits for name in expected} == expected


def test_the_devices_part_of_a_step_ends_before_the_host_samples(
    rigs: Any, model: TroubledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, order = rigs(64), list[str]()

    class Timer:
        def start(self) -> None:
            order.append("start")

        def stop(self) -> None:
            order.append("stop")

        def elapsed_ms(self) -> float:
            order.append("read")
            return 0.125

    forward, sample = model.forward, rig.sampler.sample
    monkeypatch.setattr(model, "forward", lambda *args: (order.append("forward"), forward(*args))[1])
    monkeypatch.setattr(rig.sampler, "sample", lambda *args: (order.append("sample"), sample(*args))[1])
    rig.workload._timer = Timer()
    rig.submit("one", SHORT, use_prefix_cache=False)
    result = rig.workload.run(rig.offers(), 1000)
    assert order == ["start", "forward", "stop", "sample", "read"]
    assert result.device_ms == 0.125 < result.host_ms
    run_all(rig)


def test_prompts_that_begin_like_one_that_is_being_prefilled_wait_and_share_it(rigs: Any) -> None:
    prefix = tuple(range(30, 130))
    prompts = {f"r{i}": Prompt((*prefix, 140 + i), max_tokens=4, seed=i, temperature=1.0) for i in range(4)}
    expected = {name: alone(rigs, prompt) for name, prompt in prompts.items()}
    rig = rigs(128)
    for name, prompt in prompts.items():
        rig.submit(name, prompt, use_prefix_cache=True)
    rig.submit("apart", SHORT, use_prefix_cache=True)
    first = rig.workload.run(rig.offers(), budget_ms=40)  # a part of the first prompt
    assert first.request_ids == ("r0",)
    second = rig.workload.run(rig.offers(), budget_ms=1000)
    assert second.request_ids == ("r0", "apart")
    run_all(rig)
    num_shared = len(prefix) // rig.pages.page_tokens * rig.pages.page_tokens
    assert rig.workload.counters.cached_tokens == 3 * num_shared
    assert rig.workload.counters.prefill_tokens == 101 + 3 * (101 - num_shared) + len(SHORT.token_ids)
    for name, output in expected.items():
        assert rig.outputs[name].logits == output.logits, name


def test_a_prompt_does_not_wait_for_a_less_urgent_one_nor_for_a_short_prefix(rigs: Any) -> None:
    rig = rigs(128)
    prompt = Prompt(tuple(range(30, 130)), max_tokens=4, seed=0, temperature=1.0)
    rig.submit("batch", prompt, use_prefix_cache=True, request_class=RequestClass.BATCH)
    rig.workload.run(rig.offers(), budget_ms=20)
    rig.submit("chat", prompt, use_prefix_cache=True)
    assert rig.workload.run(rig.offers(), budget_ms=20).request_ids == ("chat",)
    short = Prompt((*prompt.token_ids[:60], 9, 9, 9, 9, 9), max_tokens=4, seed=0, temperature=1.0)
    rig.submit("short", short, use_prefix_cache=True)
    assert set(rig.workload.run(rig.offers(), budget_ms=1000).request_ids) == {"batch", "chat", "short"}
    run_all(rig)
    assert {type(output.last_event) for output in rig.outputs.values()} == {Finished}


def completions_of(rig: Rig, stop_token_ids: tuple[int, ...] = ()) -> tuple[list[list[int]], list[Any]]:
    """The tokens of two completions of one request, and all of its events."""
    token_ids: list[list[int]] = [[], []]
    events: list[Any] = []
    sampling = SamplingParams(n=2, max_tokens=20, ignore_eos=True, stop_token_ids=stop_token_ids)
    rig.workload.admit(Request("two", GenerateParams(SHORT.token_ids, sampling, 3, 20), events.append), 0.0)
    for _ in range(60):
        if events and isinstance(events[-1], Finished | Failed):
            break
        rig.workload.run(rig.offers(), budget_ms=1000)
    for event in events:
        if isinstance(event, TextDelta):
            token_ids[event.index].extend(event.token_ids)
    return token_ids, events


def test_a_completion_that_ends_before_its_sibling_is_in_no_later_step(rigs: Any) -> None:
    (first, second), _ = completions_of(rigs(64))
    stop_at = next(i for i in range(3, 15) if first[i] not in first[:i] + second)
    (shorter, other), events = completions_of(rigs(64), (first[stop_at],))
    assert isinstance(events[-1], Finished)
    assert shorter == first[:stop_at]
    assert other == second
    assert sorted(event.index for event in events if isinstance(event, CompletionEnd)) == [0, 1]


def test_logits_that_are_not_finite_end_one_request_alone(rigs: Any, model: TroubledModel) -> None:
    expected = alone(rigs, SHORT)
    rig = rigs(64)
    bad = Prompt((10, 11, 12), max_tokens=5, seed=0, temperature=0.0)
    rig.submit("good", SHORT, use_prefix_cache=False)
    rig.submit("bad", bad, use_prefix_cache=False)
    model.poisoned_token = 12
    run_all(rig)
    assert isinstance(rig.outputs["bad"].last_event, Failed)
    assert rig.outputs["bad"].last_event.code == "bad_logits"
    assert rig.outputs["good"].token_ids == expected.token_ids


def test_the_latest_of_the_least_urgent_class_is_preempted(rigs: Any) -> None:
    rig = rigs(16)  # two of the three texts of 104 tokens fit
    rig.submit("batch", LONG, use_prefix_cache=False, request_class=RequestClass.BATCH)
    rig.submit("first", LONG, use_prefix_cache=False)
    rig.submit("second", LONG, use_prefix_cache=False)
    recorder = Recorder()
    rig.workload._jobs["batch"].request.trace = recorder.open("batch", None)
    while rig.workload.counters.preemptions == 0:
        rig.workload.run(rig.offers(), budget_ms=1000)
    running = {name: job.tasks[0].sequence.is_running for name, job in rig.workload._jobs.items()}
    assert running == {"batch": False, "first": True, "second": True}
    (said,) = (mark.attributes for mark in recorder.take() if isinstance(mark, Mark) and mark.name == PREEMPTED)
    assert said is not None and said["cause"] == "memory" and said["by"] in ("first", "second")
    assert int(said["tokens"]) >= len(LONG.token_ids)
    run_all(rig)
    assert {type(output.last_event) for output in rig.outputs.values()} == {Finished}
    assert len({tuple(output.token_ids) for output in rig.outputs.values()}) == 1


def test_a_later_request_never_preempts_an_earlier_one(rigs: Any) -> None:
    rig = rigs(8)
    rig.submit("first", LONG, use_prefix_cache=False)
    rig.workload.run(rig.offers(), budget_ms=1000)
    rig.submit("second", LONG, use_prefix_cache=False)
    for _ in range(10):
        rig.workload._stalled_until = 0.0
        rig.workload.run(list(reversed(rig.offers())), budget_ms=1000)
    assert rig.workload._jobs["first"].tasks[0].sequence.is_running
    run_all(rig)


@pytest.mark.parametrize("use_prefix_cache", [True, False])
def test_a_later_request_that_leads_but_gets_no_memory_does_not_keep_an_earlier_one_from_it(
    rigs: Any, use_prefix_cache: bool
) -> None:
    rig = rigs(8)  # each of the two needs all of them
    for i, name in enumerate(("first", "second")):
        prompt = Prompt(tuple(range(20 + i, 125 + i)), max_tokens=20, seed=i, temperature=1.0)
        rig.submit(name, prompt, use_prefix_cache=use_prefix_cache)
        rig.workload.run(rig.offers(), budget_ms=40)
    run_all(rig, budget_ms=40, latest_first=True)
    assert {type(output.last_event) for output in rig.outputs.values()} == {Finished}


def test_an_encoding_that_leads_but_gets_no_memory_lets_one_of_other_layers_run(rigs: Any) -> None:
    rig = rigs(28)  # less their results: pages for one of the two
    events: list[Any] = []
    for name, layer in (("first", 0), ("second", 1)):
        params = EncodeParams((tuple(range(15 * 16)),), (layer,), 15 * 16, "left")
        rig.workload.admit(Request(name, params, events.append), 0.0)
        rig.workload.run(rig.offers(), budget_ms=96)
    for _ in range(50):
        rig.workload._stalled_until = 0.0
        if rig.offers():
            rig.workload.run(rig.offers()[::-1], budget_ms=40)
    assert {event.request_id for event in events if isinstance(event, Encoded)} == {"first", "second"}


def test_what_a_preempted_text_has_computed_is_found_again_while_nobody_needs_its_pages(rigs: Any) -> None:
    rig = rigs(16)
    expected = {name: alone(rigs, prompt).logits for name, prompt in (("a", LONG), ("b", SHORT))}
    rig.submit("a", LONG, use_prefix_cache=True)
    for _ in range(20):
        rig.workload.run(rig.offers(), budget_ms=1000)
    computed = rig.workload.counters.prefill_tokens
    job = rig.workload._jobs["a"]
    rig.workload._planner._preempt(job, job.tasks[0], by=job, cause="memory")
    rig.workload._repeatable = None
    rig.submit("b", SHORT, use_prefix_cache=True)
    run_all(rig)
    assert rig.workload.counters.preemptions == 1
    # it has 84 tokens, and 5 whole pages of them were computed
    assert rig.workload.counters.prefill_tokens == computed + len(SHORT.token_ids) + 84 - 80
    assert {name: rig.outputs[name].logits for name in expected} == expected


def test_memory_that_somebody_else_holds_is_waited_for(rigs: Any) -> None:
    rig = rigs(16)
    lease = rig.arena.lease("a video", rig.arena.budget_bytes, kind="latents")
    rig.submit("a", SHORT, use_prefix_cache=False)
    result = rig.workload.run(rig.offers(), budget_ms=1000)
    assert (result.kind, result.request_ids) == ("stall", ())
    now = rig.workload._stalled_until
    assert list(rig.workload.offers(now - 1e-6)) == []
    assert rig.workload.next_wake(now - 1e-6) == now
    lease.release()
    run_all(rig)
    assert isinstance(rig.outputs["a"].last_event, Finished)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_a_cancelled_request_frees_its_pages_at_any_point(rigs: Any, num_steps: int) -> None:
    rig = rigs(64)
    rig.submit("a", LONG, use_prefix_cache=True)
    for _ in range(num_steps):
        rig.workload.run(rig.offers(), budget_ms=20)
    assert rig.workload.cancel("a", RequestCancelled("cancelled by the client"))
    assert rig.outputs["a"].last_event.code == "request_cancelled"
    assert not rig.workload.cancel("a", RequestCancelled("again"))
    assert rig.offers() == []


def test_encodings_of_different_layers_do_not_share_a_step(rigs: Any, model: TroubledModel) -> None:
    rig = rigs(64)
    events: list[Any] = []
    for name, layers in (("a", (0, 1)), ("b", (1,)), ("c", (0, 1))):
        params = EncodeParams(((5, 6, 7),), layers, 3, "left")
        rig.workload.admit(Request(name, params, events.append), 0.0)
    model.batches.clear()
    while rig.offers():
        rig.workload.run(rig.offers(), budget_ms=1000)
    assert [batch.hidden_layers for batch in model.batches] == [(0, 1), (1,)]
    done = {event.request_id: event.hidden_states for event in events if isinstance(event, Encoded)}
    assert done["a"].equal(done["c"])
    assert done["b"][..., 0].equal(done["a"][..., 1])


def test_more_texts_than_rows_are_all_answered(rigs: Any) -> None:
    expected = alone(rigs, SHORT)
    rig = rigs(200)
    for i in range(40):
        rig.submit(f"r{i}", SHORT, use_prefix_cache=False)
    run_all(rig)
    assert all(output.token_ids == expected.token_ids for output in rig.outputs.values())


def test_texts_of_one_request_wait_for_rows_without_taking_them_from_each_other(rigs: Any) -> None:
    rig = rigs(200)
    events: list[Any] = []
    sampling = SamplingParams(n=40, seed=1, max_tokens=6, ignore_eos=True)
    params = GenerateParams(SHORT.token_ids, sampling, 1, 6)
    rig.workload.admit(Request("many", params, events.append), 0.0)
    while rig.offers():
        rig.workload.run(rig.offers(), budget_ms=1000)
    assert rig.workload.counters.preemptions == 0
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 40 * 6


def test_a_sequence_that_waits_for_outside_memory_lets_later_ones_run(rigs: Any) -> None:
    rig = rigs(16)
    lease = rig.arena.lease("a video", rig.arena.budget_bytes // 2, kind="latents")
    rig.submit("large", Prompt(tuple(range(9 * 16)), 2, 3, 0.0), use_prefix_cache=False)
    rig.submit("small", SHORT, use_prefix_cache=False)
    for _ in range(20):
        rig.workload._stalled_until = 0.0
        rig.workload.run(rig.offers(), budget_ms=1000)
    assert isinstance(rig.outputs["small"].last_event, Finished)
    assert rig.open == {"large"}
    lease.release()
    run_all(rig)
    assert isinstance(rig.outputs["large"].last_event, Finished)


def test_a_prompt_whose_last_chunk_is_one_token_is_cached(rigs: Any) -> None:
    rig = rigs(64)
    rig.submit("a", Prompt(tuple(range(33)), 20, 3, 0.0), use_prefix_cache=True)
    while not rig.outputs["a"].token_ids:
        rig.workload.run(rig.offers(), budget_ms=32.5)
    assert rig.prefix_cache.cached_pages == 2
    run_all(rig)


def test_an_encoding_of_nothing_begins_and_ends(rigs: Any) -> None:
    events: list[Any] = []
    rigs(8).workload.admit(Request("a", EncodeParams(((),), (1,), 2, "left"), events.append), 0.0)
    assert [type(event) for event in events] == [Started, Encoded]
    assert events[1].attention_mask.tolist() == [[0, 0]]


def test_a_job_that_cannot_be_finished_fails_alone(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rigs(64)
    rig.submit("good", SHORT, use_prefix_cache=False)
    rig.submit("bad", SHORT, use_prefix_cache=False)

    def finish(now: float) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(rig.workload._jobs["bad"], "finish", finish)
    run_all(rig)
    assert isinstance(rig.outputs["good"].last_event, Finished)
    assert isinstance(rig.outputs["bad"].last_event, Failed)


def encode(rig: Rig, name: str, events: list[Any], *, num_tokens: int, length: int) -> None:
    params = EncodeParams((tuple(range(num_tokens)),), (0,), length, "left")
    rig.workload.admit(Request(name, params, events.append, RequestClass.STANDARD), 0.0)


def test_hidden_states_are_leased_until_they_are_handed_over(rigs: Any, model: TroubledModel) -> None:
    rig, events = rigs(16), []  # type: ignore[var-annotated]
    num_bytes = 100 * model.config.hidden_size * 4
    encode(rig, "a", events, num_tokens=10, length=100)
    encode(rig, "b", events, num_tokens=10, length=100)
    assert rig.arena.usage().by_kind["results"] == 2 * num_bytes
    rig.workload.cancel("a", RequestCancelled("cancelled by the client"))
    assert rig.arena.usage().by_kind["results"] == num_bytes
    while rig.offers():
        rig.workload.run(rig.offers(), budget_ms=1000)
    assert "results" not in rig.arena.usage().by_kind


def test_an_encoding_whose_keys_and_values_can_never_fit_is_refused(rigs: Any) -> None:
    rig = rigs(16)
    with pytest.raises(CannotFit) as refusal:
        encode(rig, "a", [], num_tokens=17 * 16, length=17 * 16)
    assert refusal.value.needed_bytes > refusal.value.budget_bytes
    assert rig.offers() == []


def test_results_that_would_leave_no_room_for_an_admitted_text_are_refused_for_now(
    rigs: Any, model: TroubledModel
) -> None:
    rig, events = rigs(16), []  # type: ignore[var-annotated]
    length = rig.arena.budget_bytes // 3 // (model.config.hidden_size * 4)
    rig.submit("text", LONG, use_prefix_cache=False)  # 7 of the 16 pages
    encode(rig, "a", events, num_tokens=3, length=length)
    with pytest.raises(MemoryPressure):
        encode(rig, "b", events, num_tokens=3, length=length)
    run_all(rig)
    while rig.offers():
        rig.workload.run(rig.offers(), budget_ms=1000)
    encode(rig, "b", events, num_tokens=3, length=length)
    rig.workload.cancel("b", RequestCancelled("enough"))
    assert isinstance(rig.outputs["text"].last_event, Finished)


def test_a_step_reports_the_workspace_that_it_was_predicted_to_need(rigs: Any, model: TroubledModel) -> None:
    rig = rigs(64)
    rig.submit("a", SHORT, use_prefix_cache=False)
    encode(rig, "b", [], num_tokens=7, length=7)
    result = rig.workload.run(rig.offers(), budget_ms=1000)
    hidden = 7 * model.config.hidden_size * 4
    assert result.peak_bytes == model.workspace_bytes(20 + 7, 1) + hidden
    run_all(rig)


def test_a_prompt_that_is_cached_whole_still_gets_its_logits(rigs: Any) -> None:
    prompt = Prompt(tuple(range(20, 52)), max_tokens=4, seed=3, temperature=1.0)  # two whole pages
    expected = alone(rigs, prompt)
    rig = rigs(64)
    for name in ("first", "second"):
        rig.submit(name, prompt, use_prefix_cache=True)
        run_all(rig)
        assert rig.outputs[name].token_ids == expected.token_ids
        assert rig.outputs[name].logits == expected.logits


def test_a_page_whose_last_token_was_only_sampled_is_not_cached(rigs: Any) -> None:
    first = Prompt(tuple(range(20, 48)), max_tokens=4, seed=3, temperature=1.0)  # 28 + 4 fill two pages, 31 computed
    text = (*first.token_ids, *alone(rigs, first).token_ids)
    follow_up = Prompt((*text, 60, 61, 62), max_tokens=3, seed=4, temperature=1.0)
    expected = alone(rigs, follow_up)
    rig = rigs(64)
    rig.submit("first", first, use_prefix_cache=True)
    run_all(rig)
    assert rig.prefix_cache.cached_pages == 1
    rig.submit("follow-up", follow_up, use_prefix_cache=True)
    run_all(rig)
    assert rig.outputs["follow-up"].logits == expected.logits


class FixedMeter:
    """Says of every forward call that it took so many bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.is_running = False

    def start(self) -> None:
        self.is_running = True

    def stop(self) -> int:
        assert self.is_running
        self.is_running = False
        return self.num_bytes


def test_offers_carry_the_bytes_of_a_step_and_measured_peaks_teach_them(rigs: Any, model: TroubledModel) -> None:
    rig = rigs(64)
    rig.workload._meter = meter = FixedMeter(1)
    rig.submit("a", LONG, use_prefix_cache=False)
    predicted = model.workspace_bytes(1, 1)
    assert rig.offers()[0].num_bytes == predicted  # the rig's least chunk is one token
    prompt = rig.workload.run(rig.offers(), budget_ms=1000)
    assert prompt.peak_bytes == 1  # as measured; less than predicted teaches nothing
    rig.workload._offers_priced_until = 0
    assert rig.offers()[0].num_bytes == predicted
    meter.num_bytes = 3 * predicted
    assert rig.workload.run(rig.offers(), budget_ms=1000).peak_bytes == 3 * predicted
    rig.workload._offers_priced_until = 0
    assert rig.offers()[0].num_bytes == 3 * predicted
    meter.num_bytes = 1
    run_all(rig)


def test_where_peaks_cannot_be_measured_the_prediction_is_told(rigs: Any, model: TroubledModel) -> None:
    rig = rigs(64)
    rig.submit("a", SHORT, use_prefix_cache=False)
    assert rig.workload.run(rig.offers(), budget_ms=1000).peak_bytes == model.workspace_bytes(20, 1)
    for _ in range(5):
        assert rig.workload.run(rig.offers(), budget_ms=1000).peak_bytes == model.workspace_bytes(1, 1)


def test_a_sequence_longer_than_the_tables_is_refused_and_holds_no_page(rigs: Any) -> None:
    rig = rigs(256)
    for params in (
        GenerateParams(tuple([5] * 2_000), SamplingParams(max_tokens=100), 1, 100),
        EncodeParams((tuple([5] * 2_049),), (0,), 2_049, "left"),
    ):
        with pytest.raises(ContextLengthExceeded, match="exceeds the context of 2048"):
            rig.workload.admit(Request("long", params, lambda event: None), 0.0)
    assert rig.pages.used_pages == 0 and list(rig.workload.offers(0.0)) == []
