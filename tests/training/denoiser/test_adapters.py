"""Adapters begin as nothing, learn, and are what the adapter store reads."""

from __future__ import annotations

import pytest
import torch

from braid.diffusion.schedules import DISTILLED_SIGMAS
from braid.lora.formats import open_lora
from braid.tests.training.denoiser.conftest import CPU, SHAPE
from braid.training.autoencoders.run import Log
from braid.training.denoiser.adapters import UP, adapted, adapted_layers, initial_factors, write_adapter
from braid.training.denoiser.batches import BatchKind
from braid.training.denoiser.distillation import Distillation, next_level
from braid.training.denoiser.initial_weights import initial_weights
from braid.training.denoiser.shards import Saved
from braid.training.denoiser.style import StyleTraining


def test_an_adapter_begins_as_nothing_and_passes_gradients_to_its_factors():
    generator = torch.Generator().manual_seed(0)
    weights = initial_weights(SHAPE, generator)
    factors = {name: value.requires_grad_() for name, value in initial_factors(weights, 3, generator).items()}
    result = adapted(weights, factors)
    assert result.keys() == weights.keys()
    assert all(torch.equal(result[name], weights[name]) for name in weights)
    layer = adapted_layers(weights)[0]
    result[f"{layer}.weight"].square().sum().backward()
    assert float(factors[f"{layer}.{UP}"].grad.norm()) > 0


def test_all_matrices_of_blocks_are_adapted_and_nothing_else():
    layers = adapted_layers(initial_weights(SHAPE, torch.Generator()))
    assert len(layers) == 2 * (2 * (4 + 4 + 2) + 2 * 4)
    assert not any("gate" in layer or "connector" in layer or "adaln" in layer for layer in layers)


@pytest.fixture
def saved():
    return Saved(initial_weights(SHAPE, torch.Generator().manual_seed(0)), SHAPE, 1)


def test_the_distilled_adapter_learns_the_guided_walk(saved, pools, language_model, tmp_path):
    kind = BatchKind("small", 16, 17, 6, 1.0)
    log = Log(tmp_path / "log.jsonl")
    noisy = {n: v + 0.05 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
             for n, v in saved.weights.items()}  # fmt: skip
    run = Distillation(
        Saved(noisy, SHAPE, 1), language_model, pools, CPU, log, kinds=(kind,), rank=4, learning_rate=0.1,
        dtype=torch.float32,
    )  # fmt: skip
    batch = run.batches.draw(kind)
    assert {round(float(level), 5) for level in batch.streams.video.sigma} <= {
        round(level, 5) for level in (*DISTILLED_SIGMAS,)
    }
    before = float(run.loss(batch).detach())
    for _ in range(12):
        run.factors.step(run.loss(batch), 0.0)
    assert float(run.loss(batch).detach()) < 0.97 * before


def test_levels_follow_one_another_to_the_end():
    sigma = torch.tensor([1.0, 0.99, 0.909375, 0.5, 0.421875, 0.0])
    assert next_level(sigma).tolist() == pytest.approx([0.99375, 0.9875, 0.725, 0.421875, 0.0, 0.0])


def test_a_style_adapter_goes_down_its_loss_and_leaves_the_base_alone(saved, pools, language_model, tmp_path):
    kind = BatchKind("small", 16, 17, 6, 1.0)
    run = StyleTraining(
        saved, language_model, pools, CPU, Log(tmp_path / "log.jsonl"), kinds=(kind,), rank=4, learning_rate=1e-2,
        dtype=torch.float32,
    )  # fmt: skip
    before = {name: value.clone() for name, value in run._base.items()}
    batch = run.batches.draw(kind)
    for _ in range(3):
        run.factors.step(run.loss(batch), 0.0)
    assert all(torch.equal(before[name], value) for name, value in run._base.items())


def test_what_is_written_is_what_the_adapter_store_reads(tmp_path):
    factors = initial_factors(initial_weights(SHAPE, torch.Generator()), 2, torch.Generator().manual_seed(0))
    write_adapter(tmp_path / "a.safetensors", factors, {"rank": 2})
    file = open_lora(tmp_path / "a.safetensors")
    assert len(file.modules) == len(factors) // 2
