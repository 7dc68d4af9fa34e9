"""Muon: momentum whose matrices are made orthogonal, so that every direction of a matrix learns at the same pace.

Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale of "Muon is scalable
for LLM training" (2025), which makes the root mean square of a step the same for all shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.95
STEP_SIZE = 0.4
"""Root mean square of a step at a rate of 1. The source has 0.2; small denoisers learned faster with twice that."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5


class Muon:
    """Args:
    matrices: float32, which `step` changes.
    rate: the learning rate, of no dimension; whoever sets it fills it.
    dtype: of the products; where hardware is made for bfloat16, that.
    """

    def __init__(self, matrices: Sequence[Tensor], rate: Tensor, *, weight_decay: float, dtype: torch.dtype) -> None:
        self._matrices, self._rate = list(matrices), rate
        self._weight_decay, self._dtype = weight_decay, dtype
        self._momenta = [torch.zeros_like(matrix) for matrix in self._matrices]

    @torch.no_grad()
    def step(self) -> None:
        """Go along the gradients of the matrices that have one."""
        there = [number for number, matrix in enumerate(self._matrices) if matrix.grad is not None]
        if not there:
            return
        matrices = [self._matrices[number] for number in there]
        momenta = [self._momenta[number] for number in there]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        steps = orthogonal_steps(ahead, self._dtype)
        torch._foreach_mul_(matrices, 1 - self._rate * self._weight_decay)
        torch._foreach_mul_(steps, self._rate)
        torch._foreach_sub_(matrices, steps)


def orthogonal_steps(updates: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each made orthogonal and scaled, in float32; those of one shape together."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for number, update in enumerate(updates):
        by_shape[update.shape].append(number)
    steps: list[Tensor] = [torch.empty(0)] * len(updates)
    for (rows, columns), numbers in by_shape.items():
        made = orthogonal(torch.stack([updates[number] for number in numbers]).to(dtype)).float()
        for number, step in zip(numbers, (made * (STEP_SIZE * max(rows, columns) ** 0.5)).unbind(), strict=True):
            steps[number] = step
    return steps


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) with singular values near 1 (0.7 to 1.2), by a Newton-Schulz iteration of degree 5."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    made: Tensor = x.mT if is_tall else x
    return made
