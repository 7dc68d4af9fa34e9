"""Tokens: there and back, noising, blending."""

import pytest
import torch

from braid.diffusion.latents import (
    AudioVideo,
    LatentState,
    add_noise,
    blend_clean,
    drop_appended,
    each,
    free_state,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)

POSITIONS = torch.zeros(1, 3, 4, 2)


def held(mask: float) -> LatentState:
    ones = torch.ones(1, 4, 2)
    return LatentState(ones, torch.full((1, 4, 1), mask), ones * 10, POSITIONS)


def test_video_tokens_go_frame_by_frame_and_row_by_row_and_back() -> None:
    latents = torch.arange(2 * 3 * 2 * 3 * 4.0).view(2, 3, 2, 3, 4)
    tokens = patchify_video(latents)
    assert torch.equal(tokens[1, 1 * 12 + 2 * 4 + 3], latents[1, :, 1, 2, 3])
    assert torch.equal(unpatchify_video(tokens, 2, 3, 4), latents)


def test_audio_tokens_are_channel_major_and_go_back() -> None:
    latents = torch.arange(2 * 3 * 5 * 4.0).view(2, 3, 5, 4)
    tokens = patchify_audio(latents)
    assert torch.equal(tokens[1, 2], latents[1, :, 2].flatten())
    assert torch.equal(unpatchify_audio(tokens, 3), latents)


def test_a_function_of_streams_leaves_out_those_that_the_first_has_not() -> None:
    assert each(lambda a, b: a + b, AudioVideo(None, 1), AudioVideo(5, 2)) == AudioVideo(None, 3)


def test_a_free_state_starts_from_pure_noise() -> None:
    noise = torch.randn(1, 4, 2)
    assert torch.equal(add_noise(free_state(torch.ones(1, 4, 2), POSITIONS), noise).latents, noise)


@pytest.mark.parametrize(("mask", "expected"), [(0.0, 10.0), (1.0, 2.5), (0.5, 6.25)])
def test_noise_reaches_tokens_as_far_as_they_are_free(mask: float, expected: float) -> None:
    noised = add_noise(held(mask), torch.full((1, 4, 2), 4.0), 0.5)
    assert torch.equal(noised.latents, torch.full((1, 4, 2), expected))


def test_noised_latents_keep_their_dtype() -> None:
    state = free_state(torch.ones(1, 4, 2, dtype=torch.bfloat16), POSITIONS)
    assert add_noise(state, torch.zeros(1, 4, 2, dtype=torch.bfloat16), 0.5).latents.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_an_estimate_is_drawn_to_what_is_held_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    blended = blend_clean(torch.zeros(1, 4, 2, dtype=dtype), held(0.25))
    assert torch.equal(blended, torch.full((1, 4, 2), 7.5, dtype=dtype))


def test_appended_tokens_are_dropped_by_count() -> None:
    tokens = torch.arange(12.0).view(1, 6, 2)
    assert torch.equal(drop_appended(tokens, 4), tokens[:, :4])
