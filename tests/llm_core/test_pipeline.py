"""A toy film: two stages of denoising in blocks, noise from a random generator, a decode in tiles, a prompt encoded by
another workload. It stands for video: what holds for it holds for whatever is a generator of operations."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.errors import BraidError, CannotFit, InvalidRequest
from braid.llm_core.core import Offer, PolicyConfig, Request, RequestClass, StepLimits, StepResult
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import Encoded, Failed, Finished, Usage
from braid.llm_core.pipeline import (
    Checkpoint,
    Completed,
    Delegate,
    InPieces,
    Progress,
    Progressed,
    Resumed,
    Segment,
    Wait,
)
from braid.llm_core.pipeline_workload import PipelineWorkload
from braid.llm_core.scheduler.loop import Scheduler

NUM_BLOCKS, NUM_TILES, STEPS = 3, 2, (2, 2)
BLOCK_MS, TILE_MS, CHAT_MS, ENCODE_MS, MAX_STEP_MS = 10.0, 15.0, 5.0, 4.0, 20.0


# -- the pipeline ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Film:
    seed: int
    prompt: str = "a red circle"
    trouble: str = ""


@dataclass(frozen=True)
class Encode:
    prompt: str
    kind: str = "encode"


@dataclass(frozen=True, eq=False)
class Denoise:
    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    sigma: int
    trouble: str = ""
    kind: str = "denoise"


@dataclass(frozen=True, eq=False)
class Decode:
    latents: torch.Tensor
    tile_size: int
    trouble: str = ""
    kind: str = "decode_tile"


@dataclass(frozen=True)
class Unknown:
    kind: str = "unknown"


@dataclass(frozen=True, eq=False)
class FilmState:
    version: int
    stage: int
    step: int
    latents: torch.Tensor
    prompt_embeds: torch.Tensor
    generator: torch.Tensor


closed: list[str] = []


def film(params: Film, state: FilmState | None = None) -> Generator[Any, Any, torch.Tensor]:
    """The whole film in one function, as the paper would have it."""
    generator = torch.Generator()
    try:
        if state is None:
            prompt_embeds = yield Encode(params.prompt)
            generator.manual_seed(params.seed)
            latents = torch.randint(0, 1 << 40, (8,), generator=generator)
            state = FilmState(1, 0, 0, latents, prompt_embeds, generator.get_state())
        while state.stage < len(STEPS):
            generator.set_state(state.generator)
            num_steps = STEPS[state.stage]
            denoised = yield Denoise(state.latents, state.prompt_embeds, num_steps - state.step, params.trouble)
            noise = torch.randint(0, 1 << 20, denoised.shape, generator=generator)
            state = replace(state, latents=denoised + noise, step=state.step + 1, generator=generator.get_state())
            yield Progress(f"stage {state.stage + 1}", state.step, num_steps)
            if state.step == num_steps:
                state = replace(state, stage=state.stage + 1, step=0, latents=state.latents.repeat_interleave(2))
            yield Checkpoint(state)
        if params.trouble == "unknown operation":
            yield Unknown()
        try:
            return (yield Decode(state.latents, 16, params.trouble))
        except MemoryError:
            return (yield Decode(state.latents, 8))
    finally:
        closed.append(params.prompt)


# -- how its operations are carried out ------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms / 1000


def block(x: torch.Tensor, i: int, operation: Denoise) -> torch.Tensor:
    """Integer arithmetic: exact in any batch, and any piece left out or done twice changes every bit after it."""
    return (x * 6364136223846793005 + operation.prompt_embeds[i] + operation.sigma) ^ (x >> 13)


class Denoising:
    """One denoising step under way: the hidden states between two blocks."""

    def __init__(self, operation: Denoise) -> None:
        self.operation = operation
        self.x = operation.latents
        self.next_block = 0
        self.is_closed = False

    def segment(self) -> Segment | None:
        if self.next_block == NUM_BLOCKS:
            return None
        return Segment(BLOCK_MS, num_bytes=64, units=8, batch_key=(len(self.x), self.next_block))

    def result(self) -> torch.Tensor:
        return self.x

    def close(self) -> None:
        self.is_closed = True


class DenoiseInBlocks:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.begun: list[Denoising] = []

    def begin(self, operation: Denoise) -> Denoising:
        if operation.trouble == "begin":
            raise CannotFit("the film", needed_bytes=9_000, budget_bytes=8_000)
        self.begun.append(Denoising(operation))
        return self.begun[-1]

    def advance(self, executions: Sequence[Denoising]) -> None:
        self.clock.ms += BLOCK_MS * (1 + 0.1 * (len(executions) - 1))
        assert len({(len(execution.x), execution.next_block) for execution in executions}) == 1
        if any(e.operation.trouble == "bad block" and e.next_block == 1 for e in executions):
            raise ValueError("NaN in block 1")
        for execution in executions:
            execution.x = block(execution.x, execution.next_block, execution.operation)
            execution.next_block += 1


def decode_in_tiles(clock: Clock, operation: Decode) -> Generator[Segment, None, torch.Tensor]:
    if operation.trouble == "memory" and operation.tile_size == 16:
        yield Segment(TILE_MS)
        raise MemoryError("tile")
    frames = []
    for tile in operation.latents.chunk(NUM_TILES):
        yield Segment(TILE_MS, num_bytes=operation.tile_size)
        clock.ms += TILE_MS
        frames.append(tile * 3 + 1)
    return torch.cat(frames)


# -- two other workloads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatParams:
    num_tokens: int


@dataclass(frozen=True)
class EncodeParams:
    prompt: str


class Toy:
    """Chats one token a step; encodes a prompt in one step."""

    def __init__(self, clock: Clock) -> None:
        self.name = "llm"
        self.clock = clock
        self.left: dict[str, int] = {}
        self.requests: dict[str, Request] = {}
        self.token_ms: dict[str, list[float]] = {}

    def accepts(self, params: Any) -> bool:
        return isinstance(params, ChatParams | EncodeParams)

    def admit(self, request: Request, now: float) -> None:
        if isinstance(request.params, EncodeParams) and not request.params.prompt:
            raise InvalidRequest("prompt='' must not be empty", param="prompt")
        self.requests[request.id] = request
        self.left[request.id] = getattr(request.params, "num_tokens", 1)
        self.token_ms[request.id] = [now * 1000]

    def offers(self, now: float) -> Iterable[Offer]:
        return [
            Offer(request.id, "llm", "step", "step", request.request_class, now + 0.02, CHAT_MS, tenant=request.tenant)
            for request in self.requests.values()
        ]

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        self.clock.ms += CHAT_MS
        for offer in offers:
            self.token_ms[offer.request_id].append(self.clock.ms)
            self.left[offer.request_id] -= 1
            if self.left[offer.request_id] == 0:
                request = self.requests.pop(offer.request_id)
                request.sink(self.last_event(request))
        return StepResult(tuple(offer.request_id for offer in offers), "step", len(offers), CHAT_MS)

    def last_event(self, request: Request) -> Any:
        if isinstance(request.params, EncodeParams):
            return Encoded(request.id, hidden_states=embed(request.params.prompt))
        return Finished(request.id, Usage())

    def cancel(self, request_id: str, error: BraidError) -> bool:
        request = self.requests.pop(request_id, None)
        if request is not None:
            request.sink(failed(request_id, error))
        return request is not None


def embed(prompt: str) -> torch.Tensor:
    return torch.tensor([sum(prompt.encode()) * (i + 1) for i in range(NUM_BLOCKS)])


class World:
    def __init__(self) -> None:
        self.clock = Clock()
        self.llm = Toy(self.clock)
        self.denoise = DenoiseInBlocks(self.clock)
        self.checkpoints: dict[str, list[FilmState]] = {}
        self.events: dict[str, list[Any]] = {}
        self.films = PipelineWorkload(
            "film",
            {Film: film},
            {
                Encode: Delegate(lambda op, _: EncodeParams(op.prompt), Encoded, lambda event: event.hidden_states),
                Denoise: self.denoise,
                Decode: InPieces(lambda operation: decode_in_tiles(self.clock, operation)),
            },
            on_checkpoint=self.keep,
            clock=self.clock,
        )
        self.scheduler = Scheduler(
            [self.llm, self.films],
            clock=self.clock,
            limits=StepLimits(max_step_ms=MAX_STEP_MS, idle_step_ms=100.0),
            policy=PolicyConfig(),
        )
        self.films.delegate_to(self.scheduler)

    def keep(self, request: Request, state: FilmState) -> None:
        if getattr(request.params, "trouble", "") == "disk":
            raise OSError("disk full")
        self.checkpoints.setdefault(request.id, []).append(state)

    def submit(self, name: str, params: Any, request_class: RequestClass = RequestClass.BATCH) -> None:
        events = self.events.setdefault(name, [])
        self.scheduler.submit(Request(name, params, events.append, request_class=request_class))

    def chat(self, name: str, num_tokens: int = 3) -> None:
        self.submit(name, ChatParams(num_tokens), RequestClass.INTERACTIVE)

    def run(self) -> None:
        while self.scheduler.run_once():
            pass
        assert self.scheduler.num_open_requests == 0

    def result(self, name: str) -> torch.Tensor:
        event = self.events[name][-1]
        assert isinstance(event, Completed), event
        return event.result

    def error(self, name: str) -> Failed:
        event = self.events[name][-1]
        assert isinstance(event, Failed), event
        return event


@cache
def reference(params: Film) -> tuple[torch.Tensor, tuple[FilmState, ...]]:
    """The film by a fake executor of ten lines: no scheduler, no pieces."""
    states: list[FilmState] = []
    pipeline = film(params)
    answer = None
    try:
        while True:
            asked = pipeline.send(answer)
            answer = None
            if isinstance(asked, Encode):
                answer = embed(asked.prompt)
            elif isinstance(asked, Denoise):
                answer = asked.latents
                for i in range(NUM_BLOCKS):
                    answer = block(answer, i, asked)
            elif isinstance(asked, Decode):
                answer = asked.latents * 3 + 1
            elif isinstance(asked, Checkpoint):
                states.append(asked.state)
    except StopIteration as stop:
        return stop.value, tuple(states)


def test_a_film_is_the_same_alone_as_by_the_plainest_executor() -> None:
    world = World()
    world.submit("a", Film(1))
    world.run()
    assert torch.equal(world.result("a"), reference(Film(1))[0])
    assert not torch.equal(world.result("a"), reference(Film(2))[0])
    kinds = [entry.kind for entry in world.scheduler.journal.since()]
    blocks = ["denoise"] * NUM_BLOCKS * sum(STEPS)
    assert kinds == ["resume", "step", "resume", *blocks, *["decode_tile"] * NUM_TILES]
    assert all(execution.is_closed for execution in world.denoise.begun)


def test_progress_is_told_in_order() -> None:
    world = World()
    world.submit("a", Film(1))
    world.run()
    told = [(e.stage, e.step, e.num_steps) for e in world.events["a"] if isinstance(e, Progressed)]
    assert told == [("stage 1", 1, 2), ("stage 1", 2, 2), ("stage 2", 1, 2), ("stage 2", 2, 2)]


def test_films_of_one_shape_share_steps_and_stay_the_same() -> None:
    world = World()
    for i in range(3):
        world.submit(str(i), Film(i))
    world.run()
    for i in range(3):
        assert torch.equal(world.result(str(i)), reference(Film(i))[0])
    shared = [len(e.request_ids) for e in world.scheduler.journal.since() if e.kind == "denoise"]
    assert max(shared) == 3


def test_only_as_many_share_a_step_as_fit_the_budget() -> None:
    world = World()
    for i in range(3):
        world.submit(str(i), Film(i))
    world.chat("chat", 200)
    world.run()
    shared = [len(e.request_ids) for e in world.scheduler.journal.since() if e.kind == "denoise"]
    assert max(shared) == 2 == MAX_STEP_MS // BLOCK_MS
    for i in range(3):
        assert torch.equal(world.result(str(i)), reference(Film(i))[0])


def test_chat_never_waits_longer_than_one_bounded_step_per_token() -> None:
    world = World()
    world.submit("film", Film(1))
    world.submit("other", Film(2))
    world.chat("chat", 100)
    world.run()
    token_ms = world.llm.token_ms["chat"]
    assert max(b - a for a, b in pairwise(token_ms)) <= MAX_STEP_MS + CHAT_MS
    film_ms = sum(e.device_ms for e in world.scheduler.journal.since() if e.workload == "film" and e.start < 0.5)
    assert film_ms >= 0.05 * 500 - MAX_STEP_MS


NUM_FILM_STEPS = 3 + NUM_BLOCKS * sum(STEPS) + NUM_TILES


@pytest.mark.parametrize("after", range(NUM_FILM_STEPS))
def test_a_film_preempted_after_any_step_is_the_same(after: int) -> None:
    world = World()
    world.submit("film", Film(1))
    for _ in range(after):
        world.scheduler.run_once()
    world.chat("chat", 4)
    world.submit("other", Film(5))
    world.run()
    assert torch.equal(world.result("film"), reference(Film(1))[0])
    assert torch.equal(world.result("other"), reference(Film(5))[0])


@pytest.mark.parametrize("number", range(sum(STEPS)))
def test_a_film_started_again_from_any_checkpoint_is_the_same(number: int) -> None:
    result, states = reference(Film(1))
    world = World()
    world.submit("film", Resumed(Film(1), states[number]))
    world.run()
    assert torch.equal(world.result("film"), result)
    kinds = [entry.kind for entry in world.scheduler.journal.since()]
    assert kinds.count("denoise") == NUM_BLOCKS * (sum(STEPS) - number - 1)
    assert "step" not in kinds  # the prompt is not encoded again


@pytest.mark.parametrize("after", range(NUM_FILM_STEPS))
def test_a_film_cancelled_after_any_step_frees_all_and_can_go_on(after: int) -> None:
    world = World()
    world.submit("film", Film(1, prompt=f"cancelled after {after}"))
    closed.clear()
    for _ in range(after):
        world.scheduler.run_once()
    world.scheduler.cancel("film")
    world.run()
    assert world.error("film").status == 499
    assert closed == [f"cancelled after {after}"] * (after > 0)
    assert all(execution.is_closed for execution in world.denoise.begun)
    assert not world.llm.requests

    states = world.checkpoints.get("film", [])
    params = Film(1, prompt=f"cancelled after {after}")
    world.submit("again", Resumed(params, states[-1]) if states else params)
    world.run()
    assert torch.equal(world.result("again"), reference(params)[0])


def test_cancelling_while_another_workload_works_for_it_cancels_that_too() -> None:
    world = World()
    world.submit("film", Film(1))
    world.scheduler.run_once()
    world.chat("chat")
    world.scheduler.cancel("film")
    world.run()
    assert world.error("film").status == 499
    assert len(world.llm.token_ms.get("film/0", [0])) == 1  # admitted at most, never run
    assert isinstance(world.events["chat"][-1], Finished)


def test_a_pipeline_may_handle_the_error_of_an_operation() -> None:
    world = World()
    world.submit("film", Film(1, trouble="memory"))
    world.run()
    assert torch.equal(world.result("film"), reference(Film(1))[0])


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        ("begin", 400, "insufficient_memory"),
        ("bad block", 500, "internal_error"),
        ("disk", 500, "internal_error"),
        ("unknown operation", 500, "internal_error"),
    ],
)
def test_trouble_ends_its_film_alone(
    trouble: str, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.submit("good", Film(1))
    with caplog.at_level(logging.ERROR):
        world.submit("bad", Film(2, prompt=trouble, trouble=trouble))
        world.submit("better", Film(3))
        closed.clear()
        world.run()
    assert (world.error("bad").status, world.error("bad").code) == (status, code)
    if status == 500:
        assert world.error("bad").message.split()[-1] in caplog.text
    assert closed.count(trouble) == 1
    assert torch.equal(world.result("good"), reference(Film(1))[0])
    assert torch.equal(world.result("better"), reference(Film(3))[0])


def test_the_refusal_of_another_workload_reaches_the_pipeline_as_it_is() -> None:
    world = World()
    world.submit("film", Film(1, prompt=""))
    world.run()
    error = world.error("film")
    assert (error.status, error.code, error.param) == (400, "invalid_value", "prompt")


def test_an_operation_without_pieces_is_answered_at_once() -> None:
    @dataclass(frozen=True)
    class Add:
        a: int
        b: int
        kind: str = "add"

    def add(operation: Add) -> Generator[Segment, None, int]:
        return operation.a + operation.b
        yield

    def sum_up(params: int, state: Any = None) -> Generator[Add, int, int]:
        total = 0
        for i in range(params):
            total = yield Add(total, i)
        return total

    workload = PipelineWorkload("sum", {int: sum_up}, {Add: InPieces(add)})
    scheduler = Scheduler([workload])
    events: list[Any] = []
    scheduler.submit(Request("a", 5, events.append))
    while scheduler.run_once():
        pass
    assert events == [Completed("a", 10)]


@dataclass(frozen=True)
class Hold:
    """Three pieces with the one thing there is, which others wait for."""

    kind: str = "hold"


def test_an_operation_that_waits_costs_nothing_until_the_other_gives_back() -> None:
    holders: list[str] = []
    running: list[Any] = []

    def hold(operation: Hold) -> Generator[Segment | Wait, None, str]:
        while holders:
            yield Wait(lambda: not holders)
        holders.append("somebody")
        try:
            for _ in range(3):
                yield Segment(1.0)
                assert len(holders) == 1
        finally:
            holders.clear()
        return "held"

    def pipeline(params: int, state: Any = None) -> Generator[Hold, str, str]:
        return (yield Hold())

    workload = PipelineWorkload("holding", {int: pipeline}, {Hold: InPieces(hold)})
    scheduler = Scheduler([workload])
    for name in ("first", "second"):
        scheduler.submit(Request(name, 1, running.append))
    steps = 0
    while scheduler.run_once():
        steps += 1
    assert running == [Completed("first", "held"), Completed("second", "held")]
    assert steps == 2 + 3 + 1 + 3  # two begin, one holds, the wait ends, the other holds
    assert workload.next_wake(0.0) is None


def test_a_loop_with_nothing_but_waits_asks_again_by_itself() -> None:
    gate: list[bool] = []

    def wait(operation: Hold) -> Generator[Segment | Wait, None, str]:
        while not gate:
            yield Wait(lambda: bool(gate))
        return "open"

    def pipeline(params: int, state: Any = None) -> Generator[Hold, str, str]:
        return (yield Hold())

    workload = PipelineWorkload("waiting", {int: pipeline}, {Hold: InPieces(wait)})
    scheduler = Scheduler([workload])
    events: list[Any] = []
    scheduler.submit(Request("a", 1, events.append))
    while scheduler.run_once():
        pass
    assert events == []
    assert workload.next_wake(5.0) == pytest.approx(5.02)
    gate.append(True)
    while scheduler.run_once():
        pass
    assert events == [Completed("a", "open")]


def test_an_answer_that_comes_in_many_events_is_gathered() -> None:
    @dataclass(frozen=True)
    class Chat:
        kind: str = "chat"

    def pipeline(params: int, state: Any = None) -> Generator[Chat, int, int]:
        return (yield Chat())

    world = World()
    chat = Delegate(lambda op, _: ChatParams(3), Finished, len, gathers=str)
    workload = PipelineWorkload("asking", {int: pipeline}, {Chat: chat})
    events: list[Any] = []

    class Talkative(Toy):
        def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
            for offer in offers:
                self.requests[offer.request_id].sink("word")
            return super().run(offers, budget_ms)

    scheduler = Scheduler([Talkative(world.clock), workload], clock=world.clock)
    workload.delegate_to(scheduler)
    scheduler.submit(Request("a", 1, events.append))
    while scheduler.run_once():
        pass
    assert events == [Completed("a", 3)]


def test_a_pipeline_that_fails_while_it_is_closed_does_not_take_the_loop_along() -> None:
    @dataclass(frozen=True)
    class Stubborn:
        pass

    def stubborn(params: Stubborn, state: Any = None) -> Generator[Any, Any, None]:
        try:
            yield Encode("x")
        finally:
            raise RuntimeError("will not go")

    world = World()
    workload = PipelineWorkload("stubborn", {Stubborn: stubborn}, {Encode: InPieces(lambda _: (yield Segment(1.0)))})
    scheduler = Scheduler([workload, world.llm], clock=world.clock)
    events: list[Any] = []
    scheduler.submit(Request("a", Stubborn(), events.append))
    scheduler.run_once()
    scheduler.cancel("a")
    assert scheduler.run_once() is False
    assert [type(event) for event in events] == [Failed]


trace = st.lists(
    st.tuples(
        st.integers(0, 40),  # submitted before this step
        st.sampled_from(["chat", "film", "film", "bad block", "memory"]),
        st.integers(0, 3),  # seed
        st.none() | st.integers(0, 40),  # cancelled before this step
    ),
    min_size=1,
    max_size=8,
)


def check_films_are_the_same_in_any_company(trace: list[tuple[int, str, int, int | None]]) -> None:
    world = World()
    for step in range(41):
        for i, (begin, what, seed, cancel) in enumerate(trace):
            if begin == step:
                if what == "chat":
                    world.chat(str(i), 1 + 5 * seed)
                else:
                    world.submit(str(i), Film(seed, trouble="" if what == "film" else what))
            if cancel == step:
                world.scheduler.cancel(str(i))
        world.scheduler.run_once()
    world.run()
    for i, (_, what, seed, cancel) in enumerate(trace):
        last = world.events[str(i)][-1]
        if isinstance(last, Completed):
            assert torch.equal(last.result, reference(Film(seed))[0])
        elif cancel is None:
            assert isinstance(last, Finished if what == "chat" else Failed)
            assert what in ("chat", "bad block")
        if what not in ("chat", "bad block"):
            for state, same in zip(world.checkpoints.get(str(i), []), reference(Film(seed))[1], strict=False):
                assert torch.equal(state.latents, same.latents)
    assert all(execution.is_closed for execution in world.denoise.begun)


@settings(max_examples=30, deadline=None)
@given(trace=trace)
def test_films_are_the_same_in_any_company(trace: list[tuple[int, str, int, int | None]]) -> None:
    check_films_are_the_same_in_any_company(trace)


@pytest.mark.soak
@settings(max_examples=1500, deadline=None)
@given(trace=trace)
def test_films_are_the_same_in_any_company_soak(trace: list[tuple[int, str, int, int | None]]) -> None:
    check_films_are_the_same_in_any_company(trace)
