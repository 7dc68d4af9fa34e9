"""Videos written and decoded back: rate, frames, colours, sound, and the same bytes for the same input."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from braid.errors import InvalidRequest
from braid.multimodal.h264 import DEFAULT_CRF
from braid.multimodal.sound import Sound, SoundLimits, load_sound, save_wav, wav_bytes
from braid.multimodal.video_reader import VideoLimits, read_video
from braid.multimodal.video_writer import VideoWriter

TONE_HZ = 440
NUM_RUNS = 300 if os.environ.get("BRAID_SOAK") else 15


def moving_gradient(num_frames: int, height: int, width: int) -> Tensor:
    """(F, H, W, 3) uint8, smooth in space, different in every frame."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = [
        torch.stack(
            [columns * 200 / width + 3 * f, rows * 255 / height, (torch.sin((rows + columns + 4 * f) / 20) + 1.5) * 80],
            dim=-1,
        )
        for f in range(num_frames)
    ]
    return torch.stack(frames).clamp(0, 255).round().to(torch.uint8)


def textured(num_frames: int, height: int, width: int) -> Tensor:
    """(F, H, W, 3) uint8: coarse patches that wander, and grain."""
    generator = torch.Generator().manual_seed(1)
    patches = torch.rand(1, 3, height // 16, width // 16, generator=generator) * 180 + 30
    picture = functional.interpolate(patches, size=(height, width), mode="bicubic")[0].permute(1, 2, 0)
    grain = torch.randn(num_frames, height, width, 3, generator=generator) * 2
    wandering = torch.stack([picture.roll((f, 2 * f), (0, 1)) for f in range(num_frames)])
    return (wandering + grain).clamp(0, 255).round().to(torch.uint8)


def tone(sample_rate: int, seconds: float, num_channels: int = 2, hz: float = TONE_HZ) -> Tensor:
    """(channels, n) float32."""
    time = torch.arange(round(sample_rate * seconds)) / sample_rate
    return (0.5 * torch.sin(2 * math.pi * hz * time)).repeat(num_channels, 1)


def psnr(ours: Tensor, expected: Tensor) -> float:
    error = (ours.float() - expected.float()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-9)))


def loudest_hz(sound: Sound) -> float:
    spectrum = torch.fft.rfft(sound.samples[0]).abs()
    return float(spectrum.argmax()) * sound.sample_rate / sound.samples.shape[1]


def write(
    path: Path, frames: Tensor, frame_rate: float = 24, sound: Sound | None = None, crf: int = DEFAULT_CRF
) -> Path:
    with VideoWriter(
        path,
        height=frames.shape[1],
        width=frames.shape[2],
        frame_rate=frame_rate,
        sample_rate=sound and sound.sample_rate,
        num_channels=sound.samples.shape[0] if sound else 2,
        crf=crf,
    ) as writer:
        writer.add_frames(frames)
        if sound:
            writer.add_audio(sound.samples)
    return path


