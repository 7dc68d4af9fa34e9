"""Pictures: orientation, colour profiles, limits, formats, fitting, and the H.264 round trip."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.animations import AnimationWriter, frame_duration_ms, save_animation
from braid.multimodal.frame_counts import exact_frame_rate, frames_of_seconds, keyframe_positions, snap_frames
from braid.multimodal.images import ImageLimits, cover, encode_image, fit_and_pad, load_image, save_image
from braid.multimodal.masks import mask_tokens
from braid.multimodal.media import recompress


def picture(height: int = 20, width: int = 30) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [rows * 255 // height, columns * 255 // width, (rows + columns) * 4 % 256]
    return torch.stack(planes, dim=-1).to(torch.uint8)


def recompressed(image: Tensor, crf: int) -> Tensor:
    pieces = recompress(image, crf)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Tensor = end.value
            return result


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_comes_back(kind: str) -> None:
    found = load_image(encode_image(picture(), kind, quality=95))
    assert found.shape == (20, 30, 3)
    assert found.dtype == torch.uint8
    assert (found.float() - picture().float()).abs().mean() < (0.1 if kind == "PNG" else 12)


def test_a_png_is_exact_and_always_the_same_bytes() -> None:
    assert torch.equal(load_image(encode_image(picture())), picture())
    assert encode_image(picture()) == encode_image(picture())


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp"])
def test_a_picture_is_written_in_the_format_of_its_suffix(tmp_path: Path, name: str) -> None:
    save_image(tmp_path / name, picture())
    assert load_image(tmp_path / name).shape == (20, 30, 3)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"suffix must be one of \.png"):
        save_image(tmp_path / "a.exr", picture())
    with pytest.raises(InvalidRequest, match=r"suffix must be \.gif or \.webp"):
        save_animation(tmp_path / "a.png", picture()[None], 24)


TURNS = {1: 0, 3: 2, 6: 3, 8: 1}
"""EXIF orientation to quarter turns against the clock."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = load_image(_file(Image.fromarray(picture().numpy()), exif=exif))
    if orientation in TURNS:
        assert torch.equal(found, torch.rot90(picture(), TURNS[orientation]))
    else:
        mirrored = {2: picture().flip(1), 4: picture().flip(0)}
        expected = mirrored.get(orientation)
        assert found.shape == ((30, 20, 3) if expected is None else (20, 30, 3))
        assert expected is None or torch.equal(found, expected)


