"""Noise: official seeds, the order of draws, and going on from a state."""

import pytest
import torch

from braid.diffusion.noise import NoiseSeeds, RecordedNoise, SeededNoise, normalised
from braid.errors import InvalidRequest

CPU = torch.device("cpu")
SHAPE = (1, 5, 4)


def draws(source: SeededNoise | RecordedNoise) -> list[torch.Tensor]:
    return [
        source.initial(SHAPE, dtype=torch.float32, device=CPU),
        source.step(SHAPE, device=CPU),
        source.substep(SHAPE, device=CPU),
        source.ancestral(SHAPE, dtype=torch.bfloat16, device=CPU),
    ]


def test_a_source_goes_on_from_its_state_with_the_same_bits() -> None:
    source = SeededNoise(3)
    draws(source)
    state = source.state()
    expected = draws(source)
    other = SeededNoise(4)
    other.restore(state)
    assert all(map(torch.equal, draws(other), expected))


def test_a_state_does_not_change_while_its_source_draws() -> None:
    source = SeededNoise(3)
    state = source.state()
    before = [state.initial.clone(), state.step.clone(), state.substep.clone()]
    draws(source)
    assert all(map(torch.equal, before, [state.initial, state.step, state.substep]))


def test_only_initial_noise_depends_on_the_users_seed() -> None:
    first, second = draws(SeededNoise(1)), draws(SeededNoise(2))
    assert not torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1:], second[1:]))


def test_a_new_stage_draws_its_steps_again_and_initial_noise_anew() -> None:
    source = SeededNoise(1)
    first = draws(source)
    source.begin_stage()
    second = draws(source)
    assert not torch.equal(first[0], second[0])
    assert all(map(torch.equal, first[1:], second[1:]))


def test_the_midpoints_seed_is_ten_thousand_after_that_of_steps() -> None:
    step = SeededNoise(NoiseSeeds(0, step=10_123)).step(SHAPE, device=CPU)
    assert torch.equal(SeededNoise(NoiseSeeds(0, step=123)).substep(SHAPE, device=CPU), step)


def test_initial_noise_is_drawn_in_the_dtype_of_the_latents() -> None:
    drawn = SeededNoise(7).initial(SHAPE, dtype=torch.bfloat16, device=CPU)
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.bfloat16)
    assert torch.equal(drawn, expected)


def test_every_sample_of_normalised_noise_has_mean_0_and_deviation_1() -> None:
    noise = normalised(torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 5)
    assert torch.allclose(noise.mean((1, 2)), torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(noise.std((1, 2)), torch.ones(2, dtype=torch.float64), atol=1e-12)


def test_recorded_noise_goes_on_from_its_state() -> None:
    recorded = [torch.full(SHAPE, float(value)) for value in range(4)]
    source = RecordedNoise(recorded, step=recorded, substep=recorded)
    draws(source)
    state = source.state()
    expected = draws(source)
    source.restore(state)
    assert all(map(torch.equal, draws(source), expected))
    assert [float(draw[0, 0, 0]) for draw in expected] == [1, 2, 1, 3]


def test_a_draw_that_was_not_recorded_or_has_another_shape_is_refused() -> None:
    source = RecordedNoise(step=[torch.zeros(SHAPE)])
    with pytest.raises(InvalidRequest, match="1, 6, 4"):
        source.step((1, 6, 4), device=CPU)
    source.step(SHAPE, device=CPU)
    with pytest.raises(InvalidRequest, match="draw 1 of 'step'"):
        source.step(SHAPE, device=CPU)
