from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.llm_core.scheduler.cost import CostModel

TRUE_MS = (1.2, 0.35, 0.08, 2e-5)
KEY = "llm/step"


def mixed_step(rng: random.Random) -> tuple[float, ...]:
    """(1, decode tokens, prefill tokens, token-context products) of a step of chat."""
    decode = rng.randint(1, 8)
    prefill = rng.choice([0, 0, 64, 128, 512])
    return (1.0, float(decode), float(prefill), decode * 500.0 + prefill * rng.randint(10, 2000))


def true_ms(features: tuple[float, ...], factor: float = 1.0) -> float:
    return factor * sum(weight * feature for weight, feature in zip(TRUE_MS, features, strict=True))


def mean_error(model: CostModel, rng: random.Random, factor: float = 1.0) -> float:
    steps = [mixed_step(rng) for _ in range(100)]
    return sum(abs(model.predict(KEY, step) / true_ms(step, factor) - 1) for step in steps) / len(steps)


def taught(num_steps: int, *, noise: float = 0.05, spikes: float = 0.0) -> tuple[CostModel, random.Random]:
    rng, model = random.Random(0), CostModel()
    for _ in range(num_steps):
        step = mixed_step(rng)
        spike = 10.0 if rng.random() < spikes else 1.0
        model.observe(KEY, step, true_ms(step) * max(rng.gauss(1.0, noise), 0.1) * spike)
    return model, rng


def test_fifty_steps_teach_what_each_feature_costs() -> None:
    model, rng = taught(50)
    assert mean_error(model, rng) < 0.05
    assert model.error(KEY) < 0.1


def test_a_hundred_thousand_steps_with_spikes_stay_sound() -> None:
    model, rng = taught(100_000, spikes=0.01)
    assert mean_error(model, rng) < 0.03


def test_one_slow_step_moves_little() -> None:
    model, _ = taught(300)
    step = (1.0, 4.0, 128.0, 50_000.0)
    before = model.predict(KEY, step)
    model.observe(KEY, step, before * 10)
    assert model.predict(KEY, step) == pytest.approx(before, rel=0.05)


def test_a_lasting_change_is_learnt_within_two_hundred_steps() -> None:
    model, rng = taught(2000)
    for _ in range(200):
        step = mixed_step(rng)
        model.observe(KEY, step, true_ms(step, 3.0))
    assert mean_error(model, rng, 3.0) < 0.05


def test_a_small_change_after_a_long_time_is_learnt_too() -> None:
    model = CostModel()
    for _ in range(20_000):
        model.observe(KEY, (1.0,), 10.0)
    for _ in range(1_000):
        model.observe(KEY, (1.0,), 11.0)
    assert model.predict(KEY, (1.0,)) == pytest.approx(11.0, rel=0.01)


def test_no_feature_ever_makes_a_step_cheaper() -> None:
    model = CostModel()
    for _ in range(500):
        model.observe(KEY, (1.0, 0.0), 10.0)
        model.observe(KEY, (1.0, 1.0), 5.0)
    assert model.predict(KEY, (1.0, 3.0)) >= model.predict(KEY, (1.0, 0.0)) > 5.0


def test_what_is_not_seen_for_long_is_not_forgotten() -> None:
    model, rng = taught(300)
    for _ in range(200_000):
        model.observe(KEY, (1.0, 4.0, 0.0, 2000.0), true_ms((1.0, 4.0, 0.0, 2000.0)))
    assert mean_error(model, rng) < 0.15


def test_before_any_observation_the_prior_or_the_default_holds() -> None:
    model = CostModel({"film/block": (0.5, 2.0)}, default_ms=7.0)
    assert model.predict("film/block", (1.0, 3.0)) == pytest.approx(6.5)
    assert model.predict("film/other", (1.0, 3.0)) == 7.0
    assert model.error("film/other") == 1.0


def test_a_prior_gives_way_to_what_is_measured() -> None:
    model = CostModel({"film/block": (1.0,)})
    for _ in range(30):
        model.observe("film/block", (1.0,), 25.0)
    assert model.predict("film/block", (1.0,)) == pytest.approx(25.0, rel=0.05)


def test_the_first_observation_is_believed() -> None:
    model = CostModel()
    model.observe("film/block", (1.0, 6144.0), 40.0)
    assert model.predict("film/block", (1.0, 6144.0)) == pytest.approx(40.0)


def test_a_feature_seen_late_is_learnt_then() -> None:
    model = CostModel()
    for _ in range(500):
        model.observe(KEY, (1.0, 0.0), 5.0)
    for _ in range(60):
        model.observe(KEY, (1.0, 100.0), 25.0)
    assert model.predict(KEY, (1.0, 100.0)) == pytest.approx(25.0, rel=0.05)
    assert model.predict(KEY, (1.0, 0.0)) == pytest.approx(5.0, rel=0.2)


def test_another_number_of_features_is_refused() -> None:
    model = CostModel()
    model.observe(KEY, (1.0, 2.0), 5.0)
    with pytest.raises(ValueError, match="3 features where there were 2"):
        model.observe(KEY, (1.0, 2.0, 3.0), 5.0)


def test_bad_priors_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        CostModel({"a": (-1.0,)})
    with pytest.raises(ValueError, match="default_ms"):
        CostModel(default_ms=0.0)


steps = st.lists(
    st.tuples(st.lists(st.just(0.0) | st.floats(1e-3, 1e7), min_size=3, max_size=3), st.floats(0, 1e6)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=steps)
def test_whatever_is_observed_predictions_are_positive_and_finite(steps: list[tuple[list[float], float]]) -> None:
    model = CostModel()
    for features, ms in steps:
        model.observe(KEY, features, ms)
        for probe in (features, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1e7, 0.0, 1e7]):
            assert 0 < model.predict(KEY, probe) < float("inf")


def test_bytes_are_a_maximum_that_decays() -> None:
    model = CostModel()
    assert model.predict_bytes("film/block") == 0
    model.observe_bytes("film/block", 1000)
    model.observe_bytes("film/block", 400)
    assert 990 <= model.predict_bytes("film/block") <= 1000
    for _ in range(350):
        model.observe_bytes("film/block", 400)
    assert 650 < model.predict_bytes("film/block") < 750
    model.observe_bytes("film/block", 5000)
    assert model.predict_bytes("film/block") == 5000


def test_errors_are_told_by_key() -> None:
    model, _ = taught(200)
    assert model.errors() == {KEY: model.error(KEY)}
