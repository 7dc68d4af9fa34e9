"""Predictions of memory, against what a network really takes."""

from __future__ import annotations

import torch
from torch.nn import functional

from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.video_vae import VideoDecoder, VideoEncoder
from braid.tests.diffusion.models.ltx2.toy_autoencoders import VIDEO, section, video_weights


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_what_is_freed_is_not_counted_twice_and_views_are_free() -> None:
    def run() -> torch.Tensor:
        x = on_meta(100) + 1  # 400 bytes, and 400 of what it is made of
        x = x + 1
        x = x.view(10, 10).transpose(0, 1)
        return x * 2

    assert peak_bytes(run) == 800


def test_the_peak_is_where_most_is_alive() -> None:
    def run() -> torch.Tensor:
        wide = on_meta(10).expand(50, 10) + 1  # 2,000
        return wide.sum() + on_meta(1)

    assert 2000 <= peak_bytes(run) < 2200


def test_convolutions_need_room_for_a_second_copy() -> None:
    x, weight = on_meta(1, 4, 8, 8), on_meta(4, 4, 1, 1)
    assert peak_bytes(lambda: functional.conv2d(x, weight)) == 3 * x.nbytes + weight.nbytes


def test_predictions_grow_with_the_clip_and_with_the_dtype() -> None:
    weights = video_weights(VIDEO)
    decoder = VideoDecoder(section("vae", VIDEO), weights)
    small = decoder.predicted_bytes((2, 4, 4), torch.float32)
    assert decoder.predicted_bytes((2, 4, 4), torch.bfloat16) == small // 2
    assert 1.9 * small < decoder.predicted_bytes((2, 4, 8), torch.float32) < 2.1 * small
    # At least the pixels themselves, twice.
    assert small > 2 * 3 * 3 * 32 * 32 * 4
    encoder = VideoEncoder(section("vae", VIDEO), weights)
    assert encoder.predicted_bytes(3, 64, 64, torch.float32) > 2 * 3 * 3 * 64 * 64 * 4
