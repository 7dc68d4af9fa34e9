"""What does tracing cost a server that chats?

The same batch of chats runs in turns with tracing off (nobody listens) and on (every request traced and measured,
spans made and kept). Pairs alternate in their order, so that a machine that slows down slows both. There is no physical
limit but zero; the goals are 2 % of the throughput with tracing on, 0.5 % with it off. `said_ns` and `built_us` are the
parts: what one mark costs the engine's thread, and what making spans costs another thread, a step of a request.

    python benchmarks/tracing_cost.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from typing import Any

from braid.benchmarks import machine
from braid.config import BraidConfig
from braid.factory import build_engine
from braid.llm_core.engine.engine import Engine, open_no_trace
from braid.llm_core.engine.messages import Failed, Finished, GenerateRequest, SamplingParams
from braid.tests.tracing.stage import Step
from braid.tracing.measurements import Measurements
from braid.tracing.recorder import Recorder
from braid.tracing.trace_builder import TraceBuilder
from braid.tracing.trace_store import TraceStore
from braid.tracing.tracer import Tracer


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


def paired(num_pairs: int, num_chats: int, num_tokens: int) -> list[tuple[float, float]]:
    """(tokens a second off, on) of each pair."""
    engine = build_engine(BraidConfig())
    measurements, store = Measurements(), TraceStore()
    found: dict[bool, list[float]] = {False: [], True: []}
    try:
        tokens_per_second(engine, num_chats, num_tokens, "warm")
        for pair in range(num_pairs):
            for is_on in (False, True) if pair % 2 else (True, False):
                found[is_on].append(_round(engine, measurements, store, is_on, num_chats, num_tokens, pair))
    finally:
        engine.close()
    assert len(store), "nothing was traced"
    return list(zip(found[False], found[True], strict=True))


def _round(
    engine: Engine,
    measurements: Measurements,
    store: TraceStore,
    is_on: bool,
    num_chats: int,
    num_tokens: int,
    pair: int,
) -> float:
    if not is_on:
        engine._open_trace = open_no_trace
        return tokens_per_second(engine, num_chats, num_tokens, f"off-{pair}")
    tracer = Tracer(store.add, measure=measurements.take)
    engine._open_trace = tracer.open
    stop = engine.scheduler.journal.subscribe(tracer.note_step)
    try:
        return tokens_per_second(engine, num_chats, num_tokens, f"on-{pair}")
    finally:
        stop()
        tracer.close()


def parts() -> dict[str, float]:
    """What a mark costs, and what a step costs whoever makes spans, per request in it."""
    recorder = Recorder()
    num, batch = 20_000, 16
    traces = [recorder.open(f"r{i}", None) for i in range(batch)]
    began = time.perf_counter()
    for _ in range(num):
        traces[0].event("x")
    said_ns = (time.perf_counter() - began) / num * 1e9
    recorder.take()
    traces = [recorder.open(f"r{i}", None) for i in range(batch)]
    for trace in traces:
        trace.phase("decode")
    ids = tuple(f"r{i}" for i in range(batch))
    now = time.monotonic()
    for i in range(2000):
        recorder.note_step(Step(i, ids, now + i * 0.01, 9.0, "decode", 0.5))
    noted, builder = recorder.take(), TraceBuilder()
    began = time.perf_counter()
    builder.build(noted, now)
    built_us = (time.perf_counter() - began) / 2000 / batch * 1e6
    return {"said_ns": round(said_ns), "built_us": round(built_us, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    costs = parts()
    pairs = paired(arguments.pairs, arguments.chats, arguments.tokens)
    losses = sorted(100 * (1 - on / off) for off, on in pairs)
    result = {
        "benchmark": "tracing_cost",
        "tokens_per_s_off": round(statistics.median(off for off, _ in pairs), 1),
        "tokens_per_s_on": round(statistics.median(on for _, on in pairs), 1),
        "loss_percent_median": round(statistics.median(losses), 2),
        "loss_percent_range": [round(losses[0], 2), round(losses[-1], 2)],
        "pairs": len(pairs),
        **costs,
        **machine.describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
