"""Pictures: read upright and in sRGB, fitted to a size, written as PNG, JPEG or WebP.

A picture is a (H, W, 3) uint8 tensor on the CPU. Untrusted files are measured before they are decoded.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.errors import InvalidRequest
from braid.multimodal.atomic_file import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may cost before it is decoded."""

    max_bytes: int = 64 << 20
    max_pixels: int = 64_000_000


def load_image(source: Path | bytes, *, limits: ImageLimits | None = None, param: str = "image") -> Tensor:
    """A picture, (H, W, 3) uint8: upright by its EXIF orientation, in sRGB by its colour profile, without alpha.

    Raises:
        InvalidRequest: it is no picture, a damaged one, or more than `limits`.
    """
    from PIL import Image, UnidentifiedImageError

    limits = limits or ImageLimits()
    data = _read_bounded(source, limits, param)
    try:
        with Image.open(io.BytesIO(data), formats=READABLE) as image:
            _check_pixels(image.width, image.height, limits, param)
            return _to_tensor(_in_srgb(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(f"{param}: {error}; at most {limits.max_pixels:,} are read", param=param) from error
    except UnidentifiedImageError as error:
        raise InvalidRequest(f"{param} is none of {', '.join(READABLE)}", param=param) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise
        raise InvalidRequest(f"{param} is damaged: {error}", param=param) from error


def _read_bounded(source: Path | bytes, limits: ImageLimits, param: str) -> bytes:
    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > limits.max_bytes:
            message = f"{param} has {size:,} bytes; at most {limits.max_bytes:,} are read"
            raise InvalidRequest(message, param=param)
        return source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{param}: {source!s} cannot be read: {error.strerror or error}", param=param) from error


def _check_pixels(width: int, height: int, limits: ImageLimits, param: str) -> None:
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"{param} is {width}x{height}, {width * height:,} pixels; at most {limits.max_pixels:,} are read",
            param=param,
        )


def _in_srgb(image: Image) -> Image:
    """Upright RGB; a profile that cannot be used is as if it were not there."""
    from PIL import ImageCms, ImageOps

    profile = image.info.get("icc_profile")
    image = _eight_bits(ImageOps.exif_transpose(image))
    if profile:
        base = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(base, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        image = converted or image
    return image.convert("RGB")


def _eight_bits(image: Image) -> Image:
    """16-bit grey, which a plain conversion would cut at 255, to 8 bits."""
    if not image.mode.startswith("I"):
        return image
    import numpy as np
    from PIL import Image as Images

    return Images.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _to_tensor(image: Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image, dtype=np.uint8))


def encode_image(image: Tensor, kind: str = "PNG", *, quality: int = 90) -> bytes:
    """A (H, W, 3) uint8 picture as the bytes of a file: `PNG`, `JPEG` or `WEBP`; `quality` is for the last two."""
    from PIL import Image

    buffer = io.BytesIO()
    options: dict[str, Any] = {} if kind == "PNG" else {"quality": quality}
    Image.fromarray(image.contiguous().numpy()).save(buffer, format=kind, **options)
    return buffer.getvalue()


def save_image(path: Path, image: Tensor, *, quality: int = 90) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    Raises:
        InvalidRequest: no such format.
    """
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(WRITABLE)
        raise InvalidRequest(f"a picture cannot be written to {path.name!r}; its suffix must be one of {known}")
    write_file(path, encode_image(image, kind, quality=quality))


# Fitting to a size. Source: specs of LTX-2, section e; golden component "image/mask preprocessing".


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """Scale a picture so that it covers a size, and cut its centre out.

    Args:
        image: (H, W, 3), numbers from 0 to 255.
    Returns:
        (1, 3, 1, height, width) float32 in [-1, 1].
    """
    rows, columns = image.shape[:2]
    scale = max(height / rows, width / columns)
    planes = _resize(_planes(image), math.ceil(rows * scale), math.ceil(columns * scale))
    top, left = (planes.shape[-2] - height) // 2, (planes.shape[-1] - width) // 2
    return _as_clip(planes[..., top : top + height, left : left + width])


def fit_and_pad(image: Tensor, height: int, width: int) -> Tensor:
    """Scale a picture down so that it fits a size, and fill below and to the right with its mirror image.

    A smaller picture is not enlarged. Where there is too little of it to mirror, its last row and column are repeated.

    Args:
        image: (H, W, 3), numbers from 0 to 255.
    Returns:
        (1, 3, 1, height, width) float32 in [-1, 1].
    """
    planes = _planes(image)
    rows, columns = image.shape[:2]
    if height < rows or width < columns:
        scale = min(height / rows, width / columns)
        planes = _resize(planes, max(1, round(rows * scale)), max(1, round(columns * scale)))
    below, right = height - planes.shape[-2], width - planes.shape[-1]
    can_mirror = below < planes.shape[-2] and right < planes.shape[-1]
    return _as_clip(functional.pad(planes, (0, right, 0, below), mode="reflect" if can_mirror else "replicate"))


def _planes(image: Tensor) -> Tensor:
    return image.float().permute(2, 0, 1)[None]  # (1, 3, H, W)


def _resize(planes: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(planes, (height, width), mode="bilinear", align_corners=False)


def _as_clip(planes: Tensor) -> Tensor:
    return (planes / 127.5 - 1.0)[:, :, None].contiguous()
