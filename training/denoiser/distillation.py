"""The distilled adapter: one step without guidance goes where the guided model goes in several.

`python -m braid.training.denoiser.distillation --out DIR --minutes M --resume DIR --autoencoders DIR --captions FILE`

A clip is noised to a level of the few-step schedule. The guided model walks from there to the next level in small
Euler steps; the adapted one is taught the straight velocity between the two places. First stages learn the eight steps
of `DISTILLED_SIGMAS`, second stages the three of `STAGE_2_SIGMAS`, which are the last of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from braid.diffusion.latents import AudioVideo, each
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.diffusion.schedules import DISTILLED_SIGMAS, STAGE_2_SIGMAS
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import Budget, TimeBudget
from braid.training.denoiser.adapters import adapted, initial_factors, write_adapter
from braid.training.denoiser.batches import Batch, BatchKind, BatchMaker, NoisedState
from braid.training.denoiser.compact_language_model import CompactLanguageModel
from braid.training.denoiser.connectors import Connectors, Text
from braid.training.denoiser.latent_pools import LatentEncoder, Pool, PoolPlan
from braid.training.denoiser.network import TrainingNetwork
from braid.training.denoiser.optimisation import Weights
from braid.training.denoiser.shards import Saved, read_shards
from braid.training.denoiser.training_run import Recipe, make_pools

GUIDANCE_SCALE = 3.0
SMALL_STEPS = 4
RANK = 16
LOG_EVERY = 50
SMALL = 64
KINDS = (
    BatchKind("small", 64, 25, 192, 0.7),
    BatchKind("large", 128, 25, 48, 0.2),
    BatchKind("small picture", 64, 25, 384, 0.1, "picture"),
)
POOLS = (PoolPlan(64, 25, 16_000), PoolPlan(128, 25, 5_000))


def few_step_levels(kind: BatchKind, num_tokens: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A level of the few-step schedule for each sample, the same for both streams."""
    levels = torch.tensor(STAGE_2_SIGMAS if kind.size > SMALL else DISTILLED_SIGMAS, device=generator.device)[:-1]
    chosen = torch.randint(len(levels), (kind.num_clips,), generator=generator, device=generator.device)
    return levels[chosen], levels[chosen]


def next_level(sigma: Tensor) -> Tensor:
    """The level that follows in the schedule; 0 stays 0."""
    levels = torch.tensor(DISTILLED_SIGMAS, device=sigma.device)
    is_lower = levels[None] < sigma[:, None] - 1e-4
    return torch.where(is_lower, levels, torch.zeros_like(levels)).amax(1)


