"""Writing a video with sound, chunk by chunk, as an MP4 whose bytes follow from its frames and samples alone."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from braid.errors import InvalidRequest
from braid.multimodal.film_writer import FilmWriter
from braid.multimodal.frame_counts import exact_frame_rate
from braid.multimodal.h264 import BIT_EXACT, DEFAULT_CRF, add_video_stream, as_yuv, check_crf

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
AAC_BITS_PER_SECOND = 192_000
LAYOUTS = {1: "mono", 2: "stereo"}
IN_ORDER_OF_TIME = {"max_interleave_delta": "0"}
"""By default the muxer gives up waiting for the other stream after 10 s, and the file would follow from the turns."""


class VideoWriter(FilmWriter):
    """H.264 (BT.709, 4:2:0) and AAC in MP4.

    Frames and sound come in as many chunks as one likes, by turns or one after the other: neither cuts nor turns change
    the file, in which both lie side by side by their time. What one is ahead of the other waits in memory, encoded. An
    odd height or width is made even by repeating the last row or column, because 4:2:0 has none.

    Args:
        frame_rate: kept exactly; 23.976 means 24000/1001.
        sample_rate: of the sound, in Hz; None for a silent video.
    Raises:
        InvalidRequest: a size, rate or quality that cannot be written.
    """

    name = "a video"

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        frame_rate: float | Fraction,
        sample_rate: int | None = None,
        num_channels: int = 2,
        crf: int = DEFAULT_CRF,
    ) -> None:
        import av

        check_crf(crf)
        _check_sound(sample_rate, num_channels)
        super().__init__(path)
        self.frame_rate = exact_frame_rate(frame_rate)
        self.num_samples = 0
        self._height, self._width = height, width
        self._num_channels, self._sample_rate = num_channels, sample_rate
        options = {"movflags": "+faststart", **IN_ORDER_OF_TIME, **BIT_EXACT}
        self._draining = self._drain()
        self._container: Any = av.open(str(self._file.temporary), "w", format="mp4", options=options)
        try:
            self._video = add_video_stream(
                self._container, self.frame_rate, height + height % 2, width + width % 2, crf
            )
            self._audio = None if sample_rate is None else self._add_audio_stream(sample_rate)
        except BaseException:
            self.abort()
            raise

    def _add_audio_stream(self, sample_rate: int) -> Any:
        stream = self._container.add_stream("aac", rate=sample_rate, layout=LAYOUTS[self._num_channels])
        stream.bit_rate = AAC_BITS_PER_SECOND
        stream.time_base = Fraction(1, sample_rate)
        return stream

    def add_frames(self, frames: Tensor) -> None:
        assert tuple(frames.shape[1:]) == (self._height, self._width, 3), frames.shape
        for frame in _made_even(frames):
            yuv = as_yuv(frame)
            yuv.pts, yuv.time_base = self.num_frames, 1 / self.frame_rate
            self._container.mux(self._video.encode(yuv))
            self.num_frames += 1

    def add_audio(self, samples: Tensor) -> None:
        """Encode the next samples.

        Args:
            samples: (channels, n) float32, clamped to [-1, 1].
        """
        import av

        assert self._audio is not None and self._sample_rate, "a silent video has no sound"
        assert samples.shape[0] == self._num_channels, samples.shape
        if samples.shape[1] == 0:
            return
        planes = samples.detach().cpu().float().clamp(-1, 1).contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=LAYOUTS[self._num_channels])
        frame.sample_rate, frame.pts = self._sample_rate, self.num_samples
        frame.time_base = Fraction(1, self._sample_rate)
        self._container.mux(self._audio.encode(frame))
        self.num_samples += samples.shape[1]

    @property
    def num_bytes(self) -> int:
        """Of the file so far, as far as they have reached the disk."""
        return self._file.temporary.stat().st_size

    def _drain(self) -> Iterator[None]:
        for stream in filter(None, (self._video, self._audio)):
            for packet in stream.encode_lazy(None):
                packet.stream = stream  # which only `encode` does by itself
                self._container.mux(packet)
                yield

    def draining(self) -> Iterator[None]:
        """After the last frame and sample, to spread the work of `close`: a step encodes one of the frames that the
        encoders hold back. `close` does what is left.
        """
        return self._draining

    def _write_end(self) -> None:
        for _ in self._draining:
            pass

    def _let_go(self) -> None:
        self._container.close()


def _check_sound(sample_rate: int | None, num_channels: int) -> None:
    if sample_rate is not None and sample_rate not in AAC_RATES:
        rates = ", ".join(map(str, AAC_RATES))
        raise InvalidRequest(f"sample_rate={sample_rate} cannot be written as AAC; it must be one of {rates}")
    if num_channels not in LAYOUTS:
        raise InvalidRequest(f"a video has 1 or 2 channels of sound, not {num_channels}")


def _made_even(frames: Tensor) -> Tensor:
    """(F, H, W, 3) with the last row and column repeated where their number is odd."""
    odd_rows, odd_columns = frames.shape[1] % 2, frames.shape[2] % 2
    if not odd_rows and not odd_columns:
        return frames
    planes = frames.permute(0, 3, 1, 2).float()  # (F, 3, H, W)
    padded = functional.pad(planes, (0, odd_columns, 0, odd_rows), mode="replicate")
    return padded.to(frames.dtype).permute(0, 2, 3, 1)
