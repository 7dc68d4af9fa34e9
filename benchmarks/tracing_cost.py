"""What does tracing cost a server that chats?

Short batches of the same chats follow each other in one process: bare (nobody watches), off (no spans; requests and
steps are noted for metrics, as a server does with `OTEL_SDK_DISABLED=true`), bare, on (every request traced and
measured, spans made and kept), bare, and so on. Each watched batch is compared with the mean of its two bare
neighbours, so a machine that slows down for seconds slows all three. What counts is processor time a token, of all
threads, from before a tracer is made until it is closed: process and kernels have one core and one thread, so what the
tracer's thread takes is missing to the engine, and the tokens a second of that core fall by as much. Other processes
take wall time, which stands beside it, but not processor time. `more_cpu_percent` is the median over the batches, with
a bootstrap interval of 95 %. There is no physical limit but zero; the goals are 0.5 % with tracing off and 2 % with it
on.

The parts tell the same from below: what a mark and a step cost the engine's thread, what a step and a sampler's step
cost the thread beside it, and `bounds_percent`, all of that as a part of a step's time.

    python benchmarks/tracing_cost.py [--batches 60]
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from braid.benchmarks import machine
from braid.config import BraidConfig
from braid.factory import build_engine
from braid.llm_core.engine.engine import Engine, open_no_trace
from braid.llm_core.engine.messages import Failed, Finished, GenerateRequest, SamplingParams
from braid.tests.tracing.stage import Step
from braid.tracing.measurements import Measurements
from braid.tracing.recorder import Recorder
from braid.tracing.sampling import TraceSampling
from braid.tracing.trace_builder import TraceBuilder
from braid.tracing.trace_store import TraceStore
from braid.tracing.tracer import Tracer

WATCHED = ("off", "on")


class Measured(NamedTuple):
    """One batch of chats."""

    tokens_per_s: float
    cpu_ms_a_token: float


class Difference(NamedTuple):
    """A watched batch against its bare neighbours, percent: processor time added, and throughput lost."""

    more_cpu: float
    lost: float


def tokens_per_second(engine: Engine, num_chats: int, num_tokens: int, batch_id: str) -> float:
    """Of a batch of chats that all begin at once."""
    ended = threading.Semaphore(0)

    def on_event(event: Any) -> None:
        if isinstance(event, Finished | Failed):
            assert isinstance(event, Finished), event
            ended.release()

    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    began = time.perf_counter()
    for i in range(num_chats):
        prompt = f"Count from {i} on, slowly:"
        request = GenerateRequest(id=f"{batch_id}-{i}", prompt=prompt, sampling=sampling, use_prefix_cache=False)
        engine.submit(request, on_event)
    for _ in range(num_chats):
        ended.acquire()
    return num_chats * num_tokens / (time.perf_counter() - began)


def batches(num_batches: int, num_chats: int, num_tokens: int) -> list[tuple[str, Measured]]:
    """What each batch came to, with its state: so many of each watched one, and a bare one around each."""
    states = ["bare", *(state for i in range(2 * num_batches) for state in (WATCHED[i % 2], "bare"))]
    engine = build_engine(BraidConfig(num_threads=1))
    measurements, store = Measurements(), TraceStore()
    found: list[tuple[str, Measured]] = []
    try:
        tokens_per_second(engine, num_chats, num_tokens, "warm")
        for number, state in enumerate(states):
            began = time.process_time()
            with watched(engine, state, measurements, store):
                speed = tokens_per_second(engine, num_chats, num_tokens, f"{state}-{number}")
            cpu_ms = (time.process_time() - began) * 1e3
            found.append((state, Measured(speed, cpu_ms / num_chats / num_tokens)))
    finally:
        engine.close()
    assert len(store), "nothing was traced"
    return found


def beside_neighbours(found: Sequence[tuple[str, Measured]], state: str) -> list[Difference]:
    """Every batch of a state against the mean of the bare ones before and after it."""
    differences = []
    for (_, before), (name, one), (_, after) in zip(found, found[1:], found[2:], strict=False):
        if name == state:
            cpu_ms = (before.cpu_ms_a_token + after.cpu_ms_a_token) / 2
            tokens_per_s = (before.tokens_per_s + after.tokens_per_s) / 2
            differences.append(
                Difference(100 * (one.cpu_ms_a_token / cpu_ms - 1), 100 * (1 - one.tokens_per_s / tokens_per_s))
            )
    return differences


def interval(samples: Sequence[float], *, num_draws: int = 4000) -> list[float]:
    """95 % of the medians of as many samples, drawn from these again and again."""
    values = np.asarray(samples)
    drawn = np.random.default_rng(0).choice(values, (num_draws, len(values)))
    return [round(float(bound), 2) for bound in np.quantile(np.median(drawn, axis=1), (0.025, 0.975))]


def summed_up(differences: Sequence[Difference]) -> dict[str, Any]:
    """Medians and their intervals, percent."""
    more_cpu, lost = [one.more_cpu for one in differences], [one.lost for one in differences]
    return {
        "more_cpu_percent": round(machine.median(more_cpu), 2), "more_cpu_interval": interval(more_cpu),
        "lost_percent": round(machine.median(lost), 2), "lost_interval": interval(lost), "batches": len(differences),
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


@contextmanager
def watched(engine: Engine, state: str, measurements: Measurements, store: TraceStore) -> Iterator[None]:
    """The engine in one of the states."""
    if state == "bare":
        engine._open_trace = open_no_trace
        yield
        return
    sampling = TraceSampling(1.0 if state == "on" else 0.0)
    tracer = Tracer(store.add, sampling=sampling, measure=measurements.take)
    engine._open_trace = tracer.open
    stop = engine.scheduler.journal.subscribe(tracer.note_step)
    try:
        yield
    finally:
        stop()
        tracer.close()


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
        "sampler_step_us": _sampler_step_us(),
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


def _best_us(work: Callable[[], object], num: int) -> float:
    """Of several runs, the least that anything else disturbed."""
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return round(best / num * 1e6, 3)


def bounds_percent(costs: dict[str, float], step_us: float) -> dict[str, float]:
    """What the parts come to of a step's time, as if every one of them held the step up; marks are a few a request."""
    off = costs["note_us"] + costs["measure_us"]
    return {"off": round(100 * off / step_us, 3), "on": round(100 * (off + costs["build_us"]) / step_us, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=60, help="of each watched state (default: 60)")
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    with one_core():
        costs = parts(arguments.chats)
        found = batches(arguments.batches, arguments.chats, arguments.tokens)
    bare = [one for state, one in found if state == "bare"]
    step_us = arguments.chats * machine.median([one.cpu_ms_a_token for one in bare]) * 1e3
    result = {
        "benchmark": "tracing_cost",
        "bare_tokens_per_s": round(machine.median([one.tokens_per_s for one in bare]), 1),
        **{state: summed_up(beside_neighbours(found, state)) for state in WATCHED},
        **costs,
        "step_us": round(step_us),
        "bounds_percent": bounds_percent(costs, step_us),
        **machine.describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
