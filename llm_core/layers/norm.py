"""Root-mean-square norm over the last dimension."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to a root mean square of one, then by `weight`; float32 inside, cast back once.

    One fused call, where the specification in `kernels.ops` takes six: a decode step of a small model is made of calls.

    Args:
        x: (..., width)
        weight: (width,) float32, any offset already added.
    """
    return functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
