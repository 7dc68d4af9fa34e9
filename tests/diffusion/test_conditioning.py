"""Conditioning: what is held where, and what appended tokens see."""

import pytest
import torch

from braid.diffusion.conditioning import (
    append_keyframes,
    append_reference,
    append_tokens,
    attention_strength_of_tokens,
    freeze,
    hold_latent_frames,
    hold_masked,
    retake,
)
from braid.diffusion.latents import LatentState, free_state, patchify_video
from braid.diffusion.positions import VideoGrid, video_positions
from braid.errors import InvalidRequest

GRID = VideoGrid(3, 2, 2)
FRAME_RATE = 24.0


def clip(frames: int = 3, height: int = 2, width: int = 2, value: float = 1.0) -> torch.Tensor:
    return torch.full((1, 4, frames, height, width), value)


def state() -> LatentState:
    return free_state(patchify_video(clip(value=0.5)), video_positions(GRID, FRAME_RATE))


def test_held_latent_frames_are_kept_by_their_strength_and_start_as_they_were() -> None:
    held = hold_latent_frames(state(), clip(1), GRID, latent_index=1, strength=0.75)
    assert held.denoise_mask[0, :, 0].tolist() == [1] * 4 + [0.25] * 4 + [1] * 4
    assert held.clean_latents[0, :, 0].tolist() == [0.5] * 4 + [1] * 4 + [0.5] * 4
    assert torch.equal(held.latents, state().latents)


def test_a_later_picture_overwrites_an_earlier_one() -> None:
    held = hold_latent_frames(hold_latent_frames(state(), clip(2), GRID), clip(1, value=2.0), GRID, strength=0.5)
    assert held.clean_latents[0, :, 0].tolist() == [2] * 4 + [1] * 4 + [0.5] * 4
    assert held.denoise_mask[0, :, 0].tolist() == [0.5] * 4 + [0] * 4 + [1] * 4


def test_conditioning_writes_to_nothing() -> None:
    before = state()
    hold_latent_frames(before, clip(1), GRID)
    hold_masked(before, before.latents + 1, torch.ones(1, 12))
    append_keyframes(before, clip(1), GRID, frame_index=0, frame_rate=FRAME_RATE)
    freeze(before)
    fresh = state()
    assert torch.equal(before.clean_latents, fresh.clean_latents)
    assert torch.equal(before.denoise_mask, fresh.denoise_mask)
    assert torch.equal(before.positions, fresh.positions)


def test_a_keyframe_covers_one_frame_wherever_it_lies() -> None:
    for index in (0, 8, 100):
        appended = append_keyframes(state(), clip(1), GRID, frame_index=index, frame_rate=FRAME_RATE)
        times = appended.positions[0, 0, 12:] * FRAME_RATE
        assert torch.allclose(times, torch.tensor([float(index), index + 1.0]).expand(4, 2))
        assert appended.latents[0, 12:].abs().max() == 0
        assert appended.clean_latents[0, 12:].unique().tolist() == [1]


def test_a_clip_that_is_not_at_the_start_has_only_whole_groups_of_frames() -> None:
    appended = append_keyframes(state(), clip(2), GRID, frame_index=16, frame_rate=1.0)
    assert appended.positions[0, 0, 12::4].tolist() == [[16, 24], [24, 32]]
    at_start = append_keyframes(state(), clip(2), GRID, frame_index=0, frame_rate=1.0)
    assert at_start.positions[0, 0, 12::4].tolist() == [[0, 1], [1, 9]]


def test_a_reference_covers_the_film_whatever_its_own_size_and_rate() -> None:
    appended = append_reference(
        state(), clip(2, 1, 1), GRID, frame_rate=1.0, downscale_factor=2, temporal_scale_factor=2
    )
    assert appended.positions[0, 0, 12:].tolist() == [[0, 1], [1, 17]]
    assert appended.positions[0, 1, 12:].tolist() == [[0, 64], [0, 64]]
    assert appended.attention_mask is None


