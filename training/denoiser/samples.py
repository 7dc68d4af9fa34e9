"""What a set of weights films: prompts of untrained combinations, sampled in batches and judged by the checker.

The transformer is the one that serves; batches make it fast here, and differ from single requests by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from braid.diffusion.guidance import Guidance, Pass, combine
from braid.diffusion.latents import (
    AudioVideo,
    LatentState,
    add_noise,
    each,
    free_state,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream, denoised
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.diffusion.models.ltx2.video_geometry import VideoGeometry
from braid.diffusion.models.ltx2.video_vae import to_uint8_frames
from braid.diffusion.positions import VideoGrid, audio_positions, video_positions
from braid.diffusion.samplers import euler
from braid.diffusion.sampling_state import Evaluation, drive
from braid.diffusion.schedules import STAGE_2_SIGMAS, ltx2_sigmas
from braid.training.autoencoders.evaluation import Autoencoders
from braid.training.denoiser.compact_language_model import CompactLanguageModel
from braid.training.denoiser.configs import Shape
from braid.training.denoiser.connectors import Connectors, Text
from braid.training.denoiser.latent_pools import FRAME_RATE
from braid.training.world.judging import Prompt, Tally, Verdict, judged, read_film

NUM_FRAMES = 25
SHOWN_FRAMES = (0, 6, 12, 18, 24)
THREADS = 8


@dataclass(frozen=True)
class Settings:
    """How prompts are sampled."""

    size: int = 64
    num_frames: int = NUM_FRAMES
    num_steps: int = 30
    guidance_scale: float = 3.0
    batch_size: int = 64
    seed: int = 0

    def grid(self, geometry: VideoGeometry) -> VideoGrid:
        """Of the latents."""
        rows, factor = self.size // geometry.space_factor, geometry.space_factor
        frames = geometry.num_latent_frames(self.num_frames)
        return VideoGrid(frames, rows, rows, geometry.time_factor, factor, factor)


@dataclass(frozen=True)
class Film:
    """One prompt's result."""

    frames: Tensor
    """(F, H, W, 3) uint8."""
    waveform: Tensor
    """(2, samples)."""
    sample_rate: int


