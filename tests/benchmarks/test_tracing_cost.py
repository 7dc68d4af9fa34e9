"""How a benchmark of tracing compares batches on a machine that is never quiet."""

from __future__ import annotations

import random

import pytest

from braid.benchmarks.tracing_cost import Measured, beside_neighbours, interval, summed_up


def drifting(num_batches: int, *, on_percent: float, noise: float) -> list[tuple[str, Measured]]:
    """Batches of a machine that becomes slower by half, with a watched state that costs more."""
    rng = random.Random(1)
    found = []
    for number, state in enumerate(["bare", *["off", "bare", "on", "bare"] * num_batches]):
        slower = (1 + number / (8 * num_batches)) * (1 + rng.gauss(0, noise))
        cpu_ms = 3.0 * slower * (1 + on_percent / 100 * (state == "on"))
        found.append((state, Measured(1e3 / cpu_ms, cpu_ms)))
    return found


def test_a_drift_of_the_machine_is_no_cost() -> None:
    found = drifting(50, on_percent=1.0, noise=0.0)
    off, on = (summed_up(beside_neighbours(found, state)) for state in ("off", "on"))
    assert off["batches"] == on["batches"] == 50
    assert off["more_cpu_percent"] == pytest.approx(0, abs=0.01)
    assert on["more_cpu_percent"] == pytest.approx(1, abs=0.01)
    assert on["lost_percent"] == pytest.approx(1, abs=0.02)


def test_the_interval_holds_what_it_really_is_and_narrows_with_more_batches() -> None:
    widths = []
    for num_batches in (25, 400):
        found = [one.more_cpu for one in beside_neighbours(drifting(num_batches, on_percent=1.0, noise=0.03), "on")]
        low, high = interval(found)
        assert low < 1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
