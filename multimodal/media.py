"""The H.264 round trip of a conditioning image: video models saw compressed frames, and move more when they do again.

Source: specs of LTX-2, section e.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.h264 import NUM_THREADS, PRESET, check_crf


def recompress(image: Tensor, crf: int) -> Generator[int, None, Tensor]:
    """A picture as it is after one frame of H.264, in two pieces: there and back. Yields the values of each.

    Args:
        image: (H, W, 3) uint8; an odd last row or column is cut off.
        crf: quality; 0 gives the picture back as it is.
    Returns:
        (H, W, 3) uint8.
    Raises:
        InvalidRequest: `crf` is not one, or the picture has fewer than 2 rows or columns.
    """
    check_crf(crf, param="image_crf")
    if crf == 0:
        return image
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    if not height or not width:
        raise InvalidRequest(f"an image of {image.shape[1]}x{image.shape[0]} is too small for H.264", param="image")
    yield image.numel()
    data = _encode(image[:height, :width], crf)
    yield image.numel()
    return _decode(data)


def _encode(image: Tensor, crf: int) -> bytes:
    """One frame, with the colours that the encoder assumes where nothing says otherwise, as in training."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": PRESET})
        stream.height, stream.width = image.shape[:2]
        stream.codec_context.thread_count = NUM_THREADS
        frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _decode(data: bytes) -> Tensor:
    import av

    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))
        return torch.from_numpy(frame.to_ndarray(format="rgb24"))
