"""Every network is built from what a checkpoint gives for its part, in both forms of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.diffusion.models.ltx2.audio_vae import AudioDecoder, AudioEncoder
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint, open_ltx2
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.statistics import read_statistics
from braid.diffusion.models.ltx2.text_projection import TextProjection
from braid.diffusion.models.ltx2.transformer import LTX2Transformer
from braid.diffusion.models.ltx2.upsampler import LatentUpsampler
from braid.diffusion.models.ltx2.video_vae import VideoDecoder, VideoEncoder
from braid.diffusion.models.ltx2.vocoder import Vocoder
from braid.tests import tiny_ltx2

NETWORKS = {
    Part.TEXT_PROJECTION: TextProjection, Part.VIDEO_ENCODER: VideoEncoder, Part.VIDEO_DECODER: VideoDecoder,
    Part.AUDIO_ENCODER: AudioEncoder, Part.AUDIO_DECODER: AudioDecoder, Part.VOCODER: Vocoder,
}  # fmt: skip


@pytest.fixture(params=["2.0", "2.3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["file", "folder"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, version: str) -> LTX2Checkpoint:
    upsampler = tiny_ltx2.write_upsampler(tmp_path / "upsampler.safetensors")
    if request.param == "folder":
        return open_ltx2(tiny_ltx2.write_diffusers_folder(tmp_path / "f", version=version), upsampler=upsampler)
    return open_ltx2(tiny_ltx2.write_checkpoint(tmp_path / "a.safetensors", version=version), upsampler=upsampler)


def test_every_network_is_built_from_its_part(checkpoint: LTX2Checkpoint) -> None:
    for part, network in NETWORKS.items():
        network(checkpoint.section(part), checkpoint.weights(part))
    LTX2Transformer(checkpoint.transformer_config(), checkpoint.weights(Part.TRANSFORMER))
    assert checkpoint.upsampler is not None
    statistics = read_statistics("the video autoencoder", checkpoint.weights(Part.VIDEO_DECODER), 8)
    LatentUpsampler(checkpoint.upsampler.section, checkpoint.upsampler.weights(), statistics)


def test_a_clip_goes_through_the_autoencoder_at_its_factors(checkpoint: LTX2Checkpoint) -> None:
    part = Part.VIDEO_ENCODER
    geometry = checkpoint.geometry
    encoder = VideoEncoder(checkpoint.section(part), checkpoint.weights(part))
    with torch.inference_mode():
        latents = encoder.encode(torch.rand(1, 3, 9, 64, 32) * 2 - 1)
    assert latents.shape == (
        1, geometry.video.num_channels, geometry.video.num_latent_frames(9), 64 // geometry.video.space_factor,
        32 // geometry.video.space_factor,
    )  # fmt: skip
    assert latents.isfinite().all()


def test_both_forms_of_a_model_decode_to_the_same_pixels(tmp_path: Path, version: str) -> None:
    """The config too is the same: paddings and residuals are no tensors that a layout could tell apart."""
    file = open_ltx2(tiny_ltx2.write_checkpoint(tmp_path / "a.safetensors", version=version))
    folder = open_ltx2(tiny_ltx2.write_diffusers_folder(tmp_path / "f", version=version))
    latents = torch.randn(1, 8, 2, 3, 3, generator=torch.Generator().manual_seed(3))
    pixels = []
    for checkpoint in (file, folder):
        part = Part.VIDEO_DECODER
        decoder = VideoDecoder(checkpoint.section(part), checkpoint.weights(part))
        with torch.inference_mode():
            pixels.append(finish(decoder.decode(latents)))
    assert torch.equal(*pixels)
