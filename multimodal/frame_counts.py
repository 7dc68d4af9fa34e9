"""Frames, seconds and frame rates: which counts a video model can make, and what a rate that a user types means.

Source: specs of LTX-2, section e; golden component "image/mask preprocessing".
"""

from __future__ import annotations

from fractions import Fraction

from braid.errors import InvalidRequest

NTSC_TOLERANCE = Fraction(1, 2000)
MAX_FRAME_RATE = 1000


def exact_frame_rate(value: float | Fraction, *, param: str = "frame_rate") -> Fraction:
    """A rate without rounding: 23.976 is 24000/1001, 29.97 is 30000/1001; any other number is itself.

    Raises:
        InvalidRequest: it is not a number from 0 to 1000.
    """
    if not 0 < value <= MAX_FRAME_RATE:  # NaN is neither
        raise InvalidRequest(f"{param}={value!r} must be more than 0 and at most {MAX_FRAME_RATE}", param=param)
    if isinstance(value, Fraction):
        return value
    exact = Fraction(value)
    if exact.denominator == 1:
        return exact
    nearest = Fraction(round(exact * 1001 / 1000)) * 1000 / 1001
    if nearest.numerator and abs(exact - nearest) < NTSC_TOLERANCE:
        return nearest
    return exact.limit_denominator(100_000)  # what the digits of a float mean, and what fits a file's time base


def snap_frames(num_frames: int, time_factor: int = 8) -> int:
    """The largest `time_factor * k + 1` that is not more.

    Raises:
        InvalidRequest: there is none, because `num_frames` is not positive.
    """
    if num_frames < 1:
        raise InvalidRequest(f"num_frames={num_frames} must be at least 1", param="num_frames")
    return (num_frames - 1) // time_factor * time_factor + 1


def frames_of_seconds(
    seconds: float, frame_rate: float | Fraction, min_frames: int, max_frames: int, time_factor: int = 8
) -> int:
    """How many frames to make for a duration: clamped to the bounds, then snapped, up only where down is too few.

    Where no count lies in the bounds, the nearest one beside them.
    """
    wanted = max(max(1, min_frames), min(round(seconds * frame_rate), max_frames))
    below = snap_frames(wanted, time_factor)
    above = below + time_factor
    if below >= min_frames:
        return below
    if above <= max_frames or above - wanted < wanted - below:
        return above
    return below


def keyframe_positions(num_keyframes: int, num_frames: int) -> list[int]:
    """Frames at equal distances inside a clip, the first and the last frame not among them."""
    return [round(Fraction((num_frames - 1) * index, num_keyframes + 1)) for index in range(1, num_keyframes + 1)]
