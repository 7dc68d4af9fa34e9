"""What a caller gets of a job beside its result: looks at it while it is made, and a file.

A pipeline around a pipeline. The job's own operations pass through it unchanged, so none of this can change a bit of
the result. A file cannot be gone on with: a job that is started again from a state decodes and writes all of it anew.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from braid.diffusion.job import GenerationResult, Job
from braid.diffusion.latents import blend_clean, drop_appended, unpatchify_video
from braid.diffusion.media_files import ResultFile, Writing, open_result
from braid.diffusion.operations import DecodeAudio, DecodedFrames, DecodeFrames, Denoise, Waveform
from braid.diffusion.pieces import Meter, Pieces
from braid.diffusion.positions import VideoGrid
from braid.diffusion.relay import relayed
from braid.diffusion.sampling_state import Estimates
from braid.errors import CannotFit
from braid.llm_core.pipeline import Pipeline, Progress, StartPipeline


class Beside(Protocol):
    """More files of the same frames, such as a thumbnail."""

    def add(self, frames: Tensor) -> Writing:
        """The next frames, (F, H, W, 3) uint8 on the CPU."""
        ...

    def finish(self, waveform: Waveform | None) -> Writing:
        """After the last of them; with the sound, if there is any."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job, and how its result is handed over."""

    job: Job
    path: Path | None = None
    """Where the engine writes it, too."""
    preview_every: int = 0
    """Steps between two previews; 0 for none."""
    beside: Beside | None = None


@dataclass(frozen=True, slots=True)
class WriteFile:
    """The next part of a result into its file. Gives None."""

    work: Writing
    """Not begun yet."""
    num_bytes: int = 0
    """Of the frames in it, which their job holds."""
    kind = "write_file"


def write_file(meter: Meter, operation: WriteFile) -> Pieces[None]:
    """`WriteFile`, for `InPieces`."""
    with closing(operation.work) as pieces:
        following = next(pieces, None)
        while following is not None:
            kind, units = following
            yield meter.segment(kind, units, num_bytes=operation.num_bytes)
            with meter.measured(kind, units):
                following = next(pieces, None)


def delivered(start: StartPipeline) -> StartPipeline:
    """From the pipeline of a `Job` to that of a `Delivery`."""

    def run(delivery: Delivery, state: Any | None = None, /) -> Pipeline:
        with closing(start(delivery.job, state)) as pipeline, closing(_Output(delivery)) as output:
            result: GenerationResult = yield from _watched(pipeline, delivery, output)
            yield from output.finish(result)
        return result

    return run


def _watched(pipeline: Pipeline, delivery: Delivery, output: _Output) -> Pipeline:
    """A pipeline's own words, previews after its steps, and its frames into the file as they become final."""
    previews = _Previews(delivery.job, delivery.preview_every)

    def say(asked: Any) -> Pipeline:
        answer = yield asked
        if isinstance(asked, Progress):
            yield from previews.after(asked)
        else:
            previews.note(asked, answer)
            yield from output.take(asked, answer)
        return answer

    return (yield from relayed(pipeline, say))


class _Output:
    """The files that were asked for, if any were. Abandoned, it leaves nothing of the result's own."""

    def __init__(self, delivery: Delivery) -> None:
        self._path = delivery.path
        self._beside = delivery.beside
        self._job = delivery.job
        self._waveform = delivery.job.params.waveform if delivery.job.has_audio else None
        """The film's own, until another one is made for it."""
        self._file: ResultFile | None = None

    def take(self, asked: Any, answer: Any) -> Generator[Any, Any, None]:
        """What an operation has given, if it belongs into the file: sound, which comes first, or frames."""
        if isinstance(asked, DecodeAudio):
            self._waveform = answer
        elif isinstance(asked, DecodeFrames):
            if self._path is not None:
                yield WriteFile(self._opened(self._path).add(answer.frames), answer.frames.nbytes)
            if self._beside is not None:
                yield WriteFile(self._beside.add(answer.frames), answer.frames.nbytes)

    def finish(self, result: GenerationResult) -> Generator[Any, Any, None]:
        """Give the files their names."""
        if self._path is None and self._beside is None:
            return
        assert result.waveform is self._waveform, "another sound than that which was written"
        yield Progress("write_file", 0, 1)
        if self._path is not None:
            yield WriteFile(self._opened(self._path).finish())
        if self._beside is not None:
            yield WriteFile(self._beside.finish(self._waveform))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._beside is not None:
            self._beside.close()

    def _opened(self, path: Path) -> ResultFile:
        if self._file is None:
            num_frames = self._job.num_frames if self._job.has_video else 0
            self._file = open_result(
                path, num_frames=num_frames, waveform=self._waveform, frame_rate=self._job.frame_rate
            )
        return self._file


class _Previews:
    """The middle of the film as the latest x0 estimate has it, decoded by the video decoder itself.

    One latent frame costs about as much as one frame of the result.
    """

    def __init__(self, job: Job, every: int) -> None:
        self._job = job
        self._every = every if job.has_video and job.params.output_type == "frames" else 0
        self._tokens: Tensor | None = None

    def note(self, asked: Any, answer: Any) -> None:
        """Keep the estimate of an evaluation, with what is held in its place."""
        if not self._every or not isinstance(asked, Denoise):
            return
        estimates = answer.denoised if isinstance(answer, Estimates) else answer
        stream = asked.streams.video
        if stream is not None and estimates.video is not None:
            self._tokens = blend_clean(estimates.video, stream)

    def after(self, progress: Progress) -> Generator[Any, Any, None]:
        """The progress of a step once more, with a picture, if it is due."""
        is_step = progress.stage.startswith("stage_") and progress.step > 0
        if not self._every or self._tokens is None or not is_step or progress.step % self._every:
            return
        tokens, self._tokens = self._tokens, None
        try:
            decoded: DecodedFrames = yield DecodeFrames(_middle(tokens, self._grid(progress.stage)), 0, kind="preview")
        except CannotFit:  # the film still may: tiles of a clip can be smaller than one whole picture
            self._every = 0
            return
        yield replace(progress, preview=decoded.frames[0])

    def _grid(self, stage: str) -> VideoGrid:
        is_small = stage == "stage_1" and len(self._job.adapters) > 1
        return self._job.small_grid if is_small else self._job.grid()


def _middle(tokens: Tensor, grid: VideoGrid) -> Tensor:
    """(1, C, 1, H', W') of (1, T, C)."""
    own = drop_appended(tokens, grid.num_tokens)
    latents = unpatchify_video(own, grid.frames, grid.height, grid.width)
    middle = grid.frames // 2
    return latents[:, :, middle : middle + 1].contiguous()
