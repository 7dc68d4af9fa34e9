"""Pictures of a job under way, small enough to travel."""

from __future__ import annotations

from torch import Tensor

from braid.diffusion.jobs.messages import MAX_PREVIEW_BYTES
from braid.diffusion.jobs.outputs import shrunk

_MAX_PIXELS = 768
_TRIES = ((1, 80), (1, 60), (2, 70), (4, 60), (8, 50))
"""(a divisor of the longest side, quality), the first that is small enough."""


def preview_jpeg(frame: Tensor) -> bytes | None:
    """A (H, W, 3) uint8 frame as JPEG; None if it would be too large even then."""
    from braid.multimodal.images import encode_image

    for divisor, quality in _TRIES:
        data = encode_image(shrunk(frame, _MAX_PIXELS // divisor), "JPEG", quality=quality)
        if len(data) <= MAX_PREVIEW_BYTES:
            return data
    return None
