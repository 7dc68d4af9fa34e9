"""What is shipped opens as a checkpoint and films by its name; its 8 bits are close to what was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from braid import DiffGenerator, video_names
from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.parts import Part
from braid.errors import ModelNotFound
from braid.tests.tiny_models import write_gguf
from braid.tests.training.denoiser.conftest import SHAPE
from braid.training.denoiser import shipping
from braid.training.denoiser.adapters import initial_factors, write_adapter
from braid.training.denoiser.configs import TextLayers
from braid.training.denoiser.initial_weights import initial_weights
from braid.training.denoiser.shards import write_shards
from braid.training.denoiser.shipping import budget, presets, quantised, ship, write_checkpoint

OPTIONS = {"device": "cpu", "num_threads": 1, "memory_budget_bytes": 1 << 30}


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


@pytest.fixture(scope="module")
def shipped(autoencoders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that nobody trained, with adapters that change something."""
    folder = tmp_path_factory.mktemp("shipped")
    language = write_gguf(folder / "language.gguf", "llama")
    text = TextLayers(str(language), hidden_size=64, num_layers=3, layers=(0, 2, 3), max_length=128)
    shape = dataclasses.replace(SHAPE, text=text)
    generator = torch.Generator().manual_seed(0)
    weights = initial_weights(shape, generator)
    weights["proj_out.weight"] = torch.randn(weights["proj_out.weight"].shape, generator=generator) / 5
    write_shards(folder, weights, shape, 1)
    (folder / "adapters").mkdir()
    for name in ("distilled", "style-night"):
        factors = initial_factors(weights, 2, generator)
        factors = {key: torch.randn(value.shape, generator=generator) / 8 for key, value in factors.items()}
        write_adapter(folder / "adapters" / f"{name}-lora.safetensors", factors, {})
    ship(folder / "out", folder, autoencoders, folder / "adapters")
    return folder / "out"


def test_an_untrained_model_is_shipped_loaded_by_its_name_and_films(shipped, monkeypatch, tmp_path):
    monkeypatch.setattr(video_names, "EMBEDDED", shipped)
    with DiffGenerator.from_pretrained(loras=[("night", 0.5)], **OPTIONS) as generator:
        assert generator.adapters == ("distilled-lora", "night")
        small = {"height": 32, "width": 32, "num_frames": 9, "seed": 1}
        film = generator.generate("a red disc", path=tmp_path / "clip.mp4", pipeline="distilled", **small)
        small["pipeline"] = "distilled"
        plain = generator.generate("a red disc", distilled_adapter=("distilled-lora", 0.0), **small)
        unstyled = generator.generate("a red disc", adapters=[("night", 0.0)], **small)
    assert film.frames.shape == (9, 32, 32, 3) and film.audio is not None
    assert (tmp_path / "clip.mp4").stat().st_size > 500
    assert not np.array_equal(film.latents.video, plain.latents.video)
    assert not np.array_equal(film.latents.video, unstyled.latents.video)


def test_a_folder_is_as_good_as_the_name(shipped):
    with DiffGenerator.from_pretrained(shipped, **OPTIONS) as generator:
        assert generator.model.facts.has_upsampler and generator.adapters == ("distilled-lora",)
        assert generator.model.facts.presets["distilled"].distilled_strengths == (1.0, 1.0)


def test_while_there_are_no_weights_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(video_names, "EMBEDDED", tmp_path)
    with pytest.raises(ModelNotFound, match=r"braid-tiny is not part.*give the safetensors.*docs/braid-tiny\.md"):
        DiffGenerator.from_pretrained()


def test_the_budget_counts_every_byte_but_headers_and_too_many_are_refused(shipped, autoencoders, monkeypatch):
    sizes = {component: size for component, _, size in budget(shipped)}
    total = sum(path.stat().st_size for path in shipped.iterdir())
    assert 0.5 * total < sum(sizes.values()) < total
    assert {"blocks", "connectors", "video autoencoder", "vocoder", "upsampler", "distilled-lora"} <= sizes.keys()
    monkeypatch.setattr(shipping, "MOST_BYTES", total - 1)
    with pytest.raises(ValueError, match="are more than"):
        ship(shipped, shipped.parent, autoencoders)
