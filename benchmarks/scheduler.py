"""How much time does the scheduler itself take in each step, beside what the workload does?

The workload here offers ready-made steps and runs them in no time, so that all that is measured is the loop: inbox,
offers, policy, journal and accounts. There is no physical limit but the interpreter's; the goals are 25 microseconds a
step with one request, 30 for a choice among 8 offers and 150 among 128, 2 for an entry in the journal, 5 for what the
cost model learns or predicts.

    python benchmarks/scheduler.py
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import force_setattr

from braid.errors import BraidError
from braid.llm_core.core import JournalEntry, Offer, PolicyConfig, Request, RequestClass, StepResult
from braid.llm_core.scheduler.cost import CostModel
from braid.llm_core.scheduler.journal import Journal
from braid.llm_core.scheduler.loop import Scheduler
from braid.llm_core.scheduler.policy import ServiceHistory, pick

ROUNDS, CALLS = 15, 1000


def microseconds(call: Callable[[], Any]) -> dict[str, float]:
    """Median and 95th percentile over the rounds of the mean time of a call."""
    rounds = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - start) / CALLS * 1e6)
    rounds = sorted(rounds[2:])  # the first two warm up
    return {"median": round(statistics.median(rounds), 2), "p95": round(rounds[int(0.95 * (len(rounds) - 1))], 2)}


def some_offers(num_offers: int) -> list[Offer]:
    rng = random.Random(0)
    return [
        Offer(
            request_id=f"request-{i}",
            workload="null",
            kind="decode",
            batch_key="decode" if i % 4 else "prefill",
            request_class=RequestClass(rng.randrange(3)),
            deadline=time.monotonic() + rng.random(),
            cost_ms=10.0,
            tenant=f"tenant-{i % 5}",
        )
        for i in range(num_offers)
    ]


class NullWorkload:
    """Always offers the same steps and does nothing in them."""

    name = "null"

    def __init__(self, num_requests: int) -> None:
        deadline = time.monotonic() + 1e6
        self._offers = [
            Offer(f"request-{i}", self.name, "decode", "decode", RequestClass.INTERACTIVE, deadline, 10.0)
            for i in range(num_requests)
        ]
        self._result = StepResult(tuple(offer.request_id for offer in self._offers), "decode", num_requests, 10.0)

    def accepts(self, params: Any) -> bool:
        return True

    def admit(self, request: Request, now: float) -> None:
        pass

    def offers(self, now: float) -> Iterable[Offer]:
        return self._offers

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        return self._result

    def cancel(self, request_id: str, error: BraidError) -> bool:
        return False


def time_pick(num_offers: int) -> dict[str, float]:
    config = PolicyConfig()
    history = ServiceHistory(config, 250.0)
    offers = some_offers(num_offers)
    history.notice(offers)
    return microseconds(lambda: pick(offers, time.monotonic(), history, config))


def time_loop(num_requests: int) -> dict[str, float]:
    scheduler = Scheduler([NullWorkload(num_requests)])
    for i in range(num_requests):
        scheduler.submit(Request(f"request-{i}", None, lambda event: None))
    return microseconds(scheduler.run_once)


def time_journal() -> dict[str, float]:
    journal = Journal()
    entry = JournalEntry(0, "null", "decode", ("a",), "device", 0.0, 10.0, 0.0, 10.0, 0, 1)

    def append() -> None:
        # The entry is the loop's to make; here one object stands for all.
        force_setattr(entry, "number", journal.next_number)
        journal.append(entry)

    return microseconds(append)


def time_costs() -> dict[str, dict[str, float]]:
    costs, rng = CostModel(), random.Random(0)
    steps = [(1.0, rng.randint(1, 8), rng.choice([0, 128, 512]), rng.randint(1, 10**6)) for _ in range(100)]
    taken = [1 + 0.4 * step[1] + 0.1 * step[2] + 1e-5 * step[3] for step in steps]
    turn = iter(range(10**9))

    def observe() -> None:
        i = next(turn) % 100
        costs.observe("step", steps[i], taken[i])

    return {"observe": microseconds(observe), "predict": microseconds(lambda: costs.predict("step", steps[0]))}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    root = Path(__file__).parent
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def main() -> None:
    results = {
        "unit": "microseconds",
        "pick": {str(n): time_pick(n) for n in (1, 8, 32, 128)},
        "run_once": {str(n): time_loop(n) for n in (1, 8, 32, 128)},
        "journal_append": time_journal(),
        "cost_model_4_features": time_costs(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": commit(),
    }
    for name, value in results.items():
        print(f"{name}: {value}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
