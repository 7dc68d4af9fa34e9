"""A generation as its caller sees it: what it tells on the way, and what it gives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from braid.diffusion.job import GenerationResult
from braid.diffusion.latents import AudioVideo
from braid.diffusion.media_files import SOUNDS, writing
from braid.diffusion.operations import Waveform
from braid.errors import InvalidRequest
from braid.llm_core.pipeline import Progressed


@dataclass(frozen=True, slots=True)
class Update:
    """How far a generation is."""

    stage: str
    """`encode_prompt`, `stage_1`, `upsampled`, `stage_2`, `decode`, `decode_audio`, `write_file`, ..."""
    step: int
    """How many steps of the stage are finished."""
    num_steps: int
    elapsed_s: float
    """Since the generation was asked for."""
    stage_left_s: float | None = None
    """Until the stage ends, if its steps go on as they did."""
    preview: npt.NDArray[np.uint8] | None = None
    """(H, W, 3), the middle of the film as the latest estimate has it."""


class StageClock:
    """Turns progress into updates: knows when each stage began."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stage = ""
        self._stage_began = self._began
        self._first_step = 0

    def update(self, event: Progressed) -> Update:
        """What a caller is told of an event that comes now."""
        now = time.perf_counter()
        if event.stage != self._stage:
            self._stage, self._stage_began, self._first_step = event.stage, now, event.step
        num_done = event.step - self._first_step
        left_s = (now - self._stage_began) / num_done * (event.num_steps - event.step) if num_done > 0 else None
        preview = None if event.preview is None else event.preview.numpy()
        return Update(event.stage, event.step, event.num_steps, now - self._began, left_s, preview)


@dataclass(frozen=True, slots=True)
class GeneratedMedia:
    """A picture, a film, or sound."""

    frames: npt.NDArray[np.uint8] | None
    """(F, H, W, 3); None for sound alone, and where only latents were asked for or `keep_frames` was False."""
    audio: npt.NDArray[np.float32] | None
    """(channels, num_samples) in [-1, 1]; None for a silent film or a picture."""
    sample_rate: int | None
    """Of the audio, in Hz."""
    fps: float
    seed: int
    """Asking again with it gives the same bits."""
    prompt: str
    """As it was encoded."""
    latents: AudioVideo[Tensor]
    """Normalised: (1, C, F', H', W') and (1, C, T, M)."""
    frames_shape: tuple[int, int, int, int] | None = None
    """(F, H, W, 3) of the frames that were decoded, kept or not."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, others' work in between included."""
    path: Path | None = None
    """Where the engine wrote it, if that was asked for."""
    _result: GenerationResult | None = field(default=None, repr=False)

    def save(self, path: str | Path) -> Path:
        """Write a file in the format of its suffix, whole or not at all; gives its path.

        One frame is a .png, .jpg or .webp; several are an .mp4 (H.264, with AAC if there is sound), or a silent .gif
        or .webp; sound alone is a .wav.

        Raises:
            InvalidRequest: the result cannot be written like that, or there is nothing to write.
        """
        path, result = Path(path), self._result
        if result is None or (result.frames_shape is None and result.waveform is None):
            raise InvalidRequest("there are only latents: nothing was decoded, so nothing can be saved", param="path")
        if result.frames is None and result.frames_shape is not None and path.suffix.lower() not in SOUNDS:
            raise InvalidRequest(f"keep_frames=False: the frames are in {self.path} alone; copy it", param="path")
        for _ in writing(path, result.frames, result.waveform, result.frame_rate):
            pass
        return path


def as_media(result: GenerationResult, path: Path | None) -> GeneratedMedia:
    """What a caller gets of a job's result; arrays share its memory."""
    sound: Waveform | None = result.waveform
    frames: Any = None if result.frames is None else result.frames.numpy()
    return GeneratedMedia(
        frames=frames,
        audio=None if sound is None else sound.samples.numpy(),
        sample_rate=None if sound is None else sound.sample_rate,
        fps=result.frame_rate,
        seed=result.seed,
        prompt=result.prompt,
        latents=result.latents,
        frames_shape=result.frames_shape,
        timings=dict(result.timings),
        path=path,
        _result=result,
    )
