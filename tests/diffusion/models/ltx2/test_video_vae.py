"""The video autoencoder: pieces are the whole bit for bit, options agree with diffusers, files are checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from braid.diffusion.models.ltx2.modules import Pieces, finish, with_prefix
from braid.diffusion.models.ltx2.tiling import TileSize, TileSizes, make_plan
from braid.diffusion.models.ltx2.video_geometry import VideoGeometry, read_video_geometry
from braid.diffusion.models.ltx2.video_network import read_video_config
from braid.diffusion.models.ltx2.video_vae import VideoDecoder, VideoEncoder, to_uint8_frames
from braid.errors import InvalidRequest, ModelFileError, UnsupportedModel
from braid.tests.diffusion.models.ltx2.toy_autoencoders import VIDEO, section, video_weights


def make_decoder(config: dict[str, Any] = VIDEO) -> VideoDecoder:
    return VideoDecoder(section("vae", config), video_weights(config))


def make_encoder(config: dict[str, Any] = VIDEO) -> VideoEncoder:
    return VideoEncoder(section("vae", config), video_weights(config))


def random_latents(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(seed))


def in_turns(*all_pieces: Pieces[Any]) -> list[Any]:
    """Advance several jobs by one piece each, until all are done."""
    results: dict[int, Any] = {}
    while len(results) < len(all_pieces):
        for index, pieces in enumerate(all_pieces):
            if index not in results:
                try:
                    assert next(pieces) > 0
                except StopIteration as end:
                    results[index] = end.value
    return [results[index] for index in range(len(all_pieces))]


def test_jobs_that_take_turns_get_the_bits_they_get_alone() -> None:
    decoder, encoder = make_decoder(), make_encoder()
    first, second = random_latents(2, 3, 2), random_latents(3, 2, 2, seed=1)
    frames = torch.rand(1, 3, 3, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    alone = [finish(decoder.decode(first)), finish(decoder.decode(second)), encoder.encode(frames)]
    together = in_turns(decoder.decode(first), decoder.decode(second), encoder.pieces(frames))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_every_layer_is_a_piece_at_least() -> None:
    # First and last layer, three residual blocks of two, two that enlarge.
    assert len(list(make_decoder().decode(random_latents(1, 2, 2)))) == 10


def test_frames_streamed_group_by_group_are_those_of_one_decoder_that_never_stopped() -> None:
    sizes = TileSizes(TileSize(2, 1), TileSize(3, 1), TileSize(2, 1))
    latents = random_latents(5, 4, 3)
    plan = make_plan((5, 4, 3), sizes, time_factor=2, space_factor=8)

    def decode(*, is_restarted: bool) -> Tensor:
        chunks, carry = [], None
        decoder = make_decoder()
        for group in range(plan.num_groups):
            decoder = make_decoder() if is_restarted else decoder
            carry = None if carry is None else carry.clone()
            frames, carry = finish(decoder.decode_group(latents, plan, group, carry=carry))
            chunks.append(frames)
        return torch.cat(chunks, dim=2)

    streamed = decode(is_restarted=True)
    assert streamed.shape == (1, 3, 9, 32, 24)
    assert torch.equal(streamed, decode(is_restarted=False))


def test_tiled_decoding_is_near_untiled_decoding_and_not_the_same() -> None:
    latents = random_latents(6, 6, 6)
    sizes = TileSizes(TileSize(4, 2), TileSize(5, 3), TileSize(5, 3))
    factors = {"time_factor": 2, "space_factor": 8}
    decoder = make_decoder()
    whole = finish(decoder.decode(latents))
    carry, chunks = None, []
    plan = make_plan((6, 6, 6), sizes, **factors)
    for group in range(plan.num_groups):
        frames, carry = finish(decoder.decode_group(latents, plan, group, carry=carry))
        chunks.append(frames)
    difference = (torch.cat(chunks, dim=2) - whole).abs()
    assert 0 < difference.mean() < 0.2 * whole.abs().mean()


def test_a_batch_is_refused_because_its_bits_are_others() -> None:
    with pytest.raises(AssertionError, match="one clip"):
        finish(make_decoder().decode(random_latents(1, 2, 2).repeat(2, 1, 1, 1, 1)))


def test_weights_are_shared_and_never_written_to() -> None:
    weights = video_weights(VIDEO)
    before = {key: tensor.clone() for key, tensor in weights.items()}
    decoder = VideoDecoder(section("vae", VIDEO), weights)
    finish(decoder.decode(random_latents(2, 2, 2)))
    parameters = dict(decoder._network.named_parameters())
    assert parameters["conv_in.conv.weight"].data_ptr() == weights["decoder.conv_in.conv.weight"].data_ptr()
    assert all(torch.equal(weights[key], before[key]) for key in before)


def test_a_decoder_that_knows_a_noise_level_agrees_with_diffusers() -> None:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoDecoder3d

    config = {
        "latent_channels": 4,
        "decoder_base_channels": 8,
        "decoder_blocks": [
            ["res_x", {"num_layers": 1}],
            ["compress_all", {"multiplier": 2, "residual": True}],
            ["res_x", {"num_layers": 2}],
        ],
    }
    weights = video_weights({**config, "encoder_blocks": [["compress_all_res", {"multiplier": 2}]]})
    theirs = LTX2VideoDecoder3d(
        in_channels=4,
        block_out_channels=(16,),
        spatio_temporal_scaling=(True,),
        layers_per_block=(1, 2),
        upsample_type=("spatiotemporal",),
        inject_noise=(False, False),
        timestep_conditioning=True,
        upsample_residual=(True,),
        upsample_factor=(2,),
    )
    renamed = {}
    for key, tensor in with_prefix(weights, "decoder.").items():
        key = key.replace("last_time_embedder", "time_embedder").replace("last_scale_shift_table", "scale_shift_table")
        for official, rung in (("up_blocks.0.", "mid_block."), ("up_blocks.2.", "up_blocks.0.")):
            if key.startswith(official):
                key = key.replace(official, rung).replace("res_blocks", "resnets")
                break
        else:
            key = key.replace("up_blocks.1.conv", "up_blocks.0.upsamplers.0.conv")
        renamed[key] = tensor
    # Here the middle has no embedder of its own timestep but those of its rung.
    theirs.load_state_dict(renamed)
    latents, noise = random_latents(2, 2, 3), random_latents(2, 2, 3, seed=5)
    decoder = VideoDecoder(section("vae", config), weights)
    mixed = 0.025 * noise + 0.975 * latents
    mean, std = (weights[f"per_channel_statistics.{name}"] for name in ("mean-of-means", "std-of-means"))
    raw = mixed * std.view(1, -1, 1, 1, 1) + mean.view(1, -1, 1, 1, 1)
    with torch.inference_mode():
        expected = theirs.eval()(raw, torch.tensor([0.05]), causal=False)
    torch.testing.assert_close(finish(decoder.decode(latents, noise=noise)), expected, rtol=0, atol=1e-6)
    assert decoder.needs_noise
    drawn = [finish(decoder.decode(latents, generator=torch.Generator().manual_seed(seed))) for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_noisy_clip_goes_on_from_its_middle() -> None:
    config = {**VIDEO, "timestep_conditioning": True}
    decoder = make_decoder(config)
    latents = random_latents(5, 2, 2)
    plan = make_plan((5, 2, 2), TileSizes(*[TileSize(2, 1)] * 3), time_factor=2, space_factor=8)
    generator = torch.Generator().manual_seed(7)
    results = []
    carry = None
    for group in range(plan.num_groups):
        results.append(finish(decoder.decode_group(latents, plan, group, carry=carry, generator=generator)))
        carry = results[-1][1]
    later = torch.Generator().manual_seed(7)
    decoder.skip_noise(plan, 2, later)
    again, _ = finish(decoder.decode_group(latents, plan, 2, carry=results[1][1], generator=later))
    assert torch.equal(again, results[2][0])


def test_injected_noise_comes_from_the_generator() -> None:
    blocks = [["res_x", {"num_layers": 1, "inject_noise": True}], *VIDEO["decoder_blocks"][1:]]
    decoder = make_decoder({**VIDEO, "decoder_blocks": blocks})
    first, same, other = (
        finish(decoder.decode(random_latents(1, 2, 2), generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_missing_key_means_a_timestep_and_one_padding_mode_means_both() -> None:
    config = {key: value for key, value in VIDEO.items() if key != "timestep_conditioning"}
    read = read_video_config(section("vae", config))
    assert read.has_timestep
    assert (read.encoder_padding, read.decoder_padding) == ("zeros", "reflect")
    config |= {"spatial_padding_mode": "replicate", "encoder_spatial_padding_mode": "reflect"}
    read = read_video_config(section("vae", config))
    assert (read.encoder_padding, read.decoder_padding) == ("replicate", "replicate")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"norm_layer": "group_norm"}, "vae.norm_layer"),
        ({"latent_log_var": "none"}, "vae.latent_log_var"),
        ({"spatial_padding_mode": "mirror"}, "mirror"),
        ({"encoder_blocks": [["compress_all", {"multiplier": 2}]]}, "compress_.*_res"),
        ({"decoder_blocks": [["attn_res_x", {}]]}, "attn_res_x"),
    ],
)
def test_an_option_that_we_do_not_have_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read_video_config(section("vae", {**VIDEO, **change}))


def test_every_tensor_that_does_not_fit_is_named() -> None:
    weights = video_weights(VIDEO)
    del weights["decoder.conv_in.conv.bias"]
    weights["decoder.extra"] = torch.zeros(1)
    weights["decoder.conv_out.conv.bias"] = torch.zeros(5)
    with pytest.raises(ModelFileError) as raised:
        VideoDecoder(section("vae", VIDEO), weights)
    for part in ("missing conv_in.conv.bias", "unexpected extra (1,)", "conv_out.conv.bias is (5,) and must be (12,)"):
        assert part in raised.value.message


def test_factors_follow_from_the_ladders_and_must_agree() -> None:
    assert read_video_geometry(section("vae", VIDEO)) == VideoGeometry(2, 8, 4)
    encoder = [*VIDEO["encoder_blocks"], ["compress_time_res", {"multiplier": 1}]]
    with pytest.raises(ModelFileError, match="encoder_blocks and decoder_blocks"):
        read_video_geometry(section("vae", {**VIDEO, "encoder_blocks": encoder}))


def test_sizes_without_a_latent_are_refused_with_the_nearest_right_ones() -> None:
    geometry = VideoGeometry()
    geometry.check(121, 1088, 1920)
    assert [geometry.whole_frames(count) for count in (1, 8, 9, 16)] == [1, 1, 9, 9]
    with pytest.raises(InvalidRequest, match=r"num_frames=120 must be 8k\+1; the nearest are 113 and 121"):
        geometry.check(120, 64, 64)
    with pytest.raises(InvalidRequest, match=r"num_frames=0 must .* nearest are 1 and 9"):
        geometry.check(0, 64, 64)
    with pytest.raises(InvalidRequest, match="width=720 must be a multiple of 64; the nearest are 704 and 768"):
        geometry.check(121, 1088, 720, multiple=64)
    with pytest.raises(InvalidRequest, match="height=20 must be a multiple of 32; the nearest are 32 and 64"):
        geometry.check(121, 20, 64)


def test_frames_are_clamped_and_rounded_to_bytes() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 1, 6).expand(1, 3, 2, 1, 6)
    frames = to_uint8_frames(pixels)
    assert frames.shape == (2, 1, 6, 3)
    assert frames[1, 0, :, 2].tolist() == [0, 0, 128, 191, 255, 255]