class Distillation:
    """Teaches an adapter.

    Args:
        saved: the guided model, of which nothing is trained.
    """

    def __init__(
        self, saved: Saved, language_model: CompactLanguageModel, pools: Mapping[tuple[int, int], Pool],
        device: torch.device, log: Log, *, kinds: tuple[BatchKind, ...] = KINDS, rank: int = RANK,
        learning_rate: float = 1e-3, dtype: torch.dtype = torch.bfloat16, seed: int = 0,
    ) -> None:  # fmt: skip
        self._teacher = {name: value.to(device, dtype) for name, value in saved.weights.items()}
        factors = initial_factors(saved.weights, rank, Generator().manual_seed(seed))
        self.factors = Weights(factors, device, learning_rate=learning_rate, dtype=dtype)
        self.batches = BatchMaker(kinds, pools, Generator(device).manual_seed(seed), levels=few_step_levels)
        self._network = TrainingNetwork(TransformerConfig.from_metadata(saved.shape.section))
        self._connectors, self._language_model, self._log = Connectors(saved.shape), language_model, log

    def train(self, budget: Budget) -> None:
        """Steps until the budget is used up."""
        while (progress := budget.progress(self.factors.num_steps)) < 1:
            loss = self.loss(self.batches.draw(self.batches.kind()))
            self.factors.step(loss, progress)
            if self.factors.num_steps % LOG_EVERY == 0:
                step, shown = self.factors.num_steps, round(float(loss.detach()), 4)
                self._log.write(stage="distil", step=step, progress=round(progress, 3), loss=shown)

    def loss(self, batch: Batch) -> Tensor:
        """How far the adapted velocity is from the straight way to where the guided model arrives."""
        with torch.no_grad():
            said = self._contexts(batch.tokens, batch.lengths)
            unsaid = self._contexts(batch.tokens, torch.zeros_like(batch.lengths))
            targets = self._guided_walk(batch.streams, said, unsaid)
        streams = each(lambda state, context: state.with_context(context), batch.streams, said)
        velocities = self._network(adapted(self._teacher, self.factors.working), streams)
        states = each(lambda state, target: dataclasses.replace(state, target=target), batch.streams, targets)
        losses = each(lambda state, velocity: state.losses(velocity).mean(), states, velocities)
        return torch.stack(list(losses.present())).sum()

    def _contexts(self, tokens: Tensor, lengths: Tensor) -> AudioVideo[Tensor]:
        return self._connectors(self._teacher, Text(self._language_model.hidden_states(tokens), lengths))

    def _guided_walk(
        self, states: AudioVideo[NoisedState], said: AudioVideo[Tensor], unsaid: AudioVideo[Tensor]
    ) -> AudioVideo[Tensor]:
        """The mean velocity (B, T, C) of several guided steps from each sample's level to the next."""
        now = states
        for step in range(SMALL_STEPS):
            guided = each(_guided, self._velocities(now, said), self._velocities(now, unsaid))
            now = each(lambda state, velocity, step=step: _moved(state, velocity, SMALL_STEPS - step), now, guided)
        return each(_straight, states, now)

    def _velocities(self, states: AudioVideo[NoisedState], contexts: AudioVideo[Tensor]) -> AudioVideo[Tensor]:
        streams = each(lambda state, context: state.with_context(context), states, contexts)
        return self._network(self._teacher, streams)


def _guided(said: Tensor, unsaid: Tensor) -> Tensor:
    return unsaid + GUIDANCE_SCALE * (said - unsaid)


def _moved(state: NoisedState, velocity: Tensor, steps_left: int) -> NoisedState:
    """One of the equal steps that are left until the next level of the schedule.

    Latents become float32: the first levels lie closer together than bfloat16 can tell.
    """
    step = (next_level(state.sigma) - state.sigma) / steps_left
    moved = state.latents.float() + step[:, None, None] * velocity.float() * state.is_free
    return dataclasses.replace(state, latents=moved, sigma=state.sigma + step)


def _straight(first: NoisedState, last: NoisedState) -> Tensor:
    distance = (first.sigma - last.sigma).clamp(min=1e-4)[:, None, None]
    return (first.latents.float() - last.latents.float()) / distance


def main() -> None:
    """The command."""
    start = time.monotonic()
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    log = Log(options.out / "distillation.jsonl")
    language_model = CompactLanguageModel(options.captions, options.device)
    recipe = Recipe(pools=POOLS, pool_seconds=options.pool_seconds)
    encoder = LatentEncoder(options.autoencoders, options.device)
    pools = make_pools(recipe, encoder, language_model, log, options.seed + 1)
    run = Distillation(read_shards(options.resume), language_model, pools, options.device, log, seed=options.seed)
    run.train(TimeBudget(options.minutes * 60 - (time.monotonic() - start)))
    write_adapter(options.out / "distilled-lora.safetensors", run.factors.averages, {"rank": RANK})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="teach the few-step adapter of braid-tiny")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the adapter")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--resume", type=Path, required=True, help="a folder of shards: the guided model")
    parser.add_argument("--autoencoders", type=Path, required=True, help="a folder of trained autoencoders")
    parser.add_argument("--captions", type=Path, required=True, help="a file of `compact_language_model`")
    parser.add_argument("--pool-seconds", type=float, default=60.0, help="at most, for drawing and encoding clips")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
