"""H.264 as Braid writes it: the same frames give the same bytes.

x264's output depends on its number of threads, so that is a constant. BT.709 is written into the stream, so that
players and our own reader turn it back to the same colours.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import Tensor

from braid.errors import InvalidRequest

NUM_THREADS = 2
PRESET = "veryfast"
DEFAULT_CRF = 21
"""On textured clips the quality and the size that 19 is with the macroblock tree."""
MAX_CRF = 51
BT709 = 1
"""The number of BT.709 as matrix, primaries and transfer."""
LIMITED_RANGE = 1
WITHOUT_MACROBLOCK_TREE = "mbtree=0"
"""With its macroblock tree, x264 165 gives other bytes for the same frames where AVX-512 is used and a row has not a
multiple of 8 macroblocks: in 35 to 95 % of runs at widths of 96 and 160, in 10 to 50 % at 960, and in 1 % if there are
no B-frames; never at widths of 128 and 384, never without AVX-512. Without the tree 4,750 runs at six sizes, with 1
and 2 threads, were equal. At equal PSNR its files are then 3 to 6 % larger on textured clips and up to 22 % on smooth
ones; without B-frames they would be up to 15 % and 120 % larger, and still not always equal."""
BIT_EXACT: dict[str, str] = {"fflags": "+bitexact"}
"""For containers: no name and version of the writer in the file."""


def check_crf(crf: int, *, param: str = "crf") -> None:
    """Raise InvalidRequest unless it is a quality that H.264 has."""
    if type(crf) is not int or not 0 <= crf <= MAX_CRF:
        raise InvalidRequest(f"{param}={crf!r} must be an integer from 0 (best) to {MAX_CRF}", param=param)


def add_video_stream(container: Any, frame_rate: Fraction, height: int, width: int, crf: int) -> Any:
    """An H.264 stream of a PyAV container, for BT.709 frames of even size."""
    options = {"crf": str(crf), "preset": PRESET, "x264-params": WITHOUT_MACROBLOCK_TREE}
    stream = container.add_stream("libx264", rate=frame_rate, options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.time_base = 1 / frame_rate
    codec = stream.codec_context
    codec.thread_count = NUM_THREADS
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = LIMITED_RANGE
    return stream


def as_yuv(frame: Tensor) -> Any:
    """A (H, W, 3) uint8 frame of even size as a PyAV frame in BT.709, limited range."""
    import av

    rgb = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
    yuv = rgb.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
    yuv.colorspace, yuv.color_range = BT709, LIMITED_RANGE
    return yuv
