"""A network in training: its weights, their moving average, and the optimiser with its schedule."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 100
LAST_RATE = 0.02
"""Of the learning rate at the end, relative to its peak."""
MAX_GRADIENT_NORM = 1.0


class Budget(Protocol):
    """How long something may train."""

    def progress(self, step: int) -> float:
        """From 0 to 1; at 1 it is over."""


@dataclass(frozen=True)
class StepBudget:
    """A number of steps."""

    num_steps: int

    def progress(self, step: int) -> float:
        return step / self.num_steps if self.num_steps else 1.0


@dataclass(frozen=True)
class TimeBudget:
    """A number of seconds from now on."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.clock())

    def progress(self, step: int) -> float:
        return (self.clock() - self.start) / self.seconds if self.seconds > 0 else 1.0


class Trainee:
    """Trains one network.

    The optimiser's moments are not kept: a run that goes on from saved weights warms up again.
    """

    def __init__(self, network: nn.Module, *, learning_rate: float, average_decay: float = 0.999) -> None:
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.num_steps = 0
        self._average_decay = average_decay
        self._peak_rate = learning_rate
        self._steps_of_run = 0
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        device = parameters[0].device
        rate = torch.tensor(learning_rate, device=device)
        on_gpu = device.type == "cuda"
        self._optimiser = torch.optim.AdamW(
            parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=on_gpu, capturable=on_gpu
        )

    def begin_step(self, progress: float) -> None:
        """Set the learning rate.

        Args:
            progress: of the budget, which it falls with.
        """
        for group in self._optimiser.param_groups:
            # in its place: a recorded step reads it there
            group["lr"].fill_(self._peak_rate * learning_rate_share(self._steps_of_run, progress))

    def descend(self, loss: Tensor) -> Tensor:
        """Go down the gradient of `loss`; gives the gradient's norm. Nothing in it waits for a GPU."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self._optimiser.step()
        return norm

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the average and count."""
        # Young averages forget faster, or the first weights would stay in them.
        decay = min(self._average_decay, (1 + self.num_steps) / (10 + self.num_steps))
        averages: list[Tensor] = list(self.average.parameters())
        parameters: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, parameters, 1 - decay)
        self.num_steps += 1
        self._steps_of_run += 1

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged weights; buffers are those of the network."""
        return dict(self.average.state_dict())

    def load(self, state: Mapping[str, Tensor], averaged: Mapping[str, Tensor], num_steps: int) -> None:
        """Go on from saved weights."""
        self.network.load_state_dict(state)
        self.average.load_state_dict(averaged)
        self.num_steps = num_steps


def learning_rate_share(step: int, progress: float) -> float:
    """Rises over `WARM_UP_STEPS`, then falls as a cosine to `LAST_RATE`."""
    fall = LAST_RATE + (1 - LAST_RATE) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the hardware is made for it."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()
