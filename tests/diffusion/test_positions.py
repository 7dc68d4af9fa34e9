"""Positions: a first frame that is short, seconds by frame rate, pixels by the checkpoint's factors."""

import pytest
import torch

from braid.diffusion.positions import VideoGrid, audio_positions, video_frame_bounds, video_positions


def test_the_first_latent_frame_is_one_frame_long_and_all_others_are_whole_groups() -> None:
    frames = video_frame_bounds(VideoGrid(3, 1, 1))[0, 0].tolist()
    assert frames == [[0, 1], [1, 9], [9, 17]]


def test_without_a_causal_encoder_all_latent_frames_are_whole_groups() -> None:
    frames = video_frame_bounds(VideoGrid(3, 1, 1), is_causal=False)[0, 0].tolist()
    assert frames == [[0, 8], [8, 16], [16, 24]]


def test_factors_are_those_of_the_grid() -> None:
    positions = video_positions(VideoGrid(2, 2, 3, time_factor=4, height_factor=16, width_factor=8), 10.0)
    assert positions.shape == (1, 3, 12, 2)
    last = positions[0, :, 11].flatten().tolist()
    assert last == pytest.approx([0.1, 0.5, 16, 32, 16, 24])


def test_time_is_in_seconds_of_any_frame_rate() -> None:
    positions = video_positions(VideoGrid(2, 1, 1), 23.976)
    assert positions[0, 0, 1].tolist() == pytest.approx([1 / 23.976, 9 / 23.976])


def test_the_first_audio_token_is_one_mel_frame_long() -> None:
    assert torch.allclose(audio_positions(3)[0, 0], torch.tensor([[0, 0.01], [0.01, 0.05], [0.05, 0.09]]))


def test_no_tokens_have_no_positions() -> None:
    assert audio_positions(0).shape == (1, 1, 0, 2)
    assert video_positions(VideoGrid(0, 2, 2), 24.0).shape == (1, 3, 0, 2)
