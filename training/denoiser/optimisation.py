"""Weights in training: float32 masters, bfloat16 copies that the network computes with, averages, the optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MAX_GRADIENT_NORM = 1.0
WARM_UP_STEPS = 200
COOL_DOWN_SHARE = 0.25
"""Of a run, at its end, in which the learning rate falls."""
LAST_RATE = 0.05
WEIGHT_DECAY = 0.01


class Weights:
    """All weights of a network that is given them with each call.

    Args:
        first: float32; a run that goes on begins with the averages of the one before, and warms up again.
        dtype: that the network computes in.
    """

    def __init__(
        self, first: Mapping[str, Tensor], device: torch.device, *, learning_rate: float, dtype: torch.dtype,
        average_decay: float = 0.999,
    ) -> None:  # fmt: skip
        self._masters = {name: value.to(device, torch.float32, copy=True) for name, value in first.items()}
        self.working = {name: master.to(dtype, copy=True).requires_grad_() for name, master in self._masters.items()}
        self.averages = {name: master.clone() for name, master in self._masters.items()}
        self._peak_rate, self._decay = learning_rate, average_decay
        self.num_steps = 0
        """Of this run."""
        self._gradients = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        decayed = [master for master in self._masters.values() if master.dim() > 1 and min(master.shape) > 9]
        others = [master for master in self._masters.values() if not (master.dim() > 1 and min(master.shape) > 9)]
        self._optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
            lr=learning_rate, betas=(0.9, 0.98), fused=device.type == "cuda",
        )  # fmt: skip

    def step(self, loss: Tensor, progress: float) -> Tensor:
        """Go down the gradient of `loss`; gives the gradient's norm.

        Args:
            progress: of the run, from 0 to 1.
        """
        loss.backward()  # type: ignore[no-untyped-call]
        self._collect()
        for group in self._optimiser.param_groups:
            group["lr"] = self._peak_rate * rate_share(self.num_steps, progress)
        norm = torch.nn.utils.clip_grad_norm_(list(self._masters.values()), MAX_GRADIENT_NORM)
        self._optimiser.step()
        with torch.no_grad():
            masters, averages = list(self._masters.values()), list(self.averages.values())
            torch._foreach_copy_(list(self.working.values()), masters)
            torch._foreach_lerp_(averages, masters, 1 - min(self._decay, (1 + self.num_steps) / (10 + self.num_steps)))
        self.num_steps += 1
        return norm

    def _collect(self) -> None:
        """Gradients of the copies to the masters; a stream that was not there leaves None, which is left out."""
        there = {name: copy.grad for name, copy in self.working.items() if copy.grad is not None}
        torch._foreach_copy_([self._gradients[name] for name in there], list(there.values()))
        for name, copy in self.working.items():
            self._masters[name].grad = self._gradients[name] if name in there else None
            copy.grad = None


def rate_share(step: int, progress: float) -> float:
    """Of the peak learning rate: rises over `WARM_UP_STEPS`, stays, and falls at the end of the run."""
    fall = min(1.0, (1 - progress) / COOL_DOWN_SHARE)
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(LAST_RATE, fall)
