from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from braid.llm_core.engine.uniform import completion_seed, mix, stream, uniform

SEEDS = [0, 1, 2, 12345, -1, 2**64 - 1]


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def histogram(numbers: list[float], num_bins: int) -> list[int]:
    counts = [0] * num_bins
    for number in numbers:
        counts[int(number * num_bins)] += 1
    return counts


def test_the_generator_gives_the_published_sequence_of_splitmix64() -> None:
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + i * gamma) % 2**64 for i in (1, 2, 3)]
    assert [mix(state) for state in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**40))
def test_numbers_are_in_the_unit_interval_and_depend_on_seed_and_step_alone(seed: int, step: int) -> None:
    number = uniform(stream(seed), step)
    assert 0 <= number < 1
    assert number == uniform(stream(seed), step)
    assert number == uniform(stream(seed % 2**64), step)


def test_the_steps_of_one_seed_are_uniform() -> None:
    for seed in SEEDS:
        numbers = [uniform(stream(seed), step) for step in range(20_000)]
        assert 50 < chi_square(histogram(numbers, 100)) < 160  # 99 degrees of freedom: mean 99, deviation 14


def test_the_first_number_of_consecutive_seeds_is_uniform() -> None:
    numbers = [uniform(stream(seed), 0) for seed in range(20_000)]
    assert 50 < chi_square(histogram(numbers, 100)) < 160


def test_pairs_of_consecutive_steps_are_independent() -> None:
    numbers = [uniform(stream(3), step) for step in range(20_001)]
    counts = [0] * 64
    for first, second in pairwise(numbers):
        counts[int(first * 8) * 8 + int(second * 8)] += 1
    assert 25 < chi_square(counts) < 115  # 63 degrees of freedom


def test_completions_of_one_request_have_seeds_of_their_own() -> None:
    assert completion_seed(7, 0) == 7
    seeds = {completion_seed(seed, index) for seed in range(50) for index in range(128)}
    assert len(seeds) == 50 * 128
