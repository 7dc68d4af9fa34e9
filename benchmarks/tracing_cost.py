"""What does tracing cost a server that chats?

The same batch of chats runs in turns with an engine that nobody watches (bare), with tracing off (no spans; requests
and steps are noted for metrics, as a server does with `OTEL_SDK_DISABLED=true`) and with tracing on (every request
traced and measured, spans made and kept). The three of a round are compared with each other, and rounds begin with each
in turn, so that a machine that slows down slows all. There is no physical limit but zero; the goals are 0.5 % of the
throughput with tracing off and 2 % with it on.

Where the machine is not quiet enough for that, the parts tell more: what a mark and a step cost the engine's thread,
what a step costs the thread beside it, and `bounds_percent`, all of that as a part of a step's time.

    python benchmarks/tracing_cost.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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

STATES = ("bare", "off", "on")


class Measured(NamedTuple):
    """One batch of chats."""

    tokens_per_s: float
    cpu_ms_a_token: float


def tokens_per_second(engine: Engine, num_chats: int, num_tokens: int, round_id: str) -> float:
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
        request = GenerateRequest(id=f"{round_id}-{i}", prompt=prompt, sampling=sampling, use_prefix_cache=False)
        engine.submit(request, on_event)
    for _ in range(num_chats):
        ended.acquire()
    return num_chats * num_tokens / (time.perf_counter() - began)


def rounds(num_rounds: int, num_chats: int, num_tokens: int) -> list[dict[str, Measured]]:
    """What each state came to in each round."""
    engine = build_engine(BraidConfig())
    measurements, store = Measurements(), TraceStore()
    found: list[dict[str, Measured]] = []
    try:
        tokens_per_second(engine, num_chats, num_tokens, "warm")
        for number in range(num_rounds):
            turn = number % len(STATES)
            of_round = {}
            for state in STATES[turn:] + STATES[:turn]:
                with watched(engine, state, measurements, store):
                    began = time.process_time()
                    speed = tokens_per_second(engine, num_chats, num_tokens, f"{state}-{number}")
                    of_round[state] = Measured(speed, (time.process_time() - began) * 1e3 / num_chats / num_tokens)
            found.append(of_round)
    finally:
        engine.close()
    assert len(store), "nothing was traced"
    return found


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
    return {"mark_us": marking, "note_us": noting, "measure_us": measuring, "build_us": building}


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


def loss_percent(found: list[dict[str, Measured]], state: str) -> dict[str, Any]:
    """Against the bare engine of the same round: throughput lost and processor time added, as medians and quartiles."""
    slower = [100 * (1 - one[state].tokens_per_s / one["bare"].tokens_per_s) for one in found]
    costlier = [100 * (one[state].cpu_ms_a_token / one["bare"].cpu_ms_a_token - 1) for one in found]
    return {
        "tokens_per_s": round(statistics.median(one[state].tokens_per_s for one in found), 1),
        "loss_percent": round(statistics.median(slower), 2),
        "loss_percent_quartiles": [round(value, 2) for value in statistics.quantiles(slower)[::2]],
        "more_cpu_percent": round(statistics.median(costlier), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=45)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    costs = parts(arguments.chats)
    found = rounds(arguments.rounds, arguments.chats, arguments.tokens)
    step_us = arguments.chats / statistics.median(one["bare"].tokens_per_s for one in found) * 1e6
    result = {
        "benchmark": "tracing_cost",
        **{state: loss_percent(found, state) for state in STATES},
        "rounds": len(found),
        **costs,
        "step_us": round(step_us),
        "bounds_percent": bounds_percent(costs, step_us),
        **machine.describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
