"""What a sample is given and what it must make: the forms of conditioning that the pipelines use, for parts of a batch.

Each task takes the true tokens of both streams and says which of them are held, by the functions of
`diffusion.conditioning`; so whatever a pipeline asks for has been trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Generator, Tensor

from braid.diffusion import conditioning
from braid.diffusion.latents import AudioVideo, LatentState, each, free_state, patchify_video
from braid.diffusion.positions import VideoGrid, audio_positions, video_positions
from braid.training.denoiser.latent_pools import FRAME_RATE

Streams = AudioVideo[LatentState]


@dataclass(frozen=True)
class Clips:
    """Some clips' latents; streams that a batch has not are None."""

    video: Tensor | None
    """(B, C, F', H', W')."""
    audio: Tensor | None
    """(B, T, width)."""
    last: Tensor
    """(B, C, 1, H', W')."""
    grid: VideoGrid
    audio_time_factor: int = 4

    def part(self, rows: slice) -> Clips:
        """Some of them."""
        video, audio = (None if one is None else one[rows] for one in (self.video, self.audio))
        return replace(self, video=video, audio=audio, last=self.last[rows])


def free(clips: Clips, generator: Generator) -> Streams:
    """Everything is made from the text."""
    video, audio = clips.video, clips.audio
    return AudioVideo(
        None if video is None else _free(patchify_video(video), _video_places(clips.grid, video.device)),
        None
        if audio is None
        else _free(audio, _audio_places(audio.shape[1], clips.audio_time_factor, audio.device)),
    )


def _free(tokens: Tensor, positions: Tensor) -> LatentState:
    return free_state(tokens, positions.expand(len(tokens), -1, -1, -1))


@lru_cache(maxsize=32)
def _video_places(grid: VideoGrid, device: torch.device) -> Tensor:
    """Positions on the device, brought there once: a GPU would be waited for each time."""
    return video_positions(grid, FRAME_RATE).to(device)


@lru_cache(maxsize=32)
def _audio_places(num_tokens: int, time_factor: int, device: torch.device) -> Tensor:
    return audio_positions(num_tokens, time_factor=time_factor).to(device)


def first_frame(clips: Clips, generator: Generator) -> Streams:
    """A picture begins to move."""
    return _with_prefix(clips, free(clips, generator), 1)


def prefix(clips: Clips, generator: Generator) -> Streams:
    """A clip goes on, and so does its sound."""
    num_frames = 1 + _integer(max(1, clips.grid.frames - 2), generator)
    streams = _with_prefix(clips, free(clips, generator), num_frames)
    if streams.audio is None or streams.video is None:
        return streams
    end_s = ((num_frames - 1) * clips.grid.time_factor + 1) / FRAME_RATE
    audio = streams.audio
    is_held = audio.positions[:, 0, :, 1] <= end_s
    return replace(streams, audio=conditioning.hold_masked(audio, audio.latents, is_held))


def _with_prefix(clips: Clips, streams: Streams, num_frames: int) -> Streams:
    if streams.video is None or clips.video is None:
        return streams
    held = clips.video[:, :, :num_frames]
    return replace(streams, video=conditioning.hold_latent_frames(streams.video, held, clips.grid))


def given_sound(clips: Clips, generator: Generator) -> Streams:
    """A film to a sound."""
    streams = free(clips, generator)
    return replace(streams, audio=None if streams.audio is None else conditioning.freeze(streams.audio))


def given_film(clips: Clips, generator: Generator) -> Streams:
    """A sound to a film."""
    streams = free(clips, generator)
    return replace(streams, video=None if streams.video is None else conditioning.freeze(streams.video))


def window(clips: Clips, generator: Generator) -> Streams:
    """A stretch of time is made anew, in both streams."""
    length_s = ((clips.grid.frames - 1) * clips.grid.time_factor + 1) / FRAME_RATE
    width = 0.3 + 0.4 * _uniform(generator)
    start = (1 - width) * _uniform(generator)
    cpu = torch.device("cpu")
    places = AudioVideo(
        None if clips.video is None else _video_places(clips.grid, cpu),
        None if clips.audio is None else _audio_places(clips.audio.shape[1], clips.audio_time_factor, cpu),
    )
    hold = partial(_with_window, start_s=start * length_s, end_s=(start + width) * length_s)
    return each(hold, free(clips, generator), places)


def _with_window(state: LatentState, places: Tensor, *, start_s: float, end_s: float) -> LatentState:
    """What is free is decided on the CPU, for one sample: a GPU would be waited for."""
    one = free_state(torch.zeros(1, state.num_tokens, 1), places)
    mask = conditioning.retake(one, start_s, end_s).denoise_mask.to(state.latents.device, non_blocking=True)
    return replace(state, denoise_mask=mask.expand(len(state.latents), -1, 1))


def last_frame(clips: Clips, generator: Generator) -> Streams:
    """A picture that the clip arrives at, appended; sometimes the first one stands too."""
    streams = first_frame(clips, generator) if _uniform(generator) < 0.5 else free(clips, generator)
    assert streams.video is not None
    frame_index = (clips.grid.frames - 1) * clips.grid.time_factor
    video = conditioning.append_keyframes(
        streams.video, clips.last, clips.grid, frame_index=frame_index, frame_rate=FRAME_RATE
    )
    return replace(streams, video=video)


Task = Callable[[Clips, Generator], Streams]
MIXED: Mapping[Task, float] = {
    free: 0.62, first_frame: 0.12, prefix: 0.07, given_sound: 0.08, given_film: 0.03, window: 0.08,
}  # fmt: skip
"""Shares of a batch."""


SILENT: Mapping[Task, float] = {free: 0.7, first_frame: 0.2, prefix: 0.1}
"""The same of batches without sound."""


def mixed(clips: Clips, generator: Generator) -> Streams:
    """Every task for its share of the batch."""
    return _shared_out(MIXED, clips, generator)


def silent(clips: Clips, generator: Generator) -> Streams:
    """The same for batches without sound."""
    return _shared_out(SILENT, clips, generator)


def _shared_out(shares: Mapping[Task, float], clips: Clips, generator: Generator) -> Streams:
    batch = len(clips.last)
    parts, start, total = [], 0, 0.0
    for task, share in shares.items():
        total += share
        end = min(batch, round(batch * total))
        if end > start:
            parts.append(task(clips.part(slice(start, end)), generator))
        start = end
    return AudioVideo(_joined([part.video for part in parts]), _joined([part.audio for part in parts]))


def _joined(states: list[LatentState | None]) -> LatentState | None:
    present = [state for state in states if state is not None]
    if not present:
        return None
    return LatentState(
        latents=torch.cat([state.latents for state in present]),
        denoise_mask=torch.cat([state.denoise_mask for state in present]),
        clean_latents=torch.cat([state.clean_latents for state in present]),
        positions=torch.cat([state.positions for state in present]),
    )


def _integer(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))


def _uniform(generator: Generator) -> float:
    return float(torch.rand(1, generator=generator))
