"""What does tracing cost a server that chats?

Chats decode together in one process, and every few steps it changes who watches them: nobody (bare), then by lot
tracing that is off (no spans; steps are noted and measured for metrics, as a server does with
`OTEL_SDK_DISABLED=true`) or on (every step also has its part in the spans of all its requests), then nobody again.
What a server leaves to another thread ten times a second is done here at the end of each block of steps, on the
engine's own thread, which is as if it always held the engine up. Each watched block is compared with the mean of its
two bare neighbours, a tenth of a second away: a machine that slows down slows all three. What counts is processor time
of the engine's thread; the process keeps to one core and the kernels to one thread. Other processes take its wall
time, which stands beside it, rather than that. `more_cpu_percent` is the median over the blocks, with a bootstrap
interval of 95 %; `placebo` is what bare blocks come to among themselves in the same way. There is no physical limit
but zero; the goals are 0.5 % of the throughput with tracing off and 2 % with it on.

What a request costs as a whole, from its beginning to its spans, does not lie in such blocks: it is timed by itself
(`request_us`) and set against the time of a chat's tokens, as are the other parts: what a mark and a step cost the
engine's thread, and what a step and a sampler's step cost the thread beside it (`bounds_percent`).

    python benchmarks/tracing_cost.py [--minutes 4]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from braid.benchmarks import machine
from braid.config import BraidConfig
from braid.factory import build_engine
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.messages import Failed, Finished, GenerateRequest, SamplingParams
from braid.tests.tracing.stage import Step
from braid.tracing.measurements import Measurements
from braid.tracing.recorder import Recorder
from braid.tracing.sampling import TraceSampling
from braid.tracing.step_record import StepRecord
from braid.tracing.trace_builder import TraceBuilder
from braid.tracing.trace_store import TraceStore
from braid.tracing.tracer import Tracer

WATCHED = ("off", "on")
STEPS_A_BLOCK = 5
"""About a tenth of a second, after which a server makes spans of what was noted. Every 16th step of a chat does more
than others (a page is full, prices are looked up): blocks of 4 would give that to the same places of each turn."""
TOKENS = 300
NEVER_S = 1e6


class Block(NamedTuple):
    """Some steps."""

    state: str
    cpu_ms: float
    """Of the engine's thread."""
    wall_ms: float


class Difference(NamedTuple):
    """A block against its bare neighbours, percent."""

    more_cpu: float
    more_wall: float


class Watching:
    """Hears of every step on the engine's thread, and lets those watch whose turn it is.

    Args:
        request_ids: of all chats; they have begun before the first block.
    """

    def __init__(self, request_ids: Sequence[str]) -> None:
        measurements, spans = Measurements(), TraceStore()
        self._tracers = {
            state: Tracer(spans.add, sampling=TraceSampling(ratio), measure=measurements.take, tick_s=NEVER_S)
            for state, ratio in (("off", 0.0), ("on", 1.0))
        }
        for tracer in self._tracers.values():
            for request_id in request_ids:
                tracer.open(request_id, None).phase("decode")
            tracer.flush()
        self.blocks: list[Block] = []
        self._rng = random.Random(request_ids[0])
        self._state = "bare"
        self._num_steps = 0
        self._cpu_s, self._wall_s = time.thread_time(), time.perf_counter()

    def hear(self, step: StepRecord) -> None:
        """A step ran."""
        tracer = self._tracers.get(self._state)
        if tracer is not None:
            tracer.note_step(step)
        self._num_steps += 1
        if self._num_steps == STEPS_A_BLOCK:
            if tracer is not None:
                tracer.flush()
            self._next_block()

    def _next_block(self) -> None:
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        times = ((cpu_s - self._cpu_s) * 1e3, (wall_s - self._wall_s) * 1e3)
        self.blocks.append(Block(self._state, *times))
        self._state, self._num_steps = self._rng.choice(WATCHED) if self._state == "bare" else "bare", 0
        self._cpu_s, self._wall_s = cpu_s, wall_s

    def close(self) -> list[Block]:
        """The blocks; the first, which began elsewhere, left out."""
        for tracer in self._tracers.values():
            tracer.close()
        return self.blocks[2:]


