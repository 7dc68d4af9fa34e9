"""Batches: which clips, which task, how much noise; and what the transformer should answer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from braid.diffusion.latents import AudioVideo, LatentState, each, patchify_video
from braid.diffusion.positions import VideoGrid
from braid.diffusion.schedules import STAGE_2_SIGMAS
from braid.training.autoencoders.pools import SMALL
from braid.training.denoiser import tasks
from braid.training.denoiser.latent_pools import Pool
from braid.training.denoiser.network import NoisyStream
from braid.training.denoiser.noise_levels import draw_refining_sigmas, draw_sigmas

EMPTY_SHARE = 0.1
"""Of captions that are left away, for guidance."""
OTHER_LEVEL_SHARE = 0.1
"""Of samples whose sound has another noise level than the picture."""
REFINING_SHARE = 0.5
"""Of samples at full size that have the levels of a second stage."""
BEGUN_SHARE = 0.6
"""Of samples at a level of a second stage that are on its way from what a first stage leaves."""
DRAWN_AT_ONCE = 8
"""Batches of a kind: drawing is some two hundred small operations, whatever the number of clips."""


@dataclass(frozen=True)
class BatchKind:
    """A kind of batch, and how often it is drawn."""

    name: str
    size: int
    num_frames: int
    num_clips: int
    weight: float
    form: str = "mixed"
    """`mixed` tasks, `last_frame` appended, `silent` (video alone), `picture` or `sound` (audio alone)."""
    is_common: bool = False
    """Drawn so often, always in one shape, that making the network faster for it pays."""


@dataclass(frozen=True)
class NoisedState:
    """One stream: what the transformer sees but for the text, and what it should say."""

    latents: Tensor
    sigma: Tensor
    is_free: Tensor
    positions: Tensor
    target: Tensor
    """(B, T, C) velocity."""
    layout: str
    """See `NoisyStream`."""

    def with_context(self, context: Tensor) -> NoisyStream:
        """For the network."""
        return NoisyStream(self.latents, self.sigma, self.is_free, self.positions, context, self.layout)

    def losses(self, velocity: Tensor) -> Tensor:
        """(B,) mean square over the tokens that are to be made; 0 where there are none."""
        square = (velocity.float() - self.target.float()).square().mean(-1, keepdim=True) * self.is_free
        return square.sum((1, 2)) / self.is_free.sum((1, 2)).clamp(min=1)


def with_contexts(states: AudioVideo[NoisedState], contexts: AudioVideo[Tensor]) -> AudioVideo[NoisyStream]:
    """All streams for the network."""
    return each(lambda state, context: state.with_context(context), states, contexts)


@dataclass(frozen=True)
class Batch:
    """Ready but for the text's contexts."""

    streams: AudioVideo[NoisedState]
    tokens: Tensor
    """(B, L) of captions."""
    lengths: Tensor
    """(B,), 0 where the caption was left away."""


NOISED = ("latents", "sigma", "is_free", "target")
"""What of a stream differs between batches of a kind."""


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """All that differs between batches of a kind, in a fixed order."""
    streams = [getattr(state, name) for state in batch.streams.present() for name in NOISED]
    return (*streams, batch.tokens, batch.lengths)


