"""Samplers: they go on from each of their states, keep what is held, and do without an absent stream."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo, LatentState
from braid.diffusion.noise import NoiseSeeds, NoiseSource, SeededNoise
from braid.diffusion.pipelines.sampler_choice import SAMPLERS as NAMED_SAMPLERS
from braid.diffusion.res_2s import LAST_SIGMA, Res2sOptions, pulled_anchor, res_2s
from braid.diffusion.samplers import euler, euler_ancestral, euler_cfg_pp, gradient_estimation
from braid.diffusion.sampling_state import Estimates, Evaluation, Sampler, SamplerState, drive
from braid.diffusion.schedules import ltx2_sigmas
from braid.errors import InvalidRequest

Streams = AudioVideo[LatentState]
StartSampler = Callable[[SamplerState | None, Tensor, Streams, NoiseSource], Sampler]
FLOAT32 = Res2sOptions(model_dtype=torch.float32)
SAMPLERS: dict[str, StartSampler] = {
    "euler": lambda state, sigmas, streams, noise: euler(state, sigmas, streams),
    "gradient_estimation": lambda state, sigmas, streams, noise: gradient_estimation(state, sigmas, streams),
    "euler_ancestral": lambda state, sigmas, streams, noise: euler_ancestral(state, sigmas, streams, noise=noise),
    "euler_cfg_pp": lambda state, sigmas, streams, noise: euler_cfg_pp(state, sigmas, streams, noise=noise),
    "res_2s": lambda state, sigmas, streams, noise: res_2s(state, sigmas, streams, noise=noise, options=FLOAT32),
    "res_2s_by_token": lambda state, sigmas, streams, noise: res_2s(
        state, sigmas, streams, noise=noise, options=replace(FLOAT32, is_legacy=False)
    ),
}
SIGMAS = ltx2_sigmas(4)
each_sampler = pytest.mark.parametrize("start", SAMPLERS.values(), ids=SAMPLERS.keys())


def make_stream(num_tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> LatentState:
    """Its first token is held exactly."""
    latents = torch.randn(1, num_tokens, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mask = torch.ones(1, num_tokens, 1)
    mask[:, 0] = 0.0
    return LatentState(latents, mask, latents * 0.5, torch.zeros(1, 1, num_tokens, 2))


def streams(dtype: torch.dtype = torch.float32) -> Streams:
    return AudioVideo(make_stream(6, 1, dtype), make_stream(3, 2, dtype))


def denoise(asked: Evaluation) -> AudioVideo[Tensor] | Estimates:
    denoised = asked.latents.map(lambda x: (0.3 + 0.6 * torch.tanh(x.float()) + asked.sigma).to(x.dtype))
    return Estimates(denoised, denoised.map(lambda x: x * 0.8)) if asked.needs_unconditional else denoised


def equal(first: AudioVideo[Tensor], second: AudioVideo[Tensor]) -> bool:
    return all(map(torch.equal, first.present(), second.present()))


@each_sampler
def test_a_sampler_goes_on_from_each_of_its_states_with_the_same_bits(start: StartSampler) -> None:
    states: list[SamplerState] = []
    whole = drive(start(None, SIGMAS, streams(), SeededNoise(5)), denoise, on_state=states.append)
    assert [state.step for state in states] == [1, 2, 3, 4]
    for state in states:
        left: list[SamplerState] = []
        resumed = drive(start(state, SIGMAS, streams(), SeededNoise(6)), denoise, on_state=left.append)
        assert equal(resumed, whole)
        assert [one.step for one in left] == list(range(state.step + 1, 5))


@each_sampler
def test_a_state_is_not_written_to_by_the_sampler_that_goes_on(start: StartSampler) -> None:
    states: list[tuple[SamplerState, AudioVideo[Tensor]]] = []
    drive(
        start(None, SIGMAS, streams(), SeededNoise(5)),
        denoise,
        on_state=lambda state: states.append((state, state.latents.map(Tensor.clone))),
    )
    assert all(equal(state.latents, latents) for state, latents in states)


@each_sampler
def test_tokens_that_are_held_exactly_end_as_they_are_given(start: StartSampler) -> None:
    final = drive(start(None, SIGMAS, streams(), SeededNoise(5)), denoise)
    for stream, latents in zip(streams().present(), final.present(), strict=True):
        assert torch.allclose(latents[:, 0], stream.clean_latents[:, 0], atol=1e-6)


@each_sampler
def test_an_absent_stream_stays_absent(start: StartSampler) -> None:
    def only_audio(asked: Evaluation) -> AudioVideo[Tensor] | Estimates:
        assert asked.latents.video is None
        return denoise(asked)

    final = drive(start(None, SIGMAS, AudioVideo(None, make_stream(3, 2)), SeededNoise(5)), only_audio)
    assert final.video is None
    assert final.audio is not None
    assert final.audio.isfinite().all()


@each_sampler
def test_a_schedule_from_exactly_1_gives_finite_latents(start: StartSampler) -> None:
    final = drive(start(None, torch.tensor([1.0, 0.5, 0.0]), streams(), SeededNoise(5)), denoise)
    assert all(latents.isfinite().all() for latents in final.present())


@pytest.mark.parametrize("name", ["euler", "gradient_estimation", "euler_ancestral", "euler_cfg_pp"])
def test_the_euler_family_keeps_the_dtype_of_the_latents(name: str) -> None:
    final = drive(SAMPLERS[name](None, SIGMAS, streams(torch.bfloat16), SeededNoise(5)), denoise)
    assert {latents.dtype for latents in final.present()} == {torch.bfloat16}


def test_res_2s_shows_the_model_midpoints_whose_steps_are_never_skipped() -> None:
    asked: list[Evaluation] = []

    def watch(evaluation: Evaluation) -> AudioVideo[Tensor] | Estimates:
        asked.append(evaluation)
        return denoise(evaluation)

    drive(res_2s(None, torch.tensor([0.9, 0.4, 0.0]), streams(), noise=SeededNoise(5)), watch)
    last = float(torch.tensor(LAST_SIGMA))
    assert [one.step_index for one in asked] == [0, 0, 1, 0, 2]
    expected = [0.9, (0.9 * 0.4) ** 0.5, 0.4, (0.4 * last) ** 0.5, last]
    assert [one.sigma for one in asked] == pytest.approx(expected)
    seen = [{latents.dtype for latents in one.latents.present()} for one in asked]
    assert seen == [{torch.float32}] + [{torch.bfloat16}] * 4


def test_any_number_of_pulls_of_the_anchor_is_what_the_loop_would_give() -> None:
    anchor, middle, first = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    looped = anchor
    for iterations in range(5):
        closed = pulled_anchor(anchor, middle, first, reach=0.23, iterations=iterations)
        assert torch.allclose(closed, looped, rtol=0, atol=1e-14)
        looped = middle - 0.23 * (first - looped)


def test_without_noise_at_midpoints_pulling_the_anchor_changes_nothing() -> None:
    def final(iterations: int) -> AudioVideo[Tensor]:
        options = Res2sOptions(eta=0.0, substep_eta=0.0, bong_iterations=iterations, model_dtype=torch.float64)
        sigmas = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
        whole = AudioVideo(replace(make_stream(4, 1, torch.float64), denoise_mask=torch.ones(1, 4, 1)))
        return drive(res_2s(None, sigmas, whole, noise=SeededNoise(0), options=options), denoise)

    with_bong, without = final(100).video, final(0).video
    assert with_bong is not None
    assert without is not None
    assert torch.allclose(with_bong, without, atol=1e-14)


@pytest.mark.parametrize("sigmas", [[], [1.0], [0.5, 0.5, 0.0], [0.4, 0.6], [1.0, float("nan"), 0.0], [0.5, -0.1]])
@each_sampler
def test_sigmas_that_do_not_descend_are_refused_by_value(start: StartSampler, sigmas: list[float]) -> None:
    with pytest.raises(InvalidRequest, match="sigmas="):
        drive(start(None, torch.tensor(sigmas), streams(), SeededNoise(5)), denoise)


@pytest.mark.parametrize(("name", "is_drawn"), [("res_2s", True), ("res_2s_ode", False)])
def test_noise_decides_where_res_2s_ends_but_not_without_it(name: str, is_drawn: bool) -> None:
    begun = streams()

    def end(seed: int) -> AudioVideo[Tensor]:
        noise = SeededNoise(NoiseSeeds(initial=0, step=seed))
        state = SamplerState(0, begun.map(lambda stream: stream.latents), noise=noise.state())
        return drive(NAMED_SAMPLERS[name](state, SIGMAS, begun, noise), denoise)

    assert equal(end(1), end(2)) is not is_drawn
