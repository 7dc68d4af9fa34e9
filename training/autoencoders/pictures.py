"""Pictures to look at: clips as drawn and as they came back, and what their sounds look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.audio_mel import MelFrontEnd
from braid.training.autoencoders.evaluation import Clip

SHOWN_FRAMES = (0, 6, 12, 18, 24)
WAYS = ("drawn_128", "decoded_128", "upsampled_128", "drawn_64", "decoded_64")
SOUND_WAYS = ("drawn", "vocoded", "decoded")
LOUDEST, QUIETEST = 2.0, -11.5
"""Log-mel that is white and black."""
GAP = 4


def save_clips(path: Path, clips: Sequence[Clip]) -> None:
    """One row a clip: five frames of each way that it went, the small ones enlarged."""
    rows = [torch.cat([_strip(clip.frames[way]) for way in WAYS], 1) for clip in clips]
    _save(path, torch.cat(rows))


def _strip(frames: Tensor) -> Tensor:
    """(H, W, 3) uint8 of some frames side by side, 128 pixels high."""
    chosen = frames[[min(number, len(frames) - 1) for number in SHOWN_FRAMES]]
    large = functional.interpolate(chosen.permute(0, 3, 1, 2).float(), (128, 128), mode="nearest").byte()
    padded = functional.pad(large, (0, GAP, 0, GAP))
    return functional.pad(torch.cat(list(padded), 2), (0, 2 * GAP)).permute(1, 2, 0)


def save_spectrograms(path: Path, clips: Sequence[Clip], front_end: MelFrontEnd) -> None:
    """One row a sound, as drawn, vocoded from true mel frames and through the whole way; both channels."""
    rows = []
    for clip in clips:
        mels = [front_end(sound[None], rate)[0] for sound, rate in (clip.sounds[way] for way in SOUND_WAYS)]
        length = min(mel.shape[1] for mel in mels)
        panels = [functional.pad(mel[:, :length].transpose(1, 2).flip(1), (0, GAP, 0, GAP), value=3.0) for mel in mels]
        rows.append(torch.cat([channel for panel in panels for channel in panel], 1))
    grey = ((torch.cat(rows) - QUIETEST) / (LOUDEST - QUIETEST)).clamp(0, 1) * 255
    large = functional.interpolate(grey[None, None], scale_factor=2.0)[0, 0]
    _save(path, large.byte()[..., None].expand(-1, -1, 3))


def _save(path: Path, pixels: Tensor) -> None:
    """(H, W, 3) uint8 as a PNG."""
    Image.fromarray(pixels.contiguous().numpy()).save(path)