def with_tensors(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """A batch of the same kind, of other `tensors_of`."""
    values: Iterator[Any] = iter(tensors)
    streams = batch.streams.map(lambda state: replace(state, **{name: next(values) for name in NOISED}))
    return Batch(streams, next(values), next(values))


def every(batch: Batch, step: int, first: int) -> Batch:
    """A batch of one sample in `step`; as each task has samples that lie together, tasks keep their shares."""
    return with_tensors(batch, [tensor[first::step].contiguous() for tensor in tensors_of(batch)])


FORMS: Mapping[str, tasks.Task] = {
    "mixed": tasks.mixed, "last_frame": tasks.last_frame, "silent": tasks.silent, "picture": tasks.free,
    "sound": tasks.free,
}  # fmt: skip


def _nothing(pool: Pool) -> Tensor | None:
    return None


BEGUN: Mapping[str, Callable[[Pool], Tensor | None]] = {
    "mixed": lambda pool: pool.begun, "silent": lambda pool: pool.begun, "picture": lambda pool: pool.begun_still,
}  # fmt: skip
"""What a second stage begins with, for forms whose tokens of video are those of the clip, one for one."""

Levels = Callable[[BatchKind, int, Generator], tuple[Tensor, Tensor]]
"""Noise levels of video and audio, (B,) each, for so many tokens of video."""


def training_levels(kind: BatchKind, num_tokens: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mostly the same of both streams, sometimes one of each."""
    sigmas, others = _sigmas(kind, num_tokens, generator), _sigmas(kind, num_tokens, generator)
    is_other = torch.rand(kind.num_clips, generator=generator, device=generator.device) < OTHER_LEVEL_SHARE
    return sigmas, torch.where(is_other, others, sigmas)


def _sigmas(kind: BatchKind, num_tokens: int, generator: Generator) -> Tensor:
    sigmas = draw_sigmas(kind.num_clips, num_tokens, generator)
    if kind.size <= SMALL:
        return sigmas
    is_refining = torch.rand(kind.num_clips, generator=generator, device=generator.device) < REFINING_SHARE
    return torch.where(is_refining, draw_refining_sigmas(kind.num_clips, generator), sigmas)


class BatchMaker:
    """Draws batches of the kinds that there are pools for.

    Args:
        pools: by size and number of frames.
        generator: on the device of the pools.
        levels: draws noise levels.
    """

    def __init__(
        self, kinds: tuple[BatchKind, ...], pools: Mapping[tuple[int, int], Pool], generator: Generator,
        *, levels: Levels = training_levels,
    ) -> None:  # fmt: skip
        self._kinds, self._pools, self._generator = kinds, pools, generator
        self._levels = levels
        self._choices = Generator().manual_seed(generator.initial_seed())
        self._rng = random.Random(generator.initial_seed())
        self._waiting: defaultdict[str, list[Batch]] = defaultdict(list)

    def kind(self) -> BatchKind:
        """The next one."""
        return self._rng.choices(self._kinds, [kind.weight for kind in self._kinds])[0]

    def draw(self, kind: BatchKind) -> Batch:
        """A batch of a kind."""
        waiting = self._waiting[kind.name]
        if not waiting:
            many = self._draw(replace(kind, num_clips=kind.num_clips * DRAWN_AT_ONCE))
            waiting += [every(many, DRAWN_AT_ONCE, first) for first in range(DRAWN_AT_ONCE)]
        return waiting.pop()

    def _draw(self, kind: BatchKind) -> Batch:
        pool = self._pools[kind.size, kind.num_frames]
        rows = self._integers(len(pool), kind.num_clips)
        captions = self._integers(pool.tokens.shape[1], kind.num_clips)
        is_said = self._uniform(kind.num_clips) >= EMPTY_SHARE
        begun = BEGUN.get(kind.form, _nothing)(pool)
        return Batch(
            self._noised(kind, self._states(kind, pool, rows), None if begun is None else begun[rows]),
            pool.tokens[rows, captions],
            pool.lengths[rows, captions] * is_said,
        )

    def _states(self, kind: BatchKind, pool: Pool, rows: Tensor) -> AudioVideo[LatentState]:
        has_video, has_audio = kind.form != "sound", kind.form not in ("silent", "picture")
        video = pool.still[rows] if kind.form == "picture" else pool.video[rows] if has_video else None
        frames, height, width = pool.video.shape[2:]
        time_factor, factor = (kind.num_frames - 1) // (frames - 1), kind.size // height
        grid = VideoGrid(1 if kind.form == "picture" else frames, height, width, time_factor, factor, factor)
        clips = tasks.Clips(video, pool.audio[rows] if has_audio else None, pool.last[rows], grid)
        return FORMS[kind.form](clips, self._choices)

    def _noised(
        self, kind: BatchKind, states: AudioVideo[LatentState], begun: Tensor | None
    ) -> AudioVideo[NoisedState]:
        stream = states.audio if states.video is None else states.video
        assert stream is not None
        levels = AudioVideo(*self._levels(kind, stream.num_tokens, self._generator))
        form = f"{kind.size} {kind.num_frames} {kind.form}"
        layouts = AudioVideo(f"{form} video", f"{form} audio")
        noises = states.map(lambda state: self._normal(state.clean_latents))
        if begun is not None:
            assert states.video is not None and noises.video is not None and levels.video is not None
            noise = self._from_begun(noises.video, states.video.clean_latents, patchify_video(begun), levels.video)
            noises = replace(noises, video=noise)
        return each(_noised, states, noises, levels, layouts)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator, device=like.device)

    def _from_begun(self, noise: Tensor, clean: Tensor, begun: Tensor, sigma: Tensor) -> Tensor:
        """Noise whose straight way to `clean` goes through what a second stage begins with, for some samples.

        That is begun * (1 - s) + noise * s at s = STAGE_2_SIGMAS[0]. Noised truth has truth's outlines in it, and a
        model that was shown nothing else leaves those of a first stage as they are.
        """
        first = STAGE_2_SIGMAS[0]
        chosen = (sigma <= first + 1e-4) & (self._uniform(len(sigma)) < BEGUN_SHARE)
        return noise + (1 - first) / first * (begun.float() - clean.float()) * chosen[:, None, None]

    def _integers(self, below: int, number: int) -> Tensor:
        return torch.randint(below, (number,), generator=self._generator, device=self._generator.device)

    def _uniform(self, number: int) -> Tensor:
        return torch.rand(number, generator=self._generator, device=self._generator.device)


def _noised(state: LatentState, noise: Tensor, sigma: Tensor, layout: str) -> NoisedState:
    clean = state.clean_latents
    is_free = state.denoise_mask > 0
    level = sigma[:, None, None] * is_free
    # a stream that is given as a whole is at level 0, and the model is told so
    sigma = torch.where(is_free.any(1)[:, 0], sigma, torch.zeros_like(sigma))
    latents = torch.lerp(clean.float(), noise, level)
    target = (noise - clean.float()).to(clean)
    return NoisedState(latents.to(clean), sigma, is_free, state.positions[:1], target, layout)
