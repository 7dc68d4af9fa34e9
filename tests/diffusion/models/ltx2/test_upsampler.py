"""The latent upsampler: sizes, turns, and options."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.diffusion.models.ltx2.upsampler import LatentUpsampler
from braid.errors import InvalidRequest, ModelFileError, UnsupportedModel
from braid.tests.diffusion.models.ltx2.toy_autoencoders import random_weights, section

CONFIG: dict[str, Any] = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}
STATISTICS = LatentStatistics(torch.zeros(4), torch.ones(4))


def make_upsampler(**change: Any) -> LatentUpsampler:
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    config = {**CONFIG, **change}
    options = {"use_rational_resampler": config.get("rational_resampler", False)}
    options |= {"rational_spatial_scale": config["spatial_scale"]} if "spatial_scale" in config else {}
    names = ("in_channels", "mid_channels", "num_blocks_per_stage", "dims", "spatial_upsample", "temporal_upsample")
    network = LTX2LatentUpsamplerModel(**{name: config[name] for name in names if name in config}, **options)
    return LatentUpsampler(section("upsampler", config), random_weights(network), STATISTICS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, (3, 8, 4)),
        ({"dims": 2}, (3, 8, 4)),
        ({"rational_resampler": True, "spatial_scale": 1.5}, (3, 6, 3)),
        ({"rational_resampler": True, "spatial_scale": 0.75, "height": 4, "width": 4}, (3, 3, 3)),
        ({"spatial_upsample": False, "temporal_upsample": True}, (5, 4, 2)),
        ({"temporal_upsample": True}, (5, 8, 4)),
    ],
)
def test_the_result_has_the_announced_size(change: dict[str, Any], expected: tuple[int, int, int]) -> None:
    height, width = change.pop("height", 4), change.pop("width", 2)
    upsampler = make_upsampler(**change)
    latents = torch.randn(1, 4, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert upsampler.latent_shape(3, height, width) == expected
    assert upsampler(latents).shape[2:] == expected


def test_clips_that_take_turns_get_the_bits_they_get_alone() -> None:
    upsampler = make_upsampler()
    clips = [torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    first, second = (upsampler.pieces(clip) for clip in clips)
    results = []
    for _ in range(3):
        next(first)
        next(second)
    for pieces in (second, first):
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                results.append(end.value)
                break
    assert torch.equal(results[1], upsampler(clips[0]))
    assert torch.equal(results[0], upsampler(clips[1]))


def test_norms_of_one_value_give_their_bias_to_rounding_whatever_it_is() -> None:
    upsampler = make_upsampler()  # its first norm has as many groups as channels
    pixel = torch.randn(1, 4, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    result = upsampler(pixel)
    assert result.shape == (1, 4, 1, 2, 2)
    assert result.isfinite().all()
    torch.testing.assert_close(result, upsampler(3 * pixel), rtol=0, atol=1e-3)
    assert upsampler.predicted_bytes((1, 1, 1), torch.float32) > 0


def test_larger_clips_have_the_bits_of_the_official_network() -> None:
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    network = LTX2LatentUpsamplerModel(**CONFIG, use_rational_resampler=False)
    weights = random_weights(network)
    network.load_state_dict(weights)
    latents = torch.randn(1, 4, 2, 3, 5, generator=torch.Generator().manual_seed(1))
    upsampler = LatentUpsampler(section("upsampler", CONFIG), weights, STATISTICS)
    with torch.inference_mode():
        assert torch.equal(finish(upsampler.raw_pieces(latents)), network(latents))


def test_a_size_that_cannot_be_scaled_is_refused() -> None:
    upsampler = make_upsampler(rational_resampler=True, spatial_scale=1.5)
    assert upsampler.space_scale == Fraction(3, 2)
    with pytest.raises(InvalidRequest, match=r"height is 5 latents.*multiple of 2"):
        upsampler(torch.zeros(1, 4, 1, 5, 4))


def test_an_upsampler_of_other_latents_is_refused() -> None:
    with pytest.raises(ModelFileError, match="in_channels is 4; it must be 128"):
        LatentUpsampler(section("upsampler", CONFIG), {}, LatentStatistics(torch.zeros(128), torch.ones(128)))


@pytest.mark.parametrize(
    "change",
    [
        {"rational_resampler": True, "spatial_scale": 3.0},
        {"spatial_scale": 1.5},
        {"dims": 2, "temporal_upsample": True},
    ],
)
def test_an_option_of_upsampling_that_we_do_not_have_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel):
        LatentUpsampler(section("upsampler", {**CONFIG, **change}), {}, STATISTICS)
