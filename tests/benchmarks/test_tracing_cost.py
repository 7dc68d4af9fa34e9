"""How a benchmark of tracing compares blocks of steps on a machine that is never quiet."""

from __future__ import annotations

import random

import pytest

from braid.benchmarks.tracing_cost import Block, beside_neighbours, interval, placebo, summed_up


def drifting(num_blocks: int, *, on_percent: float, noise: float) -> list[Block]:
    """Blocks of a machine that becomes slower by half, with tracing that costs when it is on."""
    rng = random.Random(1)
    found = []
    for number in range(4 * num_blocks + 1):
        state = ("bare", "off", "bare", "on")[number % 4]
        slower = (1 + number / (8 * num_blocks)) * (1 + rng.gauss(0, noise))
        ms = 90.0 * slower * (1 + on_percent / 100 * (state == "on"))
        found.append(Block(state, ms, 2 * ms))
    return found


def test_a_drift_of_the_machine_is_no_cost() -> None:
    blocks = drifting(50, on_percent=1.0, noise=0.0)
    off, on = (summed_up(beside_neighbours(blocks, state)) for state in ("off", "on"))
    assert off["blocks"] == on["blocks"] == 50
    for percent in ("more_cpu_percent", "more_wall_percent"):
        assert off[percent] == pytest.approx(0, abs=0.01)
        assert on[percent] == pytest.approx(1, abs=0.01)
    assert summed_up(placebo(blocks))["more_cpu_percent"] == pytest.approx(0, abs=0.01)


def test_the_interval_holds_what_it_really_is_and_narrows_with_more_blocks() -> None:
    widths = []
    for num_blocks in (25, 400):
        found = [one.more_cpu for one in beside_neighbours(drifting(num_blocks, on_percent=1.0, noise=0.03), "on")]
        low, high = interval(found)
        assert low < 1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
