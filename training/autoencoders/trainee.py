"""A network in training: its weights, their moving average, and the optimiser with its schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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

    def __init__(self, network: nn.Module, *, learning_rate: float, average_decay: float = 0.998) -> None:
        self.network = network
        self.average = AveragedModel(network, multi_avg_fn=_average_fn(average_decay))
        self.num_steps = 0
        self._peak_rate = learning_rate
        self._steps_of_run = 0
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        is_fused = parameters[0].device.type == "cuda"
        self._optimiser = torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=is_fused
        )

    def step(self, loss: Tensor, progress: float) -> Tensor:
        """Go down the gradient of `loss`; gives the gradient's norm.

        Args:
            progress: of the budget, which the learning rate falls with.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = self._peak_rate * learning_rate_share(self._steps_of_run, progress)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self._optimiser.step()
        self.average.update_parameters(self.network)
        self.num_steps += 1
        self._steps_of_run += 1
        return norm

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged weights; buffers are those of the network."""
        return dict(self.average.module.state_dict())

    def load(self, state: Mapping[str, Tensor], averaged: Mapping[str, Tensor], num_steps: int) -> None:
        """Go on from saved weights."""
        self.network.load_state_dict(state)
        self.average.module.load_state_dict(averaged)
        self.average.n_averaged.fill_(num_steps)  # 0 would let the next step overwrite the average
        self.num_steps = num_steps


def _average_fn(decay: float) -> Callable[..., None]:
    average: Callable[..., None] = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return average


def learning_rate_share(step: int, progress: float) -> float:
    """Rises over `WARM_UP_STEPS`, then falls as a cosine to `LAST_RATE`."""
    fall = LAST_RATE + (1 - LAST_RATE) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the hardware is made for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