def _profile_with_red_and_green_swapped() -> bytes:
    """sRGB with the names of two primaries exchanged, so that what it calls red is green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpZ", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmpZ", b"gXYZ", 1)


def test_colours_are_taken_from_the_profile() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    plain = load_image(_file(red, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()))
    assert (plain[0, 0].int() - torch.tensor([255, 0, 0])).abs().max() <= 2
    swapped = load_image(_file(red, icc_profile=_profile_with_red_and_green_swapped()))
    assert (swapped[0, 0].int() - torch.tensor([0, 255, 0])).abs().max() <= 4


def test_a_broken_profile_is_as_if_it_were_not_there() -> None:
    data = _file(Image.fromarray(picture().numpy()), icc_profile=b"not a profile")
    assert torch.equal(load_image(data), picture())


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (4, 4), 128)
    image = Image.new("I;16", (4, 4), 128 * 257) if mode == "I;16" else grey.convert(mode)
    found = load_image(_file(image))
    assert found.shape == (4, 4, 3)
    assert (found[..., 0] == found[..., 2]).all()
    if mode != "1":
        assert (found.int() - 128).abs().max() <= 1


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [8_001, 10_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(size: int) -> None:
    with pytest.raises(InvalidRequest, match="at most 64,000,000 are read"):
        load_image(_bomb(size, size))


def test_limits_are_of_bytes_and_of_pixels(tmp_path: Path) -> None:
    data = encode_image(picture())
    with pytest.raises(InvalidRequest, match=r"image is 30x20, 600 pixels; at most 599 are read"):
        load_image(data, limits=ImageLimits(max_pixels=599))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InvalidRequest, match=f"first has {len(data)} bytes; at most 10 are read"):
        load_image(tmp_path / "a.png", limits=ImageLimits(max_bytes=10), param="first")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="image is none of PNG"):
        load_image(b"GIF is not what this is")
    with pytest.raises(InvalidRequest, match="image is damaged"):
        load_image(encode_image(picture(200, 300), "JPEG")[:2000])
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_image(tmp_path / "none.png")


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (32, 32), (7, 200)])
@pytest.mark.parametrize("fit", [cover, fit_and_pad])
def test_a_fitted_picture_has_the_size_and_the_range(fit: object, height: int, width: int) -> None:
    assert callable(fit)
    found = fit(picture(), height, width)
    assert found.shape == (1, 3, 1, height, width)
    assert found.min() >= -1
    assert found.max() <= 1


def test_a_picture_of_the_right_size_is_only_scaled_to_its_range() -> None:
    expected = picture().permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    assert torch.equal(cover(picture(), 20, 30), expected)
    assert torch.equal(fit_and_pad(picture(), 20, 30), expected)


def test_a_small_picture_is_padded_and_not_enlarged() -> None:
    found = fit_and_pad(picture(), 24, 40)
    expected = picture().permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(found[0, :, 0, :20, :30], expected)
    assert torch.equal(found[0, :, 0, 20, :30], expected[:, 18])  # the mirror image does not repeat the edge
    far = fit_and_pad(picture(), 60, 90)
    assert torch.equal(far[0, :, 0, 59, :30], expected[:, 19])  # too far to mirror


def test_the_round_trip_of_h264_loses_a_little_and_always_the_same() -> None:
    image = picture(65, 97)
    found = recompressed(image, 33)
    assert found.shape == (64, 96, 3)
    assert found.dtype == torch.uint8
    error = (found.float() - image[:64, :96].float()).abs().mean()
    assert 0.5 < error < 20
    assert torch.equal(found, recompressed(image, 33))
    finer = recompressed(image, 5)
    assert (finer.float() - image[:64, :96].float()).abs().mean() < error
    assert torch.equal(recompressed(image, 0), image)


@pytest.mark.parametrize("crf", [-1, 52, 3.5, True])
def test_a_crf_that_is_none_is_refused(crf: int) -> None:
    with pytest.raises(InvalidRequest, match="image_crf="):
        recompressed(picture(), crf)


def test_a_picture_of_one_row_has_no_h264() -> None:
    with pytest.raises(InvalidRequest, match=r"too small for H\.264"):
        recompressed(picture(1, 30), 33)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (31, 1)])
@pytest.mark.parametrize(("kind", "frame_rate"), [("GIF", 24), ("WEBP", 24), ("GIF", 23.976), ("WEBP", 12.5)])
def test_an_animation_has_every_frame_for_its_time(
    tmp_path: Path, kind: str, frame_rate: float, height: int, width: int
) -> None:
    frames = torch.stack([picture(height, width).roll(3 * index, dims=0) for index in range(12)])
    path = tmp_path / f"a.{kind.lower()}"
    save_animation(path, frames, frame_rate)
    shown = []
    with Image.open(path) as image:
        assert image.format == kind
        assert image.size == (width, height)
        assert image.info["loop"] == 0
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            shown.append((image.info["duration"], torch.from_numpy(np.array(image.convert("RGB")))))
    assert len(shown) == 12
    assert abs(sum(duration for duration, _ in shown) - 12_000 / frame_rate) <= 10
    for (_, pixels), frame in zip(shown, frames, strict=True):
        assert (pixels.float() - frame.float()).abs().mean() < 20


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_other_readers_see_the_same_animation(tmp_path: Path, name: str) -> None:
    """FFmpeg reads GIF; of WebP's bytes the length that the container tells is checked."""
    path = tmp_path / name
    save_animation(path, torch.stack([picture().roll(5 * index, dims=0) for index in range(5)]), 10)
    if name.endswith("gif"):
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 5
    else:
        data = path.read_bytes()
        assert int.from_bytes(data[4:8], "little") == len(data) - 8


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_the_cuts_of_an_animation_do_not_change_a_byte(tmp_path: Path, name: str) -> None:
    frames = torch.stack([picture().roll(3 * index, dims=0) for index in range(7)])
    save_animation(tmp_path / name, frames, 24)
    with AnimationWriter(tmp_path / f"cut_{name}", height=20, width=30, frame_rate=24) as writer:
        for chunk in frames.split([1, 4, 2]):
            writer.add_frames(chunk)
    assert (tmp_path / f"cut_{name}").read_bytes() == (tmp_path / name).read_bytes()