def all_blocks(minutes: float, num_chats: int) -> list[list[Block]]:
    """Of one batch of chats after the other."""
    engine = build_engine(BraidConfig(num_threads=1))
    ends_at = time.monotonic() + minutes * 60
    found: list[list[Block]] = []
    try:
        while not found or time.monotonic() < ends_at:
            found.append(blocks_of_a_batch(engine, [f"{len(found)}-{i}" for i in range(num_chats)]))
    finally:
        engine.close()
    return found


def blocks_of_a_batch(engine: Engine, request_ids: Sequence[str]) -> list[Block]:
    """From when all of them decode."""
    ended = threading.Semaphore(0)

    def on_event(event: Any) -> None:
        if isinstance(event, Finished | Failed):
            assert isinstance(event, Finished), event
            ended.release()

    watching: Watching | None = None

    def hear(step: StepRecord) -> None:
        nonlocal watching
        if step.kind != "decode" or len(step.request_ids) < len(request_ids):
            return
        if watching is None:
            watching = Watching(request_ids)
        watching.hear(step)

    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    stop = engine.scheduler.journal.subscribe(hear)
    for number, request_id in enumerate(request_ids):
        prompt = f"Count from {number} on, slowly:"
        request = GenerateRequest(id=request_id, prompt=prompt, sampling=sampling, use_prefix_cache=False)
        engine.submit(request, on_event)
    for _ in request_ids:
        ended.acquire()
    stop()
    assert watching is not None
    return watching.close()


def beside_neighbours(blocks: Sequence[Block], state: str) -> list[Difference]:
    """Every block of a state against the mean of the bare ones before and after it."""
    return [
        Difference(_more(one.cpu_ms, before.cpu_ms, after.cpu_ms), _more(one.wall_ms, before.wall_ms, after.wall_ms))
        for before, one, after in zip(blocks, blocks[1:], blocks[2:], strict=False)
        if one.state == state
    ]


def _more(ms: float, before_ms: float, after_ms: float) -> float:
    return 100 * (2 * ms / (before_ms + after_ms) - 1)


def placebo(blocks: Sequence[Block]) -> list[Difference]:
    """The same where nobody watches any of the three."""
    return beside_neighbours([block for block in blocks if block.state == "bare"], "bare")


def interval(samples: Sequence[float], *, num_draws: int = 4000) -> list[float]:
    """95 % of the medians of as many samples, drawn from these again and again."""
    values = np.asarray(samples)
    drawn = np.random.default_rng(0).choice(values, (num_draws, len(values)))
    return [round(float(bound), 2) for bound in np.quantile(np.median(drawn, axis=1), (0.025, 0.975))]


def summed_up(differences: Sequence[Difference]) -> dict[str, Any]:
    """Medians and their intervals, percent."""
    cpu, wall = [one.more_cpu for one in differences], [one.more_wall for one in differences]
    return {
        "more_cpu_percent": round(machine.median(cpu), 2), "more_cpu_interval": interval(cpu),
        "more_wall_percent": round(machine.median(wall), 2), "more_wall_interval": interval(wall),
        "blocks": len(differences),
    }  # fmt: skip


