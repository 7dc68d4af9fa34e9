"""A run: steps until the time is over, and the losses in lines of JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from braid.diffusion.latents import each
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import Budget
from braid.training.denoiser.batches import Batch, BatchKind, BatchMaker, tensors_of, with_contexts, with_tensors
from braid.training.denoiser.configs import Shape
from braid.training.denoiser.connectors import Connectors, Text
from braid.training.denoiser.initial_weights import initial_weights
from braid.training.denoiser.latent_pools import PoolPlan
from braid.training.denoiser.material import Material
from braid.training.denoiser.network import BlockFunction, TrainingNetwork
from braid.training.denoiser.optimisation import Weights
from braid.training.denoiser.shards import Saved, write_shards
from braid.training.step_graphs import StepGraphs

LOG_EVERY = 50
SAVE_EVERY_S = 120.0
NUM_BINS = 10
"""Of noise levels, in the log."""
AUDIO_WEIGHT = 0.5

POOLS = (PoolPlan(64, 25, 28_672), PoolPlan(64, 17, 3_072), PoolPlan(64, 33, 3_072), PoolPlan(128, 25, 8_192))
"""Whole chunks of what is drawn at once: another number would be another shape to tune kernels for."""
KINDS = (
    BatchKind("small", 64, 25, 128, 0.36, is_common=True),
    BatchKind("large", 128, 25, 32, 0.40, is_common=True),
    BatchKind("small short", 64, 17, 128, 0.03),
    BatchKind("small long", 64, 33, 64, 0.04),
    BatchKind("small keyframe", 64, 25, 64, 0.05, "last_frame"),
    BatchKind("small silent", 64, 25, 96, 0.02, "silent"),
    BatchKind("small picture", 64, 25, 256, 0.03, "picture"),
    BatchKind("large picture", 128, 25, 128, 0.05, "picture"),
    BatchKind("sound", 64, 25, 256, 0.02, "sound"),
)
"""Colours, motions and sounds are learnt at 64 pixels within minutes; outlines are what large batches are for."""


@dataclass(frozen=True)
class Recipe:
    """How much of everything; the defaults are what braid-tiny was trained with."""

    shape: Shape = field(default_factory=Shape)
    pools: tuple[PoolPlan, ...] = POOLS
    kinds: tuple[BatchKind, ...] = KINDS
    learning_rate: float = 1e-3
    cools_down: bool = True
    """The learning rate falls at the end of the run; not where another run goes on."""
    is_recorded: bool = True
    """Steps are replayed where there is a GPU."""
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0


class Losses:
    """Sums on the device, so that the log alone waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, 2, NUM_BINS, device=device)  # (video or audio, sum or count, bin)

    def add(self, stream: int, losses: Tensor, sigma: Tensor) -> None:
        """Of some samples; those of level 0 were given."""
        bins = (sigma * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        is_made = (sigma > 0).float()
        self._sums[stream, 0].index_add_(0, bins, losses.detach() * is_made)
        self._sums[stream, 1].index_add_(0, bins, is_made)

    def take(self) -> dict[str, Any]:
        """Means of both streams and of each bin, since the last time."""
        sums = self._sums.cpu().clone()
        self._sums.zero_()
        means = sums[:, 0] / sums[:, 1].clamp(min=1)
        total = sums[:, 0].sum(1) / sums[:, 1].sum(1).clamp(min=1)
        return {
            name: round(float(total[index]), 4) for index, name in enumerate(("video", "audio"))
        } | {
            f"{name}_by_sigma": [round(value, 3) for value in means[index].tolist()]
            for index, name in enumerate(("video", "audio"))
        }


class TrainingRun:
    """Trains the transformer and its connectors.

    Args:
        saved: what an earlier run left; else training begins anew.
        compiler: of the block's function, for common kinds of batches.
    """

    def __init__(
        self, recipe: Recipe, material: Material, device: torch.device, log: Log, *, saved: Saved | None = None,
        compiler: Callable[[BlockFunction], BlockFunction] | None = None,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self.shape = recipe.shape if saved is None else saved.shape
        self._steps_before = 0 if saved is None else saved.num_steps
        self.log, self._device, self._language_model = log, device, material.language_model
        generator = Generator().manual_seed(recipe.seed)
        first = initial_weights(self.shape, generator) if saved is None else saved.weights
        self.weights = Weights(first, device, learning_rate=recipe.learning_rate, dtype=recipe.dtype)
        # another seed than before, or a resumed run would see the same noise again
        seed = recipe.seed * 1_000_003 + self._steps_before
        self.batches = BatchMaker(recipe.kinds, material.pools, Generator(device).manual_seed(seed))
        config = TransformerConfig.from_metadata(self.shape.section)
        self._network = TrainingNetwork(config)
        self._fast_network = self._network if compiler is None else TrainingNetwork(config, compiler=compiler)
        self._connectors = Connectors(self.shape)
        self._losses = Losses(device)
        self._graphs = StepGraphs(device, log.write, is_used=recipe.is_recorded)
        self._drawing_s = self._host_s = 0.0

    @property
    def num_steps(self) -> int:
        """Of all runs together."""
        return self._steps_before + self.weights.num_steps

    def train(self, budget: Budget, out: Path) -> None:
        """Steps until the budget is used up; writes shards now and then, and at the end."""
        with self._graphs.stream():
            self._go(budget, out)
        self.save(out)

    def _go(self, budget: Budget, out: Path) -> None:
        last_save = last_log = time.monotonic()
        while (progress := budget.progress(self.weights.num_steps)) < 1:
            begin = time.perf_counter()
            kind = self.batches.kind()
            batch = self.batches.draw(kind)
            self._drawing_s += time.perf_counter() - begin
            self.weights.begin_step(progress, cools_down=self.recipe.cools_down)
            step = partial(self._descend, batch, kind.is_common)
            norm = self._graphs.run(kind.name, step, *tensors_of(batch))
            self.weights.end_step()
            self._host_s += time.perf_counter() - begin
            if self.weights.num_steps % LOG_EVERY == 0:
                now = time.monotonic()
                rate = round(LOG_EVERY / (now - last_log), 2)
                self._write_log(progress, norm, rate)
                last_log = now
            if time.monotonic() - last_save > SAVE_EVERY_S:
                self.save(out)
                last_save = time.monotonic()

    def _descend(self, batch: Batch, is_common: bool, *tensors: Tensor) -> Tensor:
        return self.weights.descend(self.loss(with_tensors(batch, tensors), is_common=is_common))

    def save(self, out: Path) -> None:
        """Write the shards."""
        write_shards(out, self.weights.averages, self.shape, self.num_steps)

    def loss(self, batch: Batch, *, is_common: bool = False) -> Tensor:
        """Of a batch, over both streams."""
        text = Text(self._language_model.hidden_states(batch.tokens), batch.lengths)
        contexts = self._connectors(self.weights.working, text)
        network = self._fast_network if is_common else self._network
        velocities = network(self.weights.working, with_contexts(batch.streams, contexts))
        losses = each(lambda state, velocity: state.losses(velocity), batch.streams, velocities)
        total = torch.zeros((), device=self._device)
        for index, weight in enumerate((1.0, AUDIO_WEIGHT)):
            found = (losses.video, losses.audio)[index]
            state = (batch.streams.video, batch.streams.audio)[index]
            if found is not None and state is not None:
                self._losses.add(index, found, state.sigma)
                total = total + weight * found.mean()
        return total

    def _write_log(self, progress: float, norm: Tensor, rate: float) -> None:
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"the gradient's norm is {float(norm)} at step {self.num_steps}")
        memory = torch.cuda.max_memory_allocated() >> 20 if self._device.type == "cuda" else 0
        drawing_ms, host_ms = (round(1e3 * spent / LOG_EVERY, 1) for spent in (self._drawing_s, self._host_s))
        self._drawing_s = self._host_s = 0.0
        self.log.write(
            stage="train", step=self.num_steps, progress=round(progress, 3), norm=round(float(norm), 3),
            steps_a_second=rate, drawing_ms=drawing_ms, host_ms=host_ms, peak_mib=memory, **self._losses.take(),
        )  # fmt: skip
