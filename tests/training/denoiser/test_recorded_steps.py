"""Recorded steps: what they may not do, and that a step from its tensors alone is the same step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from braid.tests.training.denoiser.conftest import SHAPE
from braid.tests.training.host_traffic import CPU, META, IdleAdam, traffic
from braid.training.denoiser.batches import BatchKind, BatchMaker, tensors_of, with_tensors
from braid.training.denoiser.compact_language_model import CompactLanguageModel
from braid.training.denoiser.material import Material
from braid.training.denoiser.optimisation import Weights
from braid.training.denoiser.training_run import Losses, Recipe, TrainingRun
from braid.training.step_graphs import StepGraphs

FORMS = ("mixed", "last_frame", "silent", "picture", "sound")


def test_the_watcher_sees_what_recording_would_refuse():
    assert traffic(lambda: torch.tensor([1.0, 2.0], device=META) + 1)
    assert traffic(lambda: torch.ones(2).to(META))
    assert not traffic(lambda: torch.zeros(3, device=META) + 1.0)


@pytest.fixture
def make_run(material, captions, tmp_path):
    def make(form: str, device: torch.device) -> tuple[TrainingRun, Any]:
        kind = BatchKind("small", 16, 17, 8, 1.0, form)
        recipe = Recipe(shape=SHAPE, kinds=(kind,), dtype=torch.float32, learning_rate=0.01)
        drawn = BatchMaker((kind,), material.pools, torch.Generator().manual_seed(3)).draw(kind)
        log: Any = type("Silent", (), {"write": lambda self, **values: None})()
        language = CompactLanguageModel(captions, device, dtype=torch.float32)
        return TrainingRun(recipe, Material(language, material.pools), CPU, log), drawn

    return make


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_the_denoiser_brings_nothing_to_the_device_and_asks_it_for_nothing(make_run, form, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", IdleAdam)
    run, batch = make_run(form, META)
    run._device, run._losses = META, Losses(META)
    run.weights = Weights(run.weights.averages, META, learning_rate=0.1, dtype=torch.float32)
    there = batch.streams.map(lambda state: replace(state, positions=state.positions.to(META)))
    inputs = [value.to(META) for value in tensors_of(batch)]
    found = traffic(lambda: run._descend(replace(batch, streams=there), False, *inputs))
    assert not found


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_from_its_tensors_is_the_same_batch(make_run, form):
    run, batch = make_run(form, CPU)
    other = BatchMaker(run.recipe.kinds, run.batches._pools, torch.Generator().manual_seed(4)).draw(run.recipe.kinds[0])
    with torch.no_grad():
        mine, rebuilt, others = (
            float(run.loss(one)) for one in (batch, with_tensors(other, tensors_of(batch)), other)
        )
    assert mine == rebuilt != others


def test_on_a_cpu_steps_are_done_as_they_are():
    graphs = StepGraphs(CPU, lambda **values: None)
    with graphs.stream():
        results = [graphs.run("a", lambda x: x * 2, torch.tensor(float(number))) for number in range(6)]
    assert [float(result) for result in results] == [0, 2, 4, 6, 8, 10]


@pytest.mark.gpu
def test_a_replayed_step_is_the_step():
    device = torch.device("cuda")
    weight, told = torch.ones(4, device=device), []
    graphs = StepGraphs(device, lambda **values: told.append(values))

    def step(x: torch.Tensor) -> torch.Tensor:
        weight.add_(x)
        return weight.sum()

    with graphs.stream():
        sums = [float(graphs.run("a", step, torch.full((4,), float(n), device=device))) for n in range(8)]
    assert not told and sums == [4.0 + 4 * sum(range(n + 1)) for n in range(8)]
