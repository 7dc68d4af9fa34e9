"""The gates of feed-forward layers, the same bits for a number wherever it stands in the tensor.

`torch.sigmoid`, `silu` and `gelu` are not used: on a CPU they compute the last few numbers of each thread's share with
another exponential than the rest (measured: 2 to 4 results in 100,000 differ), so a token's bits would depend on how
many tokens stand beside it. `exp` has one path for all. Both gates are x * sigmoid(z), z being x for SiLU and, because
(1 + tanh(u)) / 2 = sigmoid(2 u), twice the tanh's argument for GELU.
"""

from __future__ import annotations

import math

from torch import Tensor

GELU_CUBIC = 0.044715
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


def gated(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    """`act(gate) * up` in float32, cast back once.

    Args:
        kind: `silu` or `gelu_tanh`.
        gate, up: of one shape; views of one fused product are fine.
    """
    gate32 = gate.float()
    denominator = _negative_logit(kind, gate32).exp_().add_(1.0)
    return (gate32 * up).div_(denominator).to(gate.dtype)


def _negative_logit(kind: str, x: Tensor) -> Tensor:
    """-z of x * sigmoid(z), a new contiguous tensor."""
    if kind == "silu":
        return x.neg()
    cubic = (x * x).mul_(x).mul_(GELU_CUBIC)
    return cubic.add_(x).mul_(-GELU_SLOPE)
