"""Numbers that are none, told where they are found: further on they would be a black film, or silence."""

from __future__ import annotations

import torch
from torch import Tensor

from braid.errors import BraidError


class NotFinite(BraidError):
    """A network gave NaN or infinity. The request alone ends with it."""

    code = "not_finite"


def require_finite(what: str, values: Tensor) -> None:
    """Look at every value; on a GPU this waits for them, so it is done once a stage and not once a step.

    Args:
        what: of whom the values are, for the message.
    Raises:
        NotFinite: one of them is NaN or infinite.
    """
    if not values.numel():
        return
    # Both are NaN if any value is; unlike a mask of all values, they take no memory beside a group of frames.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
        raise NotFinite(
            f"{what} are not finite numbers; guidance scales or an adapter's strength may be too large, or "
            "the weights damaged"
        )
