"""What must be known of a checkpoint to judge a request, without touching a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from braid.diffusion.models.ltx2.geometry import Geometry
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.presets import Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Of one checkpoint and of what was loaded beside it."""

    name: str
    geometry: Geometry
    presets: Mapping[str, Preset]
    parts: frozenset[Part]
    has_video: bool
    """The transformer has a video stream."""
    has_audio: bool
    num_blocks: int
    context_widths: tuple[int, int]
    """Of the prompt embeds that the transformer takes: video, audio; 0 where the stream is absent."""
    has_upsampler: bool
    has_language_model: bool
    """The one that the checkpoint's text projection was trained with is in memory."""
    dtype: torch.dtype
    """Of the latents."""
    device: str
    distilled_adapter: str | None = None
    has_adapter: Callable[[str], bool] = lambda name: False
    """Whether the adapter store knows a name."""
