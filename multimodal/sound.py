"""Sound: waveforms, WAV files, and any audio file that FFmpeg reads."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.atomic_file import write_file

PCM, FLOAT = 1, 3
"""Formats of WAV data."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A waveform."""

    samples: Tensor
    """(channels, num_samples) float32, about [-1, 1]."""
    sample_rate: int

    @property
    def duration_s(self) -> float:
        return self.samples.shape[1] / self.sample_rate


@dataclass(frozen=True, slots=True)
class SoundLimits:
    """What a file may cost."""

    max_bytes: int = 512 << 20
    max_samples: int = 48_000 * 600
    """Of each channel."""


def wav_bytes(samples: Tensor, sample_rate: int, *, is_float: bool = False) -> bytes:
    """A WAV file of (channels, num_samples) float32: as 16-bit integers, clamped and rounded, or as 32-bit floats."""
    frames = samples.detach().cpu().float().t().contiguous()  # (num_samples, channels)
    if is_float:
        data, bits = frames.numpy().astype("<f4").tobytes(), 32
    else:
        data, bits = (frames * 32768).round().clamp(-32768, 32767).numpy().astype("<i2").tobytes(), 16
    channels = frames.shape[1]
    block = channels * bits // 8
    kind = FLOAT if is_float else PCM
    header = struct.pack("<HHIIHH", kind, channels, sample_rate, sample_rate * block, block, bits)
    chunks = _chunk(b"fmt ", header)
    if is_float:
        chunks += _chunk(b"fact", struct.pack("<I", frames.shape[0]))  # asked of every format but PCM
    chunks += _chunk(b"data", data)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def save_wav(path: Path, samples: Tensor, sample_rate: int, *, is_float: bool = False) -> None:
    """Write a WAV file, whole or not at all."""
    write_file(path, wav_bytes(samples, sample_rate, is_float=is_float))


def load_sound(source: Path | bytes, *, limits: SoundLimits | None = None, param: str = "audio") -> Sound:
    """The first audio stream of a file, at its own rate.

    Raises:
        InvalidRequest: there is none, it is damaged, or more than `limits`.
    """
    import av

    limits = limits or SoundLimits()
    try:
        with av.open(open_bounded(source, limits.max_bytes, param)) as container:
            if not container.streams.audio:
                raise InvalidRequest(f"{param} has no audio stream", param=param)
            return decode_sound(container, limits, param)
    except (av.FFmpegError, ValueError) as error:
        raise InvalidRequest(f"{param} is no audio file that can be read: {error}", param=param) from error


def open_bounded(source: Path | bytes, max_bytes: int, param: str) -> Any:
    """What PyAV opens: the file's name or its bytes; never a URL.

    Raises:
        InvalidRequest: the file cannot be read or is too large.
    """
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
    except OSError as error:
        raise InvalidRequest(f"{param}: {source!s} cannot be read: {error.strerror or error}", param=param) from error
    if size > max_bytes:
        raise InvalidRequest(f"{param} has {size:,} bytes; at most {max_bytes:,} are read", param=param)
    return io.BytesIO(source) if isinstance(source, bytes) else f"file:{source.absolute()}"


def decode_sound(container: Any, limits: SoundLimits, param: str) -> Sound:
    """All samples of the first audio stream of an open PyAV container."""
    stream = container.streams.audio[0]
    chunks, total = [], 0
    for chunk in _decoded_chunks(container, stream):
        total += chunk.shape[1]
        if total > limits.max_samples:
            raise InvalidRequest(
                f"{param} has more than {limits.max_samples:,} samples ({stream.rate} a second); cut it", param=param
            )
        chunks.append(chunk)
    samples = torch.cat(chunks, dim=1) if chunks else torch.zeros(stream.channels, 0)
    return Sound(samples, int(stream.rate))


def _decoded_chunks(container: Any, stream: Any) -> Iterator[Tensor]:
    """(channels, n) float32 chunks in order."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    for frame in container.decode(stream):
        frame.pts = None
        for planar in resampler.resample(frame):
            yield torch.from_numpy(planar.to_ndarray().copy())