@contextmanager
def one_core() -> Iterator[None]:
    """The process and all threads that it begins meanwhile share one core, where the system has such a thing."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def parts(num_chats: int) -> dict[str, float]:
    """Microseconds: what one mark and one step cost the engine's thread, and what a step of all chats costs the thread
    that measures it and the one that makes spans, which are the same."""
    num = 5000
    recorder, builder, measurements = Recorder(), TraceBuilder(), Measurements()
    traces = [recorder.open(f"r{i}", None) for i in range(num_chats)]
    for trace in traces:
        trace.phase("prefill")
        trace.phase("decode")
    opened = recorder.take()
    builder.build(opened, 0.0)
    measurements.take(opened)
    ids = tuple(f"r{i}" for i in range(num_chats))
    now = time.monotonic()
    steps = [Step(i, ids, now + i * 0.01, 9.0, "decode", 0.5) for i in range(num)]
    noting = _best_us(lambda: [recorder.note_step(step) for step in steps], num)
    noted = recorder.take()[:num]
    measuring = _best_us(lambda: measurements.take(noted), num)
    building = _best_us(lambda: builder.build(noted, now), num)
    marking = _best_us(lambda: [traces[0].event("x") for _ in range(num)], num)
    return {
        "mark_us": marking, "note_us": noting, "measure_us": measuring, "build_us": building,
        "sampler_step_us": _sampler_step_us(), "request_us": _request_us(),
    }  # fmt: skip


def _sampler_step_us(num: int = 500) -> float:
    """To note a sampler step of two evaluations in eight pieces, and to make spans of it and its guidance."""
    best = float("inf")
    for _ in range(5):
        recorder, builder = Recorder(), TraceBuilder()
        film = recorder.open("film", None)
        began = time.perf_counter()
        for number in range(num):
            film.progress("stage_1", number, num)
            for evaluation in range(2):
                film.event("operation", {"kind": "denoise", "sigma": 0.5, "guidance_passes": 3})
                for piece in range(8):
                    at = number * 16 + evaluation * 8 + piece
                    recorder.note_step(Step(at, ("film",), recorder.clock(), 0.0, "guide" if piece == 7 else "denoise"))
        builder.build(recorder.take(), recorder.clock())
        best = min(best, time.perf_counter() - began)
    return round(best / num * 1e6, 1)


def _request_us(num: int = 200) -> float:
    """All that a chat of one token comes to, from its trace's beginning to the store."""
    best = float("inf")
    for _ in range(5):
        recorder, builder, store = Recorder(), TraceBuilder(), TraceStore()
        began = time.perf_counter()
        for number in range(num):
            trace = recorder.open(f"r{number}", None, name="chat m", attributes={"gen_ai.request.model": "m"})
            for phase in ("tokenise", "queue", "prefill"):
                trace.phase(phase)
            recorder.note_step(Step(2 * number, (f"r{number}",), recorder.clock(), 0.0, "prefill"))
            trace.phase("decode")
            recorder.note_step(Step(2 * number + 1, (f"r{number}",), recorder.clock(), 0.0, "decode"))
            trace.end({"completion_tokens": 1})
        store.add(builder.build(recorder.take(), recorder.clock() + 1))
        best = min(best, time.perf_counter() - began)
        assert len(store) == num
    return round(best / num * 1e6, 1)


def _best_us(work: Callable[[], object], num: int) -> float:
    """Of several runs, the least that anything else disturbed."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return round(best / num * 1e6, 3)


def bounds_percent(costs: dict[str, float], step_us: float, num_chats: int) -> dict[str, float]:
    """What the parts come to of a step's time, as if every one of them held the step up; of requests, where each has
    100 tokens."""
    off = costs["note_us"] + costs["measure_us"]
    requests = costs["request_us"] * num_chats / 100
    return {"off": round(100 * off / step_us, 3), "on": round(100 * (off + costs["build_us"] + requests) / step_us, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--chats", type=int, default=8)
    arguments = parser.parse_args()
    with one_core():
        costs = parts(arguments.chats)
        found = all_blocks(arguments.minutes, arguments.chats)
    bare_ms = [one.cpu_ms for batch in found for one in batch if one.state == "bare"]
    step_us = machine.median(bare_ms) * 1e3 / STEPS_A_BLOCK
    result = {
        "benchmark": "tracing_cost",
        **{state: summed_up([one for batch in found for one in beside_neighbours(batch, state)]) for state in WATCHED},
        "placebo": summed_up([one for batch in found for one in placebo(batch)]),
        **costs,
        "step_us": round(step_us),
        "bounds_percent": bounds_percent(costs, step_us, arguments.chats),
        **machine.describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