class Sampler:
    """Prompts to latents, and latents to films.

    Args:
        weights: bfloat16 or float32, by official name without prefix, on the device of everything else.
    """

    def __init__(
        self, shape: Shape, weights: Mapping[str, Tensor], language_model: CompactLanguageModel,
        autoencoders: Autoencoders, device: torch.device,
    ) -> None:  # fmt: skip
        self._transformer = LTX2Transformer(TransformerConfig.from_metadata(shape.section), weights)
        self._shape, self._weights, self._device = shape, weights, device
        self._connectors, self._language_model = Connectors(shape), language_model
        self._autoencoders = autoencoders

    @torch.inference_mode()
    def contexts(self, prompts: Sequence[str]) -> AudioVideo[Tensor]:
        """Of some prompts; an empty one is no text at all."""
        tokens, lengths = self._language_model.words.padded(prompts, self._shape.text.max_length)
        if tokens.shape[1] == 0:
            tokens = torch.zeros(len(prompts), 1, dtype=torch.int16)
        text = Text(self._language_model.hidden_states(tokens), lengths.to(self._device))
        return self._connectors(self._weights, text)

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[str], settings: Settings, *, begun: AudioVideo[Tensor] | None = None
    ) -> AudioVideo[Tensor]:
        """Latents (N, C, F', H', W') and (N, C, T, M).

        Args:
            begun: latents of a first stage, upsampled, which are refined without guidance.
        """
        parts = []
        for start in range(0, len(prompts), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            first = None if begun is None else begun.map(partial(_rows, rows=rows))
            parts.append(self._batch(prompts[rows], settings, first, settings.seed + start))
        return AudioVideo(
            torch.cat([part.video for part in parts if part.video is not None]),
            torch.cat([part.audio for part in parts if part.audio is not None]),
        )

    def _batch(
        self, prompts: Sequence[str], settings: Settings, begun: AudioVideo[Tensor] | None, seed: int
    ) -> AudioVideo[Tensor]:
        video, audio = self._autoencoders.video_encoder.geometry, self._autoencoders.audio_encoder.geometry
        grid = settings.grid(video)
        generator = Generator(self._device).manual_seed(seed)
        number = len(prompts)
        num_audio = audio.num_latents(settings.num_frames, FRAME_RATE)
        empty = AudioVideo(
            self._zeros(number, grid.num_tokens, video.num_channels),
            self._zeros(number, num_audio, audio.token_width),
        )
        tokens = empty if begun is None else AudioVideo(
            patchify_video(_there(begun.video)), patchify_audio(_there(begun.audio))
        )
        positions = AudioVideo(
            video_positions(grid, FRAME_RATE), audio_positions(num_audio, time_factor=audio.time_factor)
        )
        sigmas = ltx2_sigmas(settings.num_steps) if begun is None else torch.tensor(STAGE_2_SIGMAS)
        begin = partial(self._noised, generator=generator, sigma=float(sigmas[0]))
        states = each(begin, tokens, positions)
        guidance_scale = settings.guidance_scale if begun is None else 1.0
        result = self._run(prompts, states, sigmas, guidance_scale)
        return AudioVideo(
            unpatchify_video(_there(result.video), grid.frames, grid.height, grid.width),
            unpatchify_audio(_there(result.audio), audio.num_channels),
        )

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self._transformer.dtype, device=self._device)

    def _noised(self, tokens: Tensor, positions: Tensor, *, generator: Generator, sigma: float) -> LatentState:
        positions = positions.to(self._device).expand(len(tokens), -1, -1, -1)
        state = free_state(tokens.to(self._transformer.dtype), positions)
        noise = torch.randn(tokens.shape, generator=generator, device=self._device)
        return add_noise(state, noise, sigma)

    def _run(
        self, prompts: Sequence[str], states: AudioVideo[LatentState], sigmas: Tensor, guidance_scale: float
    ) -> AudioVideo[Tensor]:
        contexts = {Pass.CONDITIONAL: self.contexts(prompts)}
        if guidance_scale != 1:
            contexts[Pass.UNCONDITIONAL] = self.contexts([""] * len(prompts))
        estimate = partial(self._estimate, states=states, contexts=contexts, guidance_scale=guidance_scale)
        return drive(euler(None, sigmas, states), estimate)

    def _estimate(
        self, asked: Evaluation, *, states: AudioVideo[LatentState],
        contexts: Mapping[Pass, AudioVideo[Tensor]], guidance_scale: float,
    ) -> AudioVideo[Tensor]:  # fmt: skip
        estimates = {}
        for kind, context in contexts.items():
            streams = each(partial(_stream, sigma=asked.sigma), asked.latents, states, context)
            velocities = self._transformer.forward(streams, together=True)
            estimates[kind] = each(lambda s, v: denoised(s.latents, s.timesteps, v), streams, velocities)
        guide = Guidance(guidance_scale)
        return AudioVideo(
            combine(guide, {kind: _there(one.video) for kind, one in estimates.items()}),
            combine(guide, {kind: _there(one.audio) for kind, one in estimates.items()}),
        )

    @torch.inference_mode()
    def upsampled(self, latents: AudioVideo[Tensor]) -> AudioVideo[Tensor]:
        """Twice the rows and columns of pictures; sound as it is."""
        video = [self._autoencoders.upsampler(one[None]) for one in _there(latents.video)]
        return AudioVideo(torch.cat(video), latents.audio)

    @torch.inference_mode()
    def films(self, latents: AudioVideo[Tensor]) -> list[Film]:
        """Decoded one after the other."""
        models, films = self._autoencoders, []
        for video, audio in zip(_there(latents.video), _there(latents.audio), strict=True):
            frames = to_uint8_frames(finish(models.video_decoder.decode(video[None])))
            waveform = models.vocoder(models.audio_decoder.decode(audio[None]))[0].cpu()
            films.append(Film(frames, waveform, models.vocoder.sample_rate))
        return films


def _stream(latents: Tensor, state: LatentState, context: Tensor, *, sigma: float) -> Stream:
    return Stream(
        latents=latents,
        sigma=torch.full((len(latents),), sigma, device=latents.device),
        timesteps=state.denoise_mask * sigma,
        positions=state.positions,
        context=context,
    )


def _rows(latents: Tensor, *, rows: slice) -> Tensor:
    return latents[rows]


def _there(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def claims_right(prompts: Sequence[Prompt], films: Sequence[Film]) -> dict[str, float]:
    """The share of claims that the checker finds right, by kind, and of all."""
    tally = Tally()
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(_judged, prompts, films):
            tally.add(found)
    return tally.shares()


def _judged(prompt: Prompt, film: Film) -> list[Verdict]:
    return judged(prompt.scene, read_film(prompt.scene, film.frames, film.waveform, film.sample_rate))


def save_sheet(path: Path, prompts: Sequence[Prompt], films: Sequence[Film]) -> None:
    """One row a prompt: its words, and five frames."""
    from PIL import Image, ImageDraw

    side, words = 128, 22
    picture: Any = Image.new("RGB", (side * len(SHOWN_FRAMES), (side + words) * len(films)), "white")
    pen: Any = ImageDraw.Draw(picture)
    for row, (prompt, film) in enumerate(zip(prompts, films, strict=True)):
        top = row * (side + words)
        pen.text((2, top + 4), prompt.text, fill="black")
        for column, frame in enumerate(SHOWN_FRAMES):
            shown = Image.fromarray(film.frames[frame].numpy()).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(shown, (column * side, top + words))
    picture.save(path)