@pytest.mark.parametrize(
    ("frame_rate", "exact"),
    [
        (23.976, Fraction(24000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (24, Fraction(24)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (119.88, Fraction(120000, 1001)),
        (12.5, Fraction(25, 2)),
        (10.123, Fraction(10123, 1000)),
        (1 / 3, Fraction(1, 3)),
        (25.0, Fraction(25)),
    ],
)
def test_a_frame_rate_comes_back_exactly(tmp_path: Path, frame_rate: float, exact: Fraction) -> None:
    clip = read_video(write(tmp_path / "a.mp4", moving_gradient(9, 48, 64), frame_rate))
    assert clip.frame_rate == exact
    assert clip.frames.shape == (9, 48, 64, 3)
    assert clip.sound is None


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 95), (64, 95), (2, 2), (1, 1), (17, 33)])
def test_frames_come_back_in_their_order_and_colours(tmp_path: Path, height: int, width: int) -> None:
    frames = moving_gradient(17, height, width)
    clip = read_video(write(tmp_path / "a.mp4", frames))
    assert clip.frames.shape == (17, height + height % 2, width + width % 2, 3)
    shown = clip.frames[:, :height, :width]
    assert psnr(shown, frames) > (30 if height > 16 else 10)  # few pixels share their colour
    if height > 16:
        for index in range(1, 17):
            assert psnr(shown[index], frames[index]) > psnr(shown[index], frames[index - 1])


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)])
def test_colours_survive_because_the_stream_says_bt_709(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = torch.tensor(colour, dtype=torch.uint8).expand(3, 32, 32, 3)
    path = write(tmp_path / "a.mp4", frames)
    difference = (read_video(path).frames.float() - frames.float()).abs().max()
    assert difference <= 4
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        assert codec.pix_fmt == "yuv420p"


@pytest.mark.parametrize("sample_rate", [16000, 24000, 48000, 44100])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_sound_keeps_its_length_and_its_tone(tmp_path: Path, sample_rate: int, num_channels: int) -> None:
    sound = Sound(tone(sample_rate, 1.0, num_channels), sample_rate)
    found = read_video(write(tmp_path / "a.mp4", moving_gradient(25, 32, 32), 25, sound)).sound
    assert found is not None
    assert found.sample_rate == sample_rate
    assert found.samples.shape[0] == num_channels
    # AAC has blocks of 1024 samples; the last one may be longer than the sound.
    assert 0 <= found.samples.shape[1] - sample_rate < 1024
    assert abs(loudest_hz(found) - TONE_HZ) < 2
    num_samples = min(found.samples.shape[1], sample_rate)
    assert (found.samples[:, 2048 : num_samples - 2048] - sound.samples[:, 2048 : num_samples - 2048]).abs().max() < 0.1


def test_the_two_channels_are_not_swapped(tmp_path: Path) -> None:
    samples = torch.cat([tone(24000, 1, 1, 300), tone(24000, 1, 1, 900)])
    found = read_video(write(tmp_path / "a.mp4", moving_gradient(9, 32, 32), 9, Sound(samples, 24000))).sound
    assert found is not None
    assert abs(loudest_hz(found) - 300) < 2
    assert abs(loudest_hz(Sound(found.samples[1:], 24000)) - 900) < 2


@pytest.mark.parametrize("cuts", [[9], [1] * 9, [4, 5], [8, 1]])
def test_the_cuts_between_chunks_do_not_change_a_byte(tmp_path: Path, cuts: list[int]) -> None:
    frames, samples = moving_gradient(9, 64, 96), tone(24000, 0.4)
    whole = write(tmp_path / "whole.mp4", frames, 23.976, Sound(samples, 24000))
    with VideoWriter(tmp_path / "cut.mp4", height=64, width=96, frame_rate=23.976, sample_rate=24000) as writer:
        for chunk in frames.split(cuts):
            writer.add_frames(chunk)
        for chunk in samples.split(777, dim=1):
            writer.add_audio(chunk)
        writer.add_audio(samples[:, :0])
    assert (tmp_path / "cut.mp4").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("turns", ["sound first", "by turns"])
def test_sound_before_or_between_the_frames_does_not_change_a_byte(tmp_path: Path, turns: str) -> None:
    """Of a film that is longer than what muxers are used to wait for."""
    frames, samples = moving_gradient(30, 32, 32), tone(8000, 30)
    whole = write(tmp_path / "whole.mp4", frames, 1, Sound(samples, 8000))
    with VideoWriter(tmp_path / "turns.mp4", height=32, width=32, frame_rate=1, sample_rate=8000) as writer:
        if turns == "sound first":
            writer.add_audio(samples)
        for frame, second in zip(frames, samples.split(8000, dim=1), strict=True):
            writer.add_frames(frame[None])
            if turns == "by turns":
                writer.add_audio(second)
        num_steps = sum(1 for _ in writer.draining())
    assert (tmp_path / "turns.mp4").read_bytes() == whole.read_bytes()
    assert num_steps > 1


def test_sound_and_frames_lie_side_by_side_in_the_file(tmp_path: Path) -> None:
    """A player needs no more than a few seconds of the one to show the other."""
    path = write(tmp_path / "a.mp4", moving_gradient(30, 32, 32), 1, Sound(tone(8000, 30), 8000))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.dts is not None]
        reached = {"video": 0.0, "audio": 0.0}
        for packet in sorted(packets, key=lambda packet: packet.pos):
            reached[packet.stream.type] = float(packet.dts * packet.time_base)
            assert abs(reached["video"] - reached["audio"]) < 4  # seconds; three of them are B-frames
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (34, 50), (128, 160), (128, 128)])
def test_the_same_frames_are_the_same_bytes_every_time(tmp_path: Path, height: int, width: int) -> None:
    frames = textured(9, height, width)
    files = {write(tmp_path / f"{index}.mp4", frames).read_bytes() for index in range(NUM_RUNS)}
    assert len(files) == 1


def test_a_file_carries_no_time_of_its_creation(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving_gradient(2, 32, 32))
    with av.open(str(path)) as container:
        assert "creation_time" not in container.metadata
        assert "encoder" not in container.metadata


