"""Volumes in regions: every layer gives a region what it gives the whole, and regions are small."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from braid.diffusion.models.ltx2 import tiling, volumes
from braid.diffusion.models.ltx2.modules import Pieces, finish
from braid.diffusion.models.ltx2.video_vae import VideoDecoder, VideoEncoder, frames_in_pieces
from braid.diffusion.models.ltx2.volumes import Convolution, Region, Time, regions
from braid.tests.diffusion.models.ltx2.toy_autoencoders import VIDEO, section, video_weights

PADDINGS = ("zeros", "reflect", "replicate", "circular")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def costs(pieces: Pieces[Any]) -> list[int]:
    return list(pieces)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("time", get_args(Time))
@pytest.mark.parametrize("num_frames", [1, 5])
def test_a_layer_agrees_with_its_module(padding: str, time: Time, num_frames: int) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d

    module: Any = LTX2VideoCausalConv3d(4, 6, kernel_size=3, spatial_padding_mode=padding)
    x = random(1, 4, num_frames, 6, 7)
    layer = Convolution(module.conv.weight, module.conv.bias, time, padding, torch.tanh)
    with torch.inference_mode():
        if time == "silent":
            beside = torch.nn.functional.pad(torch.tanh(x), (0, 0, 0, 0, 1, 1))
            expected = module.conv(beside)
        else:
            expected = module(torch.tanh(x), causal=time == "causal")
    torch.testing.assert_close(finish(layer.run(x)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("time", get_args(Time))
@pytest.mark.parametrize("max_rows", [1, 2, 4, 6, 12, 18])
def test_a_region_of_a_layer_is_that_region_of_the_whole(
    padding: str, time: Time, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(1, 4, 5, 6, 7)
    layer = Convolution(random(3, 4, 3, 3, 3, seed=1), random(3, seed=2), time, padding, torch.tanh)
    whole = finish(layer.run(x))
    monkeypatch.setitem(volumes.MAX_REGION_MACS, "cpu", max_rows * layer.macs_a_row(x))
    pieces = costs(layer.run(x))
    assert len(pieces) > 1
    is_cut_in_rows = max_rows < 6 and padding != "circular"
    assert max(pieces) <= layer.macs_a_row(x) * (max_rows if is_cut_in_rows else max(6, max_rows))
    assert sum(pieces) == layer.macs_a_row(x) * 5 * 6
    torch.testing.assert_close(finish(layer.run(x)), whole, rtol=0, atol=1e-5)


def test_regions_cover_everything_and_keep_together_what_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(volumes.MAX_REGION_MACS, "cpu", 50)
    x = torch.empty(1, 1, 8, 6, 1)
    for macs_a_row, expected in ((1, 1), (5, 8), (9, 12), (100, 12)):
        found = regions(x, macs_a_row, frame_step=2, row_step=2)
        assert len(found) == expected
        seen = torch.zeros(8, 6)
        for region in found:
            assert region.frames.start % 2 == region.rows.start % 2 == 0
            seen[region.frames, region.rows] += 1
        assert torch.equal(seen, torch.ones_like(seen))
    assert regions(x.to("meta"), 100) == [Region(slice(0, 8), slice(0, 6))]


CONFIGS: dict[str, dict[str, Any]] = {
    "zeros": {**VIDEO, "spatial_padding_mode": "zeros"},
    "reflect": {**VIDEO, "spatial_padding_mode": "reflect", "causal_decoder": True},
    "timestep": {**VIDEO, "timestep_conditioning": True},
    "noise": {
        **VIDEO,
        "decoder_blocks": [["res_x", {"num_layers": 2, "inject_noise": True}], *VIDEO["decoder_blocks"][1:]],
    },
    "time": {
        **VIDEO,
        "encoder_blocks": [
            ["compress_time_res", {"multiplier": 2}],
            ["compress_space_res", {"multiplier": 2}],
            ["compress_space_res", {"multiplier": 1}],
        ],
    },
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_macs", [300_000, 20_000])
def test_a_clip_in_small_regions_is_near_that_in_whole_layers(
    name: str, max_macs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, weights = CONFIGS[name], video_weights(CONFIGS[name])
    decoder, encoder = VideoDecoder(section("vae", config), weights), VideoEncoder(section("vae", config), weights)
    latents, frames = random(1, 4, 3, 2, 3), random(1, 3, 5, 16, 24, seed=1).clamp(-1, 1)

    def results() -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        return [finish(decoder.decode(latents, generator=generator)), encoder.encode(frames)]

    whole = results()
    monkeypatch.setitem(volumes.MAX_REGION_MACS, "cpu", max_macs)
    for one, cut in zip(whole, results(), strict=True):
        assert one.shape == cut.shape
        torch.testing.assert_close(cut, one, rtol=0, atol=1e-5)
    assert len(costs(encoder.pieces(frames))) > 10


def test_small_regions_of_jobs_that_take_turns_have_the_bits_they_have_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(volumes.MAX_REGION_MACS, "cpu", 20_000)
    decoder = VideoDecoder(section("vae", VIDEO), video_weights(VIDEO))
    latents, others = random(1, 4, 3, 2, 3), random(1, 4, 3, 2, 3, seed=1)
    alone = finish(decoder.decode(latents))
    first, second = decoder.decode(latents), decoder.decode(others)
    for _ in range(100):
        next(first)
        next(second)
    assert torch.equal(finish(first), alone)
    assert torch.equal(finish(second), finish(decoder.decode(others)))


def test_frames_made_bytes_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random(1, 3, 7, 8, 8)
    whole = finish(frames_in_pieces(pixels))
    monkeypatch.setattr(tiling, "VALUES_A_PIECE", 400)
    assert len(costs(frames_in_pieces(pixels))) == 4
    assert torch.equal(finish(frames_in_pieces(pixels)), whole)
