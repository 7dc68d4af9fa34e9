"""The distilled adapter: one step without guidance goes where the guided model goes in several.

`python -m braid.training.denoiser.distillation --out DIR --minutes M --resume DIR --autoencoders DIR --captions FILE`

A clip is noised to a level of the few-step schedule. The guided model walks from there to the next level in small
Euler steps; the adapted one is taught the straight velocity between the two places. First stages learn the eight steps
of `DISTILLED_SIGMAS`, second stages the three of `STAGE_2_SIGMAS`, which are the last of them.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import torch
from torch import Generator, Tensor

from braid.diffusion.latents import AudioVideo, each
from braid.diffusion.schedules import DISTILLED_SIGMAS, STAGE_2_SIGMAS
from braid.training.autoencoders.pools import SMALL
from braid.training.denoiser.adapter_training import AdaptedModel, Lesson, adapter_parser, distance, teach
from braid.training.denoiser.batches import Batch, BatchKind, NoisedState
from braid.training.denoiser.latent_pools import PoolPlan

GUIDANCE_SCALE = 3.0
SMALL_STEPS = 3


def few_step_levels(kind: BatchKind, num_tokens: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A level of the few-step schedule for each sample, the same for both streams."""
    levels = torch.tensor(STAGE_2_SIGMAS if kind.size > SMALL else DISTILLED_SIGMAS, device=generator.device)[:-1]
    chosen = torch.randint(len(levels), (kind.num_clips,), generator=generator, device=generator.device)
    return levels[chosen], levels[chosen]


@lru_cache(maxsize=4)
def _levels(device: torch.device) -> Tensor:
    """Brought to the device once: a recorded step cannot."""
    return torch.tensor(DISTILLED_SIGMAS, device=device)


def next_level(sigma: Tensor) -> Tensor:
    """The level that follows in the schedule; 0 stays 0."""
    levels = _levels(sigma.device)
    is_lower = levels[None] < sigma[:, None] - 1e-4
    return torch.where(is_lower, levels, torch.zeros_like(levels)).amax(1)


def distillation_loss(model: AdaptedModel, batch: Batch) -> Tensor:
    """How far the adapted velocity is from the straight way to where the guided model arrives."""
    said = model.contexts(batch.tokens, batch.lengths)
    unsaid = model.contexts(batch.tokens, torch.zeros_like(batch.lengths))
    targets = _guided_walk(model, batch.streams, said, unsaid)
    states = each(lambda state, target: dataclasses.replace(state, target=target), batch.streams, targets)
    return distance(states, model.velocities(batch.streams, said))


def _guided_walk(
    model: AdaptedModel, states: AudioVideo[NoisedState], said: AudioVideo[Tensor], unsaid: AudioVideo[Tensor]
) -> AudioVideo[Tensor]:
    """The mean velocity (B, T, C) of several guided steps from each sample's level to the next."""
    now = states
    for step in range(SMALL_STEPS):
        guided = each(_guided, model.base_velocities(now, said), model.base_velocities(now, unsaid))
        now = each(lambda state, velocity, step=step: _moved(state, velocity, SMALL_STEPS - step), now, guided)
    return each(_straight, states, now)


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
    way = (first.sigma - last.sigma).clamp(min=1e-4)[:, None, None]
    return (first.latents.float() - last.latents.float()) / way


LESSON = Lesson(
    "distil",
    distillation_loss,
    rank=16,
    pools=(PoolPlan(64, 25, 16_000), PoolPlan(128, 25, 5_000)),
    kinds=(
        BatchKind("small", 64, 25, 96, 0.45),
        BatchKind("large", 128, 25, 24, 0.45),
        BatchKind("small picture", 64, 25, 192, 0.1, "picture"),
    ),
    levels=few_step_levels,
)


def main() -> None:
    """The command."""
    parser = adapter_parser("teach the few-step adapter of braid-tiny", minutes=9.0, pool_seconds=60.0)
    options = parser.parse_args()
    teach(LESSON, options, log="distillation.jsonl", adapter="distilled-lora.safetensors", pool_seed=options.seed + 1)


if __name__ == "__main__":
    main()