def test_quality_follows_crf(tmp_path: Path) -> None:
    frames = moving_gradient(5, 64, 96)
    fine, coarse = (write(tmp_path / f"{crf}.mp4", frames, crf=crf) for crf in (10, 40))
    assert fine.stat().st_size > coarse.stat().st_size
    assert psnr(read_video(fine).frames, frames) > psnr(read_video(coarse).frames, frames) + 3


def test_nothing_has_the_name_before_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, height=32, width=32, frame_rate=24)
    writer.add_frames(moving_gradient(3, 32, 32))
    assert not path.exists()
    assert writer.close() == path
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_an_aborted_video_leaves_nothing_and_does_not_touch_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="cancelled"):
        _write_and_cancel(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"older"


def _write_and_cancel(path: Path) -> None:
    with VideoWriter(path, height=32, width=32, frame_rate=24) as writer:
        writer.add_frames(moving_gradient(3, 32, 32))
        raise RuntimeError("cancelled")


def test_a_video_without_frames_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="at least one frame"):
        VideoWriter(tmp_path / "a.mp4", height=32, width=32, frame_rate=24).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frame_rate": 0}, "frame_rate=0 must be more than 0"),
        ({"frame_rate": float("nan")}, "frame_rate=nan"),
        ({"frame_rate": 1e9}, "at most 1000"),
        ({"crf": 52}, "crf=52 must be an integer from 0"),
        ({"sample_rate": 12345}, "sample_rate=12345 cannot be written as AAC"),
        ({"sample_rate": 48000, "num_channels": 6}, "1 or 2 channels of sound, not 6"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, options: dict[str, float], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        VideoWriter(tmp_path / "a.mp4", **({"height": 32, "width": 32, "frame_rate": 24} | options))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_reading_can_stop_early(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving_gradient(9, 32, 32))
    assert read_video(path, max_frames=4).frames.shape[0] == 4
    assert torch.equal(read_video(path.read_bytes()).frames, read_video(path).frames)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (VideoLimits(max_bytes=100), "at most 100 are read"),
        (VideoLimits(max_pixels=1000), "frames of 32x32; at most 1,000 pixels"),
        (VideoLimits(max_decoded_bytes=5 * 32 * 32 * 3), "more than 15,360 bytes of frames"),
        (VideoLimits(sound=SoundLimits(max_samples=1000)), "more than 1,000 samples"),
    ],
)
def test_a_video_that_costs_too_much_is_refused(tmp_path: Path, limits: VideoLimits, said: str) -> None:
    path = write(tmp_path / "a.mp4", moving_gradient(9, 32, 32), 24, Sound(tone(24000, 0.3), 24000))
    with pytest.raises(InvalidRequest, match=said):
        read_video(path, limits=limits)


@pytest.mark.parametrize("data", [b"", b"no video", b"\0" * 1000])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="video"):
        read_video(data)
    with pytest.raises(InvalidRequest, match="audio"):
        load_sound(data)


def test_a_truncated_video_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4", moving_gradient(9, 32, 32)).read_bytes()
    with pytest.raises(InvalidRequest, match="video"):
        read_video(data[:200])


def test_a_missing_file_and_one_without_the_stream_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_video(tmp_path / "none.mp4")
    save_wav(tmp_path / "a.wav", tone(16000, 0.1), 16000)
    with pytest.raises(InvalidRequest, match="video has no video stream"):
        read_video(tmp_path / "a.wav")
    silent = write(tmp_path / "a.mp4", moving_gradient(2, 32, 32))
    with pytest.raises(InvalidRequest, match="audio has no audio stream"):
        load_sound(silent)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_float_wav_is_the_samples_themselves(tmp_path: Path, num_channels: int) -> None:
    samples = tone(24000, 0.25, num_channels) * 3  # beyond 1, which floats can be
    save_wav(tmp_path / "a.wav", samples, 24000, is_float=True)
    found = load_sound(tmp_path / "a.wav")
    assert found.sample_rate == 24000
    assert torch.equal(found.samples, samples)


def test_a_wav_of_integers_is_within_half_a_step(tmp_path: Path) -> None:
    samples = torch.cat([tone(16000, 0.25, 2) * 4, torch.tensor([[-1.0, 1.0]] * 2)], dim=1)
    save_wav(tmp_path / "a.wav", samples, 16000)
    found = load_sound((tmp_path / "a.wav").read_bytes())
    assert found.samples.shape == samples.shape
    assert (found.samples - samples.clamp(-1, 1)).abs().max() <= 1 / 32768
    assert wav_bytes(samples, 16000) == (tmp_path / "a.wav").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_an_empty_wav_is_a_file_of_no_samples() -> None:
    assert load_sound(wav_bytes(torch.zeros(2, 0), 8000)).samples.shape == (2, 0)
