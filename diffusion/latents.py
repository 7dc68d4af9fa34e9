"""The nouns of diffusion: the pair of streams, their tokens, and how pixels and seconds become tokens.

A video job denoises two streams at once, video and audio; either may be absent. This module knows tokens and shapes,
not models and not samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
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


def each(function: Callable[..., R], first: AudioVideo[Any], *others: AudioVideo[Any]) -> AudioVideo[R]:
    """`function(first.video, other.video, ...)`, then the same of audio; only for streams that `first` has."""
    return AudioVideo(
        None if first.video is None else function(first.video, *(other.video for other in others)),
        None if first.audio is None else function(first.audio, *(other.audio for other in others)),
    )


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
    is_frozen: bool = False
    """The whole stream is given (sound to film to): the model is told sigma 0 for it, whatever the other's sigma."""

    @property
    def num_tokens(self) -> int:
        return self.latents.shape[1]


def patchify_video(latents: Tensor) -> Tensor:
    """(B, C, F, H, W) to tokens (B, F*H*W, C): frame by frame, row by row."""
    return latents.flatten(2).transpose(1, 2)


def unpatchify_video(tokens: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Tokens (B, F*H*W, C) back to (B, C, F, H, W)."""
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, frames, height, width)


def patchify_audio(latents: Tensor) -> Tensor:
    """(B, C, T, M) to tokens (B, T, C*M), channel-major."""
    return latents.transpose(1, 2).flatten(2)


def unpatchify_audio(tokens: Tensor, channels: int) -> Tensor:
    """Tokens (B, T, C*M) back to (B, C, T, M)."""
    batch, num_tokens, width = tokens.shape
    return tokens.reshape(batch, num_tokens, channels, width // channels).transpose(1, 2)


def free_state(tokens: Tensor, positions: Tensor) -> LatentState:
    """Every token is to be generated, from `tokens` (B, T, C): zeros, or what an earlier stage left."""
    mask = torch.ones(*tokens.shape[:2], 1, dtype=torch.float32, device=tokens.device)
    return LatentState(tokens, mask, tokens, positions)


def add_noise(state: LatentState, noise: Tensor, noise_scale: float = 1.0) -> LatentState:
    """The state from which sampling starts: its latents are moved to noise, and back to `clean` where they are held.

    Args:
        noise: (B, T, C) standard normal, a draw for appended tokens included.
        noise_scale: the first sigma: 1 where nothing is known, less to refine `state.latents`.
    Source: specs of LTX-2, initial noise; the arithmetic is float32, the result has the dtype of the latents.
    """
    noised = torch.lerp(state.latents.float(), noise.float(), noise_scale)
    noised = torch.lerp(state.clean_latents.float(), noised, state.denoise_mask.float())
    return replace(state, latents=noised.to(state.latents.dtype))


def blend_clean(denoised: Tensor, state: LatentState) -> Tensor:
    """An x0 estimate, drawn towards `clean_latents` as far as each token is held. Keeps the dtype of `denoised`."""
    mask = state.denoise_mask
    return (denoised * mask + state.clean_latents.float() * (1 - mask)).to(denoised.dtype)


def drop_appended(tokens: Tensor, num_generated: int) -> Tensor:
    """Only the stream's own tokens: what conditioning appended stands at the end and goes by count."""
    return tokens[:, :num_generated]
