"""What is shipped opens as a checkpoint, and its 8 bits are close to what was trained."""

from __future__ import annotations

import torch

from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.parts import Part
from braid.tests.training.denoiser.conftest import SHAPE
from braid.training.denoiser.initial_weights import initial_weights
from braid.training.denoiser.shipping import presets, quantised, write_checkpoint


def test_the_shipped_file_opens_with_its_text_encoder_and_presets(autoencoders, tmp_path):
    weights = initial_weights(SHAPE, torch.Generator().manual_seed(0))
    path = tmp_path / "tiny.safetensors"
    write_checkpoint(path, weights, SHAPE, autoencoders, presets())
    checkpoint = open_ltx2(path, upsampler=autoencoders / "upsampler.safetensors")
    assert set(Part) == set(checkpoint.parts)
    assert checkpoint.text_encoder().layers == SHAPE.text.layers
    assert checkpoint.presets["two_stage"].height == 128 and checkpoint.presets["one_stage"].negative_prompt == ""
    loaded = checkpoint.weights(Part.TRANSFORMER, torch.float32)
    loaded |= checkpoint.weights(Part.TEXT_PROJECTION, torch.float32)
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert float((loaded[name] - value).norm()) <= 0.012 * float(value.norm()), name


def test_a_row_is_off_by_half_a_step_at_most():
    matrix = torch.randn(7, 33, generator=torch.Generator().manual_seed(2))
    integers, scales = quantised(matrix)
    steps = scales.float()[:, None]
    assert bool(((integers * steps - matrix).abs() <= 0.51 * steps + 0.005 * matrix.abs()).all())
