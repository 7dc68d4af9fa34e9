"""What stands around a job's pipeline."""

from __future__ import annotations

import pytest
import torch

from braid.diffusion.delivery import _middle
from braid.diffusion.latents import patchify_video
from braid.diffusion.positions import VideoGrid


@pytest.mark.parametrize(("num_frames", "middle"), [(1, 0), (2, 1), (3, 1), (16, 8)])
def test_a_preview_is_of_the_middle_latent_frame_without_what_was_appended(num_frames: int, middle: int) -> None:
    grid = VideoGrid(frames=num_frames, height=2, width=3, time_factor=8, height_factor=32, width_factor=32)
    latents = torch.randn(1, 4, num_frames, 2, 3, generator=torch.Generator().manual_seed(1))
    appended = torch.full((1, 6, 4), 9.0)
    found = _middle(torch.cat([patchify_video(latents), appended], 1), grid)
    assert torch.equal(found, latents[:, :, middle : middle + 1])
