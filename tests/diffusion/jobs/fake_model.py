"""A video model that only judges requests, by the facts of a toy checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from braid.diffusion.job import Job
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.params import GenerationParams
from braid.diffusion.validation import resolve
from braid.tests.diffusion.rig import open_diffusion


@dataclass(frozen=True)
class FakeModel:
    facts: ModelFacts

    def resolve(self, params: GenerationParams) -> Job:
        return resolve(params, self.facts)


@contextmanager
def fake_model(folder: Path) -> Iterator[FakeModel]:
    """Of the files that `write_files` makes in a folder."""
    diffusion = open_diffusion(folder)
    try:
        yield FakeModel(replace(diffusion.facts, has_language_model=True))
    finally:
        diffusion.close()
