"""What the transformer is trained on: latents of clips that may be trained on, and their captions, made once and kept.

A clip is drawn, heard and encoded in chunks; what stays is small: 16 KB a clip of 64 pixels, 65 KB of 128.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import patchify_audio
from braid.diffusion.models.ltx2.audio_geometry import read_audio_geometry
from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.statistics import read_statistics
from braid.training.autoencoders.audio import AudioAutoencoder, mel_frames, mel_front_end
from braid.training.autoencoders.drawing import draw
from braid.training.autoencoders.pools import SMALL
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import mixed_precision
from braid.training.autoencoders.upsampler import make_upsampler
from braid.training.autoencoders.video import VideoAutoencoder
from braid.training.denoiser.compact_language_model import WordTable
from braid.training.world.captions import caption
from braid.training.world.motion import trajectory
from braid.training.world.scene import Body, Scene, sample_scene
from braid.training.world.sound import render_sound
from braid.training.world.vocabulary import Background

FRAME_RATE = 24.0
CAPTIONS_A_CLIP = 4
CHUNK_PIXELS = 1 << 21
"""Of a frame of all clips that are drawn at once."""
PANNING_POINTS = 64


@dataclass(frozen=True)
class PoolPlan:
    """Clips of one size and length."""

    size: int
    num_frames: int
    num_clips: int

    @property
    def is_refined(self) -> bool:
        """Whether pipelines make this size in a second stage."""
        return self.size > SMALL


@dataclass(frozen=True)
class Pool:
    """Their latents, normalised, in bfloat16."""

    video: Tensor
    """(N, C, F', H', W')."""
    last: Tensor
    """(N, C, 1, H', W') of the last frame alone."""
    still: Tensor
    """(N, C, 1, H', W') of the frame in the middle, as a picture."""
    audio: Tensor
    """(N, T, channels * bins) tokens."""
    tokens: Tensor
    """(N, CAPTIONS_A_CLIP, L) int16."""
    lengths: Tensor
    """(N, CAPTIONS_A_CLIP) tokens of each caption."""
    begun: Tensor | None = None
    """As `video`, but upsampled from half the size: what a second stage begins with. None where there is none."""
    begun_still: Tensor | None = None
    """The same of `still`."""

    def __len__(self) -> int:
        return len(self.video)


class LatentEncoder:
    """The trained encoders, for many clips at once."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """
        Args:
            folder: of `video_vae.safetensors`, `audio.safetensors` and `upsampler.safetensors`.
        """
        checkpoint = open_ltx2(
            folder / "video_vae.safetensors",
            split_files=[folder / "audio.safetensors"],
            upsampler=folder / "upsampler.safetensors",
        )
        assert checkpoint.upsampler is not None
        video_section, audio_section = checkpoint.section(Part.VIDEO_ENCODER), checkpoint.section(Part.AUDIO_ENCODER)
        self.geometry = read_audio_geometry(audio_section)
        self.device = device
        self._front_end = mel_front_end(dict(audio_section.values))
        video = checkpoint.weights(Part.VIDEO_ENCODER) | checkpoint.weights(Part.VIDEO_DECODER)
        audio = checkpoint.weights(Part.AUDIO_ENCODER) | checkpoint.weights(Part.AUDIO_DECODER)
        num_channels = video_section.integer("latent_channels")
        width = self.geometry.num_channels * self.geometry.num_latent_bins
        self._video_statistics = read_statistics("the video autoencoder", video, num_channels)
        self._audio_statistics = read_statistics("the audio autoencoder", audio, width, 2)
        self._video: Any = _loaded(VideoAutoencoder(dict(video_section.values)), video, device)
        if device.type == "cuda":
            self._video = self._video.to(memory_format=torch.channels_last_3d)
        self._audio: Any = _loaded(AudioAutoencoder(dict(audio_section.values)), audio, device)
        upsampler = make_upsampler(dict(checkpoint.upsampler.section.values))
        self._upsampler: Any = _loaded(upsampler, checkpoint.upsampler.weights(), device)

    @torch.no_grad()
    def video(self, frames: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [0, 1] to (B, C, F', H', W')."""
        with mixed_precision(self.device):
            latents = self._video.encode(frames * 2 - 1)[0]
        return self._video_statistics.normalise(latents).bfloat16()

    @torch.no_grad()
    def upsampled(self, frames: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [0, 1] to latents of twice the height and width, (B, C, F', H', W')."""
        with mixed_precision(self.device):
            latents = self._upsampler(self._video.encode(frames * 2 - 1)[0]).float()
        return self._video_statistics.normalise(latents).bfloat16()

    @torch.no_grad()
    def audio(self, waveforms: Tensor, num_frames: int) -> Tensor:
        """(B, 2, samples) to (B, T, channels * bins), as many tokens as the film is long."""
        with mixed_precision(self.device):
            latents = self._audio.encode(mel_frames(waveforms, self._front_end))[0]
        tokens = self._audio_statistics.normalise(patchify_audio(latents))
        num_tokens = self.geometry.num_latents(num_frames, FRAME_RATE)
        tokens = functional.pad(tokens, (0, 0, 0, max(0, num_tokens - tokens.shape[1])))
        return tokens[:, :num_tokens].bfloat16()


def _loaded(network: Any, weights: dict[str, Tensor], device: torch.device) -> Any:
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("per_channel_statistics.")}
    network.load_state_dict(own)
    return network.to(device).eval().requires_grad_(False)


def make_pool(
    plan: PoolPlan, encoder: LatentEncoder, words: WordTable, rng: random.Random, *, seconds: float = float("inf"),
    style: str | None = None,
) -> Pool:  # fmt: skip
    """Draw and encode; where time runs out the pool is smaller.

    Args:
        style: of all clips.
    """
    end = time.monotonic() + seconds
    size = max(1, CHUNK_PIXELS // plan.size**2)
    chunks: list[Pool] = []
    for start in range(0, plan.num_clips, size):
        number = min(size, plan.num_clips - start)
        scenes = [sample_scene(rng, style=style) for _ in range(number)]
        chunks.append(_encode(scenes, plan, encoder, words, rng))
        if time.monotonic() > end:
            break
    return _joined(chunks)


def make_pools(
    plans: Sequence[PoolPlan], encoder: LatentEncoder, words: WordTable, log: Log, *, seconds: float, seed: int,
    style: str | None = None,
) -> dict[tuple[int, int], Pool]:  # fmt: skip
    """All pools of a run by size and number of frames, each made for its share of the time.

    Args:
        seconds: at most, for all.
        style: of all clips.
    """
    rng = random.Random(seed)
    total = sum(_pixels(plan) for plan in plans)
    pools = {}
    for plan in plans:
        start = time.monotonic()
        pool = make_pool(plan, encoder, words, rng, seconds=seconds * _pixels(plan) / total, style=style)
        pools[plan.size, plan.num_frames] = pool
        took = round(time.monotonic() - start, 1)
        log.write(stage="pool", size=plan.size, frames=plan.num_frames, clips=len(pool), seconds=took)
    return pools


def save_pools(path: Path, pools: Mapping[tuple[int, int], Pool]) -> None:
    """For the next command on the same machine: gigabytes."""
    tensors = {
        f"{size} {num_frames} {field.name}": tensor.contiguous()
        for (size, num_frames), pool in pools.items()
        for field in fields(Pool)
        if (tensor := getattr(pool, field.name)) is not None
    }
    save_file(tensors, path)


def load_pools(path: Path, device: torch.device) -> dict[tuple[int, int], Pool]:
    """What `save_pools` wrote."""
    found: dict[tuple[int, int], dict[str, Tensor]] = {}
    for key, tensor in load_file(path, device=str(device)).items():
        size, num_frames, name = key.split(" ")
        found.setdefault((int(size), int(num_frames)), {})[name] = tensor
    return {key: Pool(**tensors) for key, tensors in found.items()}


def _pixels(plan: PoolPlan) -> float:
    """What a pool costs, roughly: a scene has a price whatever its size."""
    return plan.num_clips * (plan.num_frames * plan.size**2 + 100_000)


def _encode(
    scenes: Sequence[Scene], plan: PoolPlan, encoder: LatentEncoder, words: WordTable, rng: random.Random
) -> Pool:
    frames = draw(scenes, plan.num_frames, plan.size, encoder.device)
    middle = slice(plan.num_frames // 2, plan.num_frames // 2 + 1)
    captions = [caption(scene, rng) for scene in scenes for _ in range(CAPTIONS_A_CLIP)]
    tokens, lengths = words.padded(captions, 128)
    half = draw(scenes, plan.num_frames, plan.size // 2, encoder.device) if plan.is_refined else None
    return Pool(
        video=encoder.video(frames),
        last=encoder.video(frames[:, :, -1:]),
        still=encoder.video(frames[:, :, middle]),
        audio=encoder.audio(sounds_of(scenes, plan.num_frames, encoder.device), plan.num_frames),
        tokens=torch.unflatten(tokens, 0, (-1, CAPTIONS_A_CLIP)).to(encoder.device),
        lengths=torch.unflatten(lengths, 0, (-1, CAPTIONS_A_CLIP)).to(encoder.device),
        begun=None if half is None else encoder.upsampled(half),
        begun_still=None if half is None else encoder.upsampled(half[:, :, middle]),
    )


def _joined(chunks: Sequence[Pool]) -> Pool:
    longest = max(chunk.tokens.shape[-1] for chunk in chunks)
    chunks = [
        replace(chunk, tokens=functional.pad(chunk.tokens, (0, longest - chunk.tokens.shape[-1]))) for chunk in chunks
    ]
    names = [field.name for field in fields(Pool) if getattr(chunks[0], field.name) is not None]
    return Pool(**{name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in names})


def sounds_of(scenes: Sequence[Scene], num_frames: int, device: torch.device) -> Tensor:
    """What `world.sound.render_sound` gives, (N, 2, samples), each kind of sound computed once and then panned."""
    kinds = sorted({scene.sound for scene in scenes})
    waves = torch.stack([_centred(kind, num_frames) for kind in kinds]).to(device)  # (kinds, samples)
    mono = waves[torch.tensor([kinds.index(scene.sound) for scene in scenes], device=device)]
    time_points = torch.linspace(0, 1, PANNING_POINTS)
    places = torch.stack([trajectory(scene.bodies[0], time_points).x.clamp(0, 1) for scene in scenes]).to(device)
    right = functional.interpolate(places[:, None], mono.shape[1], mode="linear", align_corners=True)[:, 0]
    return mono[:, None] * torch.stack(((2 * (1 - right)).sqrt(), (2 * right).sqrt()), 1)


def _centred(kind: str, num_frames: int) -> Tensor:
    """One channel of the sound of something in the middle, which both ears hear alike."""
    body = Body("circle", "red", "medium", "still", 0.5, 0.5, 0.0, 0.0, 1.0)
    scene = Scene((body,), Background("plain", ("grey",)), 0.0, kind)
    return render_sound([scene], num_frames, FRAME_RATE)[0, 0]
