"""Schedules: usable at every size, official where the official one is sound."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from braid.diffusion.schedules import ShiftedSchedule, ltx2_sigmas
from braid.errors import InvalidRequest


@given(num_steps=st.integers(1, 500), num_tokens=st.integers(1, 10**9))
@example(num_steps=2, num_tokens=26_560)  # officially 0.9987 first
def test_sigmas_descend_from_1_to_0_at_every_size(num_steps: int, num_tokens: int) -> None:
    sigmas = ltx2_sigmas(num_steps, num_tokens)
    assert sigmas.shape == (num_steps + 1,)
    assert (sigmas.diff() < 0).all()
    assert float(sigmas[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(sigmas[-1]) == 0.0


@given(num_steps=st.integers(2, 200), num_tokens=st.integers(1, 10**9))
def test_the_last_sigma_before_0_is_the_terminal_one(num_steps: int, num_tokens: int) -> None:
    assert float(ltx2_sigmas(num_steps, num_tokens)[-2]) == pytest.approx(0.1, abs=1e-6)


def test_the_default_has_the_official_bits_at_sizes_where_those_are_sound() -> None:
    for num_tokens in (256, 4096, 8160, 16320, 32640):
        official = ShiftedSchedule().sigmas(15, num_tokens, precision="official")
        assert torch.equal(ltx2_sigmas(15, num_tokens), official)


@pytest.mark.parametrize("num_tokens", [48_000, 60_000])
def test_the_default_is_exact_where_the_official_arithmetic_cancels(num_tokens: int) -> None:
    schedule = ShiftedSchedule()
    assert not torch.allclose(
        schedule.sigmas(15, num_tokens, precision="official"), ltx2_sigmas(15, num_tokens), atol=0.01
    )
    assert torch.equal(ltx2_sigmas(15, num_tokens), schedule.sigmas(15, num_tokens, precision="exact"))


def test_the_default_is_exact_where_rounding_makes_neighbours_equal() -> None:
    schedule = ShiftedSchedule()
    assert (schedule.sigmas(100, 32_000, precision="official").diff() == 0).any()
    assert torch.equal(ltx2_sigmas(100, 32_000), schedule.sigmas(100, 32_000, precision="exact"))


@given(num_steps=st.integers(2, 60), num_tokens=st.integers(1, 4096))
def test_the_exact_schedule_is_the_official_one_without_its_rounding(num_steps: int, num_tokens: int) -> None:
    official, exact = (
        ShiftedSchedule().sigmas(num_steps, num_tokens, precision=precision) for precision in ("official", "exact")
    )
    assert torch.allclose(official, exact, atol=2e-5)


def test_one_step_goes_from_noise_to_the_estimate() -> None:
    assert ltx2_sigmas(1).tolist() == [1.0, 0.0]
    assert ltx2_sigmas(1, 60_000).tolist() == [1.0, 0.0]


def test_a_schedule_that_is_not_stretched_keeps_the_shifted_line() -> None:
    sigmas = ShiftedSchedule(terminal=None).sigmas(2, 1024)
    scale = torch.tensor(0.95).exp()
    assert torch.allclose(sigmas, torch.tensor([1.0, float(scale / (scale + 1)), 0.0]))


@pytest.mark.parametrize(("num_steps", "num_tokens", "field"), [(0, 4096, "num_inference_steps"), (4, 0, "num_tokens")])
def test_no_steps_and_no_tokens_are_refused_by_name(num_steps: int, num_tokens: int, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}=0"):
        ltx2_sigmas(num_steps, num_tokens)
