"""Weights in training: float32 masters, bfloat16 copies that the network computes with, averages, the optimisers.

Matrices of blocks are Muon's, all else is Adam's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from braid.training.denoiser.muon import Muon

MAX_GRADIENT_NORM = 1.0
WARM_UP_STEPS = 200
COOL_DOWN_SHARE = 0.25
"""Of a run, at its end, in which the learning rate falls."""
LAST_RATE = 0.05
WEIGHT_DECAY = 0.01
LARGEST_NUMBER_OF_HEADS = 9
"""A matrix with no more rows makes the gates of heads."""


class Weights:
    """All weights of a network that is given them with each call.

    Args:
        first: float32; a run that goes on begins with the averages of the one before, and warms up again.
        dtype: that the network computes in.
        matrices: names of what is Muon's; None is matrices of blocks.
    """

    def __init__(
        self, first: Mapping[str, Tensor], device: torch.device, *, learning_rate: float, dtype: torch.dtype,
        average_decay: float = 0.999, matrices: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        self._masters = {name: value.to(device, torch.float32, copy=True) for name, value in first.items()}
        self.working = {name: master.to(dtype, copy=True).requires_grad_() for name, master in self._masters.items()}
        self.averages = {name: master.clone() for name, master in self._masters.items()}
        self._peak_rate, self._decay = learning_rate, average_decay
        self.num_steps = 0
        """Of this run."""
        self._gradients = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        self._rate = torch.tensor(learning_rate, device=device)
        chosen = {name for name, value in first.items() if is_hidden_matrix(name, value)}
        chosen = chosen if matrices is None else set(matrices)
        self._muon = Muon(
            [master for name, master in self._masters.items() if name in chosen], self._rate,
            weight_decay=WEIGHT_DECAY, dtype=dtype,
        )  # fmt: skip
        others = [master for name, master in self._masters.items() if name not in chosen]
        decayed = [master for master in others if master.dim() > 1 and min(master.shape) > 9]
        rest = [master for master in others if not (master.dim() > 1 and min(master.shape) > 9)]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
        on_gpu = device.type == "cuda"
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=self._rate, betas=(0.9, 0.98), fused=on_gpu,
            capturable=on_gpu,
        )  # fmt: skip

    def step(self, loss: Tensor, progress: float, *, cools_down: bool = True) -> Tensor:
        """A whole step; see its parts."""
        self.begin_step(progress, cools_down=cools_down)
        norm = self.descend(loss)
        self.end_step()
        return norm

    def begin_step(self, progress: float, *, cools_down: bool = True) -> None:
        """Set the learning rate.

        Args:
            progress: of the run, from 0 to 1.
            cools_down: at its end; not where another run goes on.
        """
        rate = self._peak_rate * rate_share(self.num_steps, progress if cools_down else 0.0)
        for held in (self._rate, *(group["lr"] for group in self._adam.param_groups)):
            held.fill_(rate)  # in its place: a recorded step reads it there

    def descend(self, loss: Tensor) -> Tensor:
        """Go down the gradient of `loss`; gives the gradient's norm. Nothing in it waits for a GPU."""
        for copy in self.working.values():
            copy.grad = None  # of a step that failed on its way
        loss.backward()  # type: ignore[no-untyped-call]
        self._collect()
        norm = torch.nn.utils.clip_grad_norm_(list(self._masters.values()), MAX_GRADIENT_NORM)
        self._muon.step()
        self._adam.step()
        with torch.no_grad():
            torch._foreach_copy_(list(self.working.values()), list(self._masters.values()))
        return norm

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the averages and count."""
        decay = min(self._decay, (1 + self.num_steps) / (10 + self.num_steps))
        torch._foreach_lerp_(list(self.averages.values()), list(self._masters.values()), 1 - decay)
        self.num_steps += 1

    def _collect(self) -> None:
        """Gradients of the copies to the masters; a stream that was not there leaves None, which is left out."""
        there = {name: copy.grad for name, copy in self.working.items() if copy.grad is not None}
        torch._foreach_copy_([self._gradients[name] for name in there], list(there.values()))
        for name, copy in self.working.items():
            self._masters[name].grad = self._gradients[name] if name in there else None
            copy.grad = None


def is_hidden_matrix(name: str, value: Tensor) -> bool:
    """Whether it is a large matrix between hidden states: of an attention or a feed-forward."""
    in_block = name.startswith("transformer_blocks.") or ".transformer_1d_blocks." in name
    return in_block and name.endswith(".weight") and value.dim() == 2 and min(value.shape) > LARGEST_NUMBER_OF_HEADS


def rate_share(step: int, progress: float) -> float:
    """Of the peak learning rate: rises over `WARM_UP_STEPS`, stays, and falls at the end of the run."""
    fall = min(1.0, (1 - progress) / COOL_DOWN_SHARE)
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(LAST_RATE, fall)
