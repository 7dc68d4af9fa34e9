"""Mask videos: how strongly each latent is attended to, from a grey clip of pixels.

Source: specs of LTX-2, section f; golden component "image/mask preprocessing".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from braid.errors import InvalidRequest


def mask_tokens(mask: Tensor, *, time_factor: int = 8, space_factor: int = 32) -> Tensor:
    """The mean of a mask over the pixels of each latent: the first frame alone, then groups of `time_factor` frames.

    Args:
        mask: (B, 1, F, H, W) in [0, 1]; F is `time_factor * k + 1`, H and W multiples of `space_factor`.
    Returns:
        (B, F' * H' * W') float32, frames first, then rows.
    Raises:
        InvalidRequest: the size is none of these.
    """
    batch, _, num_frames, height, width = mask.shape
    if (num_frames - 1) % time_factor or height % space_factor or width % space_factor:
        raise InvalidRequest(
            f"a mask of {num_frames} frames of {height}x{width} must have {time_factor}k+1 frames and sides that are "
            f"multiples of {space_factor}",
            param="mask",
        )
    rows, columns = height // space_factor, width // space_factor
    frames = functional.interpolate(mask.float().flatten(0, 2)[:, None], (rows, columns), mode="area")
    frames = frames.view(batch, num_frames, rows, columns)
    groups = frames[:, 1:].reshape(batch, -1, time_factor, rows, columns).mean(dim=2)
    return torch.cat([frames[:, :1], groups], dim=1).flatten(1)
