"""The nouns of diffusion: the pair of streams, their tokens, and how pixels and seconds become tokens.

A video job denoises two streams at once, video and audio; either may be absent. This module knows tokens and shapes,
not models and not samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class AudioVideo(Generic[T]):
    """Something that each of the two streams has; None where the stream is absent."""

    video: T | None = None
    audio: T | None = None

    def map(self, function: Callable[[T], R]) -> AudioVideo[R]:
        """Apply to each stream that is there, video first."""
        return AudioVideo(
            None if self.video is None else function(self.video),
            None if self.audio is None else function(self.audio),
        )

    def present(self) -> Iterator[T]:
        """The streams that are there, video first."""
        if self.video is not None:
            yield self.video
        if self.audio is not None:
            yield self.audio


@dataclass(frozen=True, slots=True)
class LatentState:
    """One stream's tokens, and how free each of them is. Nobody writes to its tensors.

    Tokens appended by conditioning come last and are part of every noise draw.
    """

    latents: Tensor
    """(B, T, C), what the sampler moves."""
    denoise_mask: Tensor
    """(B, T, 1) float32: 1 is generated, 0 is kept as `clean_latents` has it, between is softly held."""
    clean_latents: Tensor
    """(B, T, C)."""
    positions: Tensor
    """(B, num_axes, T, 2) float32: start and end of each token; seconds, then rows and columns in pixels."""
    attention_mask: Tensor | None = None
    """(B, T, T) in [0, 1], or None where all tokens see each other."""
