"""Files that people send: `picture.png`, `sound.wav`, `clip.mp4`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch

from braid.multimodal.images import save_image
from braid.multimodal.sound import save_wav
from braid.multimodal.video_writer import VideoWriter


def write_media(folder: Path) -> Path:
    """A picture, a sound, and a film of 17 frames with sound."""
    generator = torch.Generator().manual_seed(3)
    save_image(folder / "picture.png", torch.randint(0, 256, (48, 80, 3), generator=generator, dtype=torch.uint8))
    save_wav(folder / "sound.wav", torch.randn(2, 16000, generator=generator) / 4, 16000)
    writer = VideoWriter(folder / "clip.mp4", height=64, width=64, frame_rate=Fraction(12), sample_rate=16000)
    writer.add_frames(torch.randint(0, 256, (17, 64, 64, 3), generator=generator, dtype=torch.uint8))
    writer.add_audio(torch.randn(2, 16000, generator=generator) / 4)
    writer.close()
    return folder
