"""Training the video autoencoder: pixels, edges and movement as drawn, and latents that noise does not hurt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.diffusion.models.ltx2.video_network import (
    DecoderNetwork,
    EncoderNetwork,
    depth_to_space,
    pixel_norm,
    read_video_config,
    space_to_depth,
)
from braid.training.autoencoders.configs import ConfigSection
from braid.training.autoencoders.drawn_latents import LatentNoise, decode_drawn
from braid.training.autoencoders.pools import Clips
from braid.training.autoencoders.trainee import Trainee, mixed_precision

EDGE_SCALES = (1, 2, 4)
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0
MOVING_WEIGHT = 8.0
"""Of a pixel that changes by half the range of brightness from one frame to the next, beside 1 of one that stands."""
NEARBY = 5
"""Pixels around one that moves count as much as it does."""
DIVERGENCE_WEIGHT = 5e-4
"""Of the latents' divergence from a standard normal, per number: the noise that the decoder learns to bear."""
LOG_VARIANCE_RANGE = (-12.0, 4.0)


class VideoAutoencoder(nn.Module):
    """Encoder and decoder in the autoencoder's own scale: latents are not normalised."""

    def __init__(self, section: ConfigSection) -> None:
        super().__init__()
        self._config = read_video_config(Section(Path("vae"), "vae", section))
        self.encoder: Any = EncoderNetwork(self._config)
        self.decoder: Any = DecoderNetwork(self._config)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Means (B, C, F', H', W') and log-variance (B, 1, F', H', W') of (B, 3, F, H, W) in [-1, 1]."""
        hidden_states = self.encoder.conv_in(space_to_depth(frames, self._config.patch_size), causal=True)
        for block in _blocks(self.encoder.down_blocks):
            hidden_states = block(hidden_states, causal=True)
        moments = self.encoder.conv_out(functional.silu(pixel_norm(hidden_states)), causal=True).float()
        num_channels = self._config.num_channels
        return moments[:, :num_channels], moments[:, num_channels:].clamp(*LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, F, H, W) float32, about -1 to 1."""
        is_causal = self._config.is_decoder_causal
        hidden_states = self.decoder.conv_in(latents, causal=is_causal)
        for block in _blocks(self.decoder.up_blocks):
            hidden_states = block(hidden_states, causal=is_causal)
        patches = self.decoder.conv_out(functional.silu(pixel_norm(hidden_states)), causal=is_causal)
        return depth_to_space(patches, self._config.patch_size).float()


def _blocks(rungs: Iterable[Any]) -> Iterable[Any]:
    for rung in rungs:
        yield from getattr(rung, "res_blocks", (rung,))


@dataclass(frozen=True)
class VideoBatch:
    """A kind of batch, and how often it is drawn."""

    size: int
    num_frames: int
    num_clips: int
    weight: float
    crop: int = 0
    """Pixels of a square around a body; 0 is the whole picture. Most of a picture stands still and is learnt early."""

    @property
    def kind(self) -> str:
        """A name."""
        return f"{self.num_clips} of {self.num_frames} frames of {self.size}, {self.crop}"


class VideoTraining:
    """One step after another over batches of all sizes and lengths."""

    name = "video"

    def __init__(
        self, trainee: Trainee, pools: Mapping[int, Clips], batches: tuple[VideoBatch, ...], generator: Generator
    ) -> None:
        self.trainee = trainee
        self._pools = list(pools.values())
        self._batches = batches
        self._weights = torch.tensor([batch.weight for batch in batches])
        self._noise = LatentNoise(trainee.network, generator)
        # On the CPU: what is chosen there need not wait for the GPU.
        self._choices = Generator().manual_seed(generator.initial_seed())

    def draw(self) -> tuple[str, tuple[Tensor, ...]]:
        """The next batch's kind, its frames, and noise for their latents."""
        batch = self._batches[int(torch.multinomial(self._weights, 1, generator=self._choices))]
        able = [pool for pool in self._pools if pool.small.shape[2] >= batch.num_frames]
        pool = able[int(torch.randint(len(able), (1,), generator=self._choices))]
        frames = pool.batch(batch.size, batch.num_frames, batch.num_clips, self._choices, crop=batch.crop)
        return batch.kind, (frames, self._noise.draw(frames))

    def loss_of(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of these frames, (B, 3, F, H, W) in [-1, 1]."""
        decoded, divergence = decode_drawn(self.trainee.network, frames, noise)
        error, weights = decoded - frames, importance(frames)
        figures = {
            "l1": (weights * error.abs()).mean(),
            "square": (weights * error.square()).mean(),
            "edges": edge_distance(weights * error),
            "divergence": divergence,
        }
        loss = (
            figures["l1"] + SQUARE_WEIGHT * figures["square"] + EDGE_WEIGHT * figures["edges"]
            + DIVERGENCE_WEIGHT * figures["divergence"]
        )  # fmt: skip
        figures["psnr"] = -10 * torch.log10(error.detach().square().mean() / 4)
        return loss, figures


def importance(frames: Tensor) -> Tensor:
    """Weights of pixels, (B, 1, F, H, W) with mean 1: what moves counts more than what stands still.

    Most of a clip stands still, and a blur where something moves costs little by the mean of all pixels.
    """
    if frames.shape[2] == 1:
        return torch.ones_like(frames[:, :1])
    steps = frames.diff(dim=2).abs().amax(1, keepdim=True)  # (B, 1, F - 1, H, W)
    moving = torch.maximum(functional.pad(steps, (0, 0, 0, 0, 1, 0)), functional.pad(steps, (0, 0, 0, 0, 0, 1)))
    nearby = functional.max_pool3d(moving, (1, NEARBY, NEARBY), 1, (0, NEARBY // 2, NEARBY // 2))
    weights = 1 + MOVING_WEIGHT * nearby.clamp(max=1)
    return weights / weights.mean()


def edge_distance(error: Tensor) -> Tensor:
    """How much the differences of neighbours differ, in space at several scales and in time.

    Differences are linear, so those of two clips are compared by those of their difference, (B, 3, F, H, W).
    """
    total = torch.zeros((), device=error.device)
    planes = error.transpose(1, 2).flatten(0, 1)  # (B * F, 3, H, W)
    for scale in EDGE_SCALES:
        coarse = functional.avg_pool2d(planes, scale) if scale > 1 else planes
        total = total + coarse.diff(dim=2).abs().mean() + coarse.diff(dim=3).abs().mean()
    return total + error.diff(dim=2).abs().mean() if error.shape[2] > 1 else total


@torch.no_grad()
def measure_statistics(network: Any, batches: Iterable[Tensor]) -> LatentStatistics:
    """Mean and deviation of each channel of the latents of these clips."""
    latents = []
    for frames in batches:
        with mixed_precision(frames.device):
            latents.append(network.encode(frames)[0].transpose(0, 1).flatten(1).double())
    numbers = torch.cat(latents, 1)  # (C, positions)
    return LatentStatistics(numbers.mean(1).float(), numbers.std(1).float())
