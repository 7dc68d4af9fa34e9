"""Pictures and masks into what the encoders take, and frame counts."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from braid.multimodal.frame_counts import frames_of_seconds, keyframe_positions, snap_frames
from braid.multimodal.images import cover, fit_and_pad
from braid.multimodal.masks import mask_tokens
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison

TOLERANCE = 1e-6


def _preprocessing(case: Case) -> Iterable[Comparison]:
    yield from _tensors(case)
    for name, ours in (
        ("keyframes", lambda key: keyframe_positions(*map(int, key.split(",")))),
        ("snap", lambda key: [snap_frames(int(key))]),
        ("seconds", lambda key: [_frames(key)]),
    ):
        for key, expected in case.info.get(name, {}).items():
            wanted = expected if isinstance(expected, list) else [expected]
            yield Comparison(f"{name}[{key}]", torch.tensor(ours(key)), torch.tensor(wanted), 0)


def _tensors(case: Case) -> Iterable[Comparison]:
    tensors, tolerance = case.tensors(), case.tolerance(TOLERANCE)
    for index, sizes in enumerate(case.info.get("cases", [])):
        image = tensors[f"in.{index}.image_hwc_0_255"]
        for name, fitted in (("center_crop", cover), ("reflect_pad", fit_and_pad)):
            expected = tensors.get(f"out.{index}.{name}")
            if expected is not None:
                yield Comparison(f"out.{index}.{name}", fitted(image, *sizes["target"]), expected, tolerance)
    if "out.mask_tokens" in tensors:
        ours = mask_tokens(tensors["in.mask_video"])
        yield Comparison("out.mask_tokens", ours, tensors["out.mask_tokens"], tolerance)


def _frames(key: str) -> int:
    """Of "seconds,frame rate,least,most"."""
    seconds, frame_rate, least, most = key.split(",")
    return frames_of_seconds(float(seconds), float(frame_rate), int(least), int(most))


RUNNERS = {"image/mask preprocessing": _preprocessing}
