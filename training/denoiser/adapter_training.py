"""Teaching an adapter: a saved model that stays as it is, factors beside it, and a lesson that they learn."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from braid.diffusion.latents import AudioVideo, each
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import Budget, TimeBudget
from braid.training.denoiser.adapters import adapted, initial_factors, write_adapter
from braid.training.denoiser.batches import (
    Batch,
    BatchKind,
    BatchMaker,
    Levels,
    NoisedState,
    tensors_of,
    training_levels,
    with_contexts,
    with_tensors,
)
from braid.training.denoiser.compact_language_model import CompactLanguageModel
from braid.training.denoiser.connectors import Connectors, Text
from braid.training.denoiser.latent_pools import PoolPlan
from braid.training.denoiser.material import Material, add_sources, prepare
from braid.training.denoiser.network import TrainingNetwork
from braid.training.denoiser.optimisation import Weights
from braid.training.denoiser.shards import Saved, read_shards
from braid.training.run_options import prepare_gpu, run_parser
from braid.training.step_graphs import StepGraphs

LOG_EVERY = 50


class AdaptedModel:
    """A model, and low-rank factors that change it.

    Args:
        saved: of which nothing is trained.
    """

    def __init__(
        self, saved: Saved, language_model: CompactLanguageModel, device: torch.device, *, rank: int,
        learning_rate: float, dtype: torch.dtype, seed: int,
    ) -> None:  # fmt: skip
        self.base = {name: value.to(device, dtype) for name, value in saved.weights.items()}
        factors = initial_factors(saved.weights, rank, Generator().manual_seed(seed))
        self.factors = Weights(factors, device, learning_rate=learning_rate, dtype=dtype, matrices=())
        self._network = TrainingNetwork(TransformerConfig.from_metadata(saved.shape.section))
        self._connectors, self._language_model = Connectors(saved.shape), language_model

    @torch.no_grad()
    def contexts(self, tokens: Tensor, lengths: Tensor) -> AudioVideo[Tensor]:
        """Of captions (B, L), of which so many tokens (B,) count; the connectors are not adapted."""
        return self._connectors(self.base, Text(self._language_model.hidden_states(tokens), lengths))

    @torch.no_grad()
    def base_velocities(self, states: AudioVideo[NoisedState], contexts: AudioVideo[Tensor]) -> AudioVideo[Tensor]:
        """What the model says by itself."""
        return self._network(self.base, with_contexts(states, contexts))

    def velocities(self, states: AudioVideo[NoisedState], contexts: AudioVideo[Tensor]) -> AudioVideo[Tensor]:
        """What it says with the adapter."""
        return self._network(adapted(self.base, self.factors.working), with_contexts(states, contexts))


def distance(states: AudioVideo[NoisedState], velocities: AudioVideo[Tensor]) -> Tensor:
    """From the targets of the states: the mean over samples, summed over streams."""
    losses = each(lambda state, velocity: state.losses(velocity).mean(), states, velocities)
    return torch.stack(list(losses.present())).sum()


@dataclass(frozen=True)
class Lesson:
    """What an adapter learns, and from what."""

    name: str
    """In the log."""
    loss: Callable[[AdaptedModel, Batch], Tensor]
    rank: int
    pools: tuple[PoolPlan, ...]
    kinds: tuple[BatchKind, ...]
    levels: Levels = training_levels
    learning_rate: float = 1e-3


class AdapterTraining:
    """Goes through a lesson."""

    def __init__(
        self, lesson: Lesson, saved: Saved, material: Material, device: torch.device, log: Log, *,
        dtype: torch.dtype = torch.bfloat16, seed: int = 0,
    ) -> None:  # fmt: skip
        self.model = AdaptedModel(
            saved, material.language_model, device, rank=lesson.rank, learning_rate=lesson.learning_rate,
            dtype=dtype, seed=seed,
        )  # fmt: skip
        generator = Generator(device).manual_seed(seed)
        self.batches = BatchMaker(lesson.kinds, material.pools, generator, levels=lesson.levels)
        self._lesson, self._log = lesson, log
        self._graphs = StepGraphs(device, log.write)

    def loss(self, batch: Batch) -> Tensor:
        """That of the lesson."""
        return self._lesson.loss(self.model, batch)

    def train(self, budget: Budget) -> None:
        """Steps until the budget is used up."""
        with self._graphs.stream():
            self._go(budget)

    def _go(self, budget: Budget) -> None:
        factors = self.model.factors
        while (progress := budget.progress(factors.num_steps)) < 1:
            kind = self.batches.kind()
            batch = self.batches.draw(kind)
            factors.begin_step(progress)
            loss = self._graphs.run(kind.name, partial(self._descend, batch), *tensors_of(batch))
            factors.end_step()
            if factors.num_steps % LOG_EVERY == 0:
                shown = {"step": factors.num_steps, "progress": round(progress, 3), "loss": round(loss.item(), 4)}
                self._log.write(stage=self._lesson.name, **shown)

    def _descend(self, batch: Batch, *tensors: Tensor) -> Tensor:
        loss = self.loss(with_tensors(batch, tensors))
        self.model.factors.descend(loss)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write the adapter."""
        write_adapter(path, self.model.factors.averages, {"rank": self._lesson.rank})


def adapter_parser(description: str, *, minutes: float, pool_seconds: float) -> argparse.ArgumentParser:
    """Options of `teach`."""
    parser = run_parser(description, minutes=minutes)
    parser.add_argument("--resume", type=Path, required=True, help="a folder of shards: the model to adapt")
    add_sources(parser, pool_seconds=pool_seconds)
    return parser


def teach(
    lesson: Lesson, options: argparse.Namespace, *, log: str, adapter: str, pool_seed: int, style: str | None = None
) -> None:
    """The whole of a command, which is over when its minutes are.

    Args:
        log: a file's name, as is `adapter`.
        pool_seed: not that of another command's clips.
        style: of all clips.
    """
    start = time.monotonic()
    lesson = _tiny(lesson) if options.tiny else lesson
    options.out.mkdir(parents=True, exist_ok=True)
    prepare_gpu()
    lines = Log(options.out / log)
    material = prepare(options, lesson.pools, lines, seed=pool_seed, style=style)
    saved = read_shards(options.resume)
    dtype = torch.float32 if options.tiny else torch.bfloat16
    run = AdapterTraining(lesson, saved, material, options.device, lines, dtype=dtype, seed=options.seed)
    run.train(TimeBudget(options.minutes * 60 - (time.monotonic() - start)))
    run.save(options.out / adapter)


def _tiny(lesson: Lesson) -> Lesson:
    return dataclasses.replace(
        lesson,
        pools=tuple(dataclasses.replace(plan, num_clips=4) for plan in lesson.pools),
        kinds=tuple(dataclasses.replace(kind, num_clips=4) for kind in lesson.kinds),
    )
