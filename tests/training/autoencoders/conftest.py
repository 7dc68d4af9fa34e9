"""A folder that a toy run wrote, and what it had in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.tests.training.autoencoders.toy_recipe import toy_recipe
from braid.training.autoencoders import files
from braid.training.autoencoders.run import Run
from braid.training.autoencoders.trainee import StepBudget

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    out = tmp_path_factory.mktemp("autoencoders")
    run = Run(toy_recipe(), out, CPU)
    run.train({name: lambda: StepBudget(2) for name in files.NETWORKS})
    return run, out
