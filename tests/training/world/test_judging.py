"""Counts of claims and how sure they are."""

from __future__ import annotations

import random

import pytest

from braid.training.world.judging import Tally


def counted(films: list[list[tuple[str, bool]]]) -> Tally:
    tally = Tally()
    for film in films:
        tally.add(film)
    return tally


def test_shares_are_of_each_kind_and_of_all() -> None:
    tally = counted([[("colour", True), ("shape", False)], [("colour", True), ("sound", True)]])
    assert tally.shares() == {"colour": 1.0, "shape": 0.0, "sound": 1.0, "all": 0.75}


def test_an_interval_of_independent_claims_is_wilsons() -> None:
    tally = counted([[("sound", number < 90)] for number in range(100)])
    # by hand: p = 0.9, n = 100
    assert tally.intervals()["sound"] == pytest.approx((0.8256, 0.9448), abs=2e-4)
    always = counted([[("sound", True)] for _ in range(200)])
    assert always.intervals()["sound"] == pytest.approx((0.9812, 1.0), abs=2e-4)


def test_claims_that_fail_together_are_worth_fewer() -> None:
    def width(films: list[list[tuple[str, bool]]]) -> float:
        low, high = counted(films).intervals()["all"]
        return high - low

    apart = [[("colour", (number + part) % 5 > 0) for part in range(4)] for number in range(50)]
    together = [[("colour", number % 5 > 0)] * 4 for number in range(50)]
    assert width(together) > 1.8 * width(apart)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(300):
        low, high = counted([[("x", rng.random() < 0.85)] for _ in range(60)]).intervals()["x"]
        hits += low <= 0.85 <= high
    assert 0.9 < hits / 300 < 0.99