def test_an_abandoned_animation_leaves_nothing(tmp_path: Path) -> None:
    writer = AnimationWriter(tmp_path / "a.gif", height=20, width=30, frame_rate=24)
    writer.add_frames(picture()[None])
    writer.abort()
    with pytest.raises(InvalidRequest, match="at least one frame"):
        AnimationWriter(tmp_path / "a.webp", height=20, width=30, frame_rate=24).close()
    with pytest.raises(InvalidRequest, match="at most 16383"):
        AnimationWriter(tmp_path / "a.webp", height=20, width=16_384, frame_rate=24)
    assert list(tmp_path.iterdir()) == []


def test_durations_do_not_drift() -> None:
    durations = [frame_duration_ms(index, Fraction(24), 10) for index in range(2400)]
    assert sum(durations) == 100_000
    assert set(durations) == {40, 50}


def test_an_animation_is_written_whole(tmp_path: Path) -> None:
    save_animation(tmp_path / "a.gif", torch.stack([picture(), picture().flip(0)]), 10)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


def test_a_mask_is_averaged_over_the_pixels_of_each_latent() -> None:
    mask = torch.zeros(1, 1, 9, 4, 8)
    mask[:, :, 0, :, :4] = 1
    mask[:, :, 1:5, :2] = 1
    tokens = mask_tokens(mask, time_factor=8, space_factor=4)
    assert tokens.tolist() == [[1.0, 0.0, 0.25, 0.25]]
    assert mask_tokens(mask[:, :, :1], space_factor=4).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("shape", [(1, 1, 8, 32, 32), (1, 1, 9, 31, 32), (1, 1, 9, 32, 33)])
def test_a_mask_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="8k\\+1 frames"):
        mask_tokens(torch.zeros(shape))


def test_frame_counts_are_snapped_down_and_up_only_to_the_least() -> None:
    assert [snap_frames(n) for n in (1, 8, 9, 16, 17, 121, 128)] == [1, 1, 9, 9, 17, 121, 121]
    assert [snap_frames(n, 4) for n in (4, 5, 8)] == [1, 5, 5]
    with pytest.raises(InvalidRequest, match="num_frames=0 must be at least 1"):
        snap_frames(0)
    assert frames_of_seconds(5.0, 24.0, 24, 480) == 113
    assert frames_of_seconds(0.2, 24.0, 24, 480) == 25
    assert frames_of_seconds(99.0, 25.0, 25, 500) == 497
    assert frames_of_seconds(1.0, 24.0, 18, 24) == 25  # no count from 18 to 24: 25 is nearer to 24
    assert frames_of_seconds(0.75, 24.0, 18, 24) == 17  # and 17 to 18
    assert frames_of_seconds(5.04, 24.0, 1, 480) == 121  # 120.96 frames are 121


def test_keyframes_are_at_equal_distances() -> None:
    assert keyframe_positions(3, 121) == [30, 60, 90]
    assert keyframe_positions(2, 33) == [11, 21]
    assert keyframe_positions(0, 33) == []


@pytest.mark.parametrize(
    ("value", "exact"), [(23.976, Fraction(24000, 1001)), (23.98, Fraction(1199, 50)), (30, Fraction(30))]
)
def test_a_rate_means_what_people_mean(value: float, exact: Fraction) -> None:
    assert exact_frame_rate(value) == exact