def test_with_a_mask_references_do_not_see_each_other_and_the_film_sees_them_by_strength() -> None:
    first = append_keyframes(state(), clip(1), GRID, frame_index=8, frame_rate=FRAME_RATE)
    assert first.attention_mask is None
    second = append_reference(first, clip(1, 1, 1), GRID, frame_rate=FRAME_RATE, attention_strength=0.5)
    third = append_keyframes(second, clip(1), GRID, frame_index=9, frame_rate=FRAME_RATE)
    mask = third.attention_mask
    assert mask is not None
    assert torch.equal(mask, mask.transpose(1, 2))
    film, key, ref, last = 0, 12, 16, 17
    assert [float(mask[0, film, one]) for one in (film, key, ref, last)] == [1, 1, 0.5, 1]
    assert [float(mask[0, ref, one]) for one in (film, key, ref, last)] == [0.5, 0, 1, 0]
    assert [float(mask[0, last, one]) for one in (film, key, ref, last)] == [1, 0, 0, 1]
    assert float(mask[0, key, last]) == 0


def test_each_reference_token_may_have_its_own_attention_strength() -> None:
    strength = torch.tensor([[0.1, 0.2]])
    appended = append_reference(state(), clip(2, 1, 1), GRID, frame_rate=1.0, attention_strength=strength)
    assert appended.attention_mask is not None
    assert torch.equal(appended.attention_mask[0, 3, 12:], strength[0])
    assert torch.equal(appended.attention_mask[0, 12:, 3], strength[0])


def test_tokens_strengths_are_means_over_their_pixels_with_the_first_frame_alone() -> None:
    mask = torch.zeros(1, 9, 4, 4)
    mask[:, 0, :, :2] = 1.0
    mask[:, 1:5, :2] = 1.0
    strengths = attention_strength_of_tokens(mask, VideoGrid(2, 2, 2))
    assert strengths.tolist() == [[1, 0, 1, 0, 0.5, 0.5, 0, 0]]


def test_a_reference_of_one_frame_takes_its_strengths_from_one_picture() -> None:
    assert attention_strength_of_tokens(torch.ones(1, 1, 4, 4), VideoGrid(1, 2, 2)).tolist() == [[1, 1, 1, 1]]


def test_a_mask_holds_what_it_marks_and_leaves_the_rest_as_it_was() -> None:
    held = hold_masked(state(), torch.full((1, 12, 4), 3.0), torch.eye(12)[:1], strength=0.75)
    assert held.denoise_mask[0, :, 0].tolist() == [0.25] + [1] * 11
    assert held.clean_latents[0, :, 0].tolist() == [3] + [0.5] * 11


def test_a_retake_frees_every_token_that_its_window_touches() -> None:
    again = retake(state(), 2 / FRAME_RATE, 3 / FRAME_RATE)
    assert again.denoise_mask[0, ::4, 0].tolist() == [0, 1, 0]
    assert torch.equal(again.clean_latents, state().clean_latents)


@pytest.mark.parametrize(("start_s", "end_s", "message"), [(0.5, 0.5, "empty"), (9.0, 10.0, "outside")])
def test_a_retake_of_nothing_is_refused(start_s: float, end_s: float, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        retake(state(), start_s, end_s)


def test_a_frozen_stream_is_all_held_and_says_so() -> None:
    frozen = freeze(state())
    assert frozen.is_frozen
    assert frozen.denoise_mask.abs().max() == 0
    assert torch.equal(frozen.clean_latents, state().latents)


def test_appending_to_a_batch_gives_each_sample_its_own_mask() -> None:
    tokens = torch.zeros(2, 12, 4)
    both = free_state(tokens, video_positions(GRID, FRAME_RATE).expand(2, -1, -1, -1))
    positions = torch.zeros(1, 3, 2, 2)
    strength = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    appended = append_tokens(both, torch.ones(2, 2, 4), positions, num_generated=12, attention_strength=strength)
    assert appended.attention_mask is not None
    assert torch.equal(appended.attention_mask[:, 0, 12:], strength)
    assert appended.positions.shape == (2, 3, 14, 2)


def test_latents_of_another_size_are_refused_with_both() -> None:
    with pytest.raises(InvalidRequest, match=r"1x2.*2x2"):
        hold_latent_frames(state(), clip(1, 1, 2), GRID)


def test_frames_beyond_the_clip_are_refused_with_what_would_be_right() -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 1"):
        hold_latent_frames(state(), clip(2), GRID, latent_index=2)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_beyond_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(InvalidRequest, match="strength="):
        append_keyframes(state(), clip(1), GRID, frame_index=0, frame_rate=FRAME_RATE, strength=strength)


def test_an_attention_video_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"8 frames.*9"):
        attention_strength_of_tokens(torch.zeros(1, 8, 4, 4), VideoGrid(2, 2, 2))
