"""Adapters begin as nothing, learn, and are what the adapter store reads."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open

from braid.diffusion.schedules import DISTILLED_SIGMAS, STAGE_2_SIGMAS
from braid.lora.formats import open_lora
from braid.tests.training.denoiser.conftest import CPU, SHAPE
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import StepBudget
from braid.training.denoiser import distillation, style
from braid.training.denoiser.adapter_training import AdapterTraining
from braid.training.denoiser.adapters import UP, adapted, adapted_layers, initial_factors, write_adapter
from braid.training.denoiser.batches import BatchKind
from braid.training.denoiser.distillation import next_level
from braid.training.denoiser.initial_weights import initial_weights
from braid.training.denoiser.latent_pools import PoolPlan
from braid.training.denoiser.shards import Saved, write_shards
from braid.training.world.vocabulary import STYLES


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
    """A model as if trained: at first the last layers are zero, and nothing would reach the factors."""
    generator = torch.Generator().manual_seed(1)
    first = initial_weights(SHAPE, torch.Generator().manual_seed(0))
    return Saved({n: v + 0.05 * torch.randn(v.shape, generator=generator) for n, v in first.items()}, SHAPE, 1)


KIND = BatchKind("small", 16, 17, 6, 1.0)


@pytest.fixture(params=[distillation, style], ids=["distillation", "style"])
def run(request, saved, material, tmp_path):
    lesson = dataclasses.replace(request.param.LESSON, kinds=(KIND,), rank=4, learning_rate=0.1)
    return AdapterTraining(lesson, saved, material, CPU, Log(tmp_path / "log.jsonl"), dtype=torch.float32)


def test_an_adapter_learns_its_lesson_and_leaves_the_model_alone(run):
    base = {name: value.clone() for name, value in run.model.base.items()}
    batch = run.batches.draw(KIND)
    before = float(run.loss(batch).detach())
    for _ in range(12):
        run.model.factors.step(run.loss(batch), 0.0)
    assert float(run.loss(batch).detach()) < 0.97 * before
    assert all(torch.equal(base[name], value) for name, value in run.model.base.items())


def test_a_lesson_says_now_and_then_how_far_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setattr("braid.training.denoiser.adapter_training.LOG_EVERY", 2)
    run.train(StepBudget(5))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["progress"]) for line in lines] == [(2, 0.2), (4, 0.6)]
    assert {line["stage"] for line in lines} <= {"distil", "style"}


def test_each_stage_is_taught_at_the_levels_of_its_few_steps():
    levels, _ = distillation.few_step_levels(dataclasses.replace(KIND, num_clips=300), 12, torch.Generator())
    few, _ = distillation.few_step_levels(dataclasses.replace(KIND, size=128, num_clips=300), 12, torch.Generator())
    assert sorted(set(levels.tolist()), reverse=True) == pytest.approx(DISTILLED_SIGMAS[:-1])
    assert sorted(set(few.tolist()), reverse=True) == pytest.approx(STAGE_2_SIGMAS[:-1])


def test_levels_follow_one_another_to_the_end():
    sigma = torch.tensor([1.0, 0.99, 0.909375, 0.5, 0.421875, 0.0])
    assert next_level(sigma).tolist() == pytest.approx([0.99375, 0.9875, 0.725, 0.421875, 0.0, 0.0])


@pytest.mark.parametrize(
    ("command", "arguments", "name"),
    [(distillation, [], "distilled-lora"), (style, [STYLES[0]], f"style-{STYLES[0]}-lora")],
    ids=["distillation", "style"],
)
def test_a_command_leaves_an_adapter_of_the_model_that_it_is_given(
    command, arguments, name, saved, captions, autoencoders, tmp_path, monkeypatch
):
    write_shards(tmp_path, saved.weights, SHAPE, 1)
    lesson = dataclasses.replace(command.LESSON, kinds=(KIND,), pools=(PoolPlan(16, 17, 3),), rank=3)
    monkeypatch.setattr(command, "LESSON", lesson)
    options = {"out": tmp_path / "out", "minutes": 0, "resume": tmp_path, "autoencoders": autoencoders}
    options |= {"captions": captions, "device": "cpu"}
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    monkeypatch.setattr("sys.argv", ["teach", *arguments, *words])
    command.main()
    file = open_lora(tmp_path / "out" / f"{name}.safetensors")
    assert len(file.modules) == len(adapted_layers(saved.weights))
    with safe_open(tmp_path / "out" / f"{name}.safetensors", framework="pt") as stored:
        assert stored.metadata()["rank"] == "3"


def test_what_is_written_is_what_the_adapter_store_reads(tmp_path):
    factors = initial_factors(initial_weights(SHAPE, torch.Generator()), 2, torch.Generator().manual_seed(0))
    write_adapter(tmp_path / "a.safetensors", factors, {"rank": 2})
    file = open_lora(tmp_path / "a.safetensors")
    assert len(file.modules) == len(factors) // 2
