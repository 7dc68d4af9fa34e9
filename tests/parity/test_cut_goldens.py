"""The golden cases of networks that are computed region by region, with every layer of every case cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from braid.diffusion.models.ltx2 import signals, volumes
from braid.diffusion.models.ltx2.volumes import Region
from braid.tests.parity.cases import GOLDENS, Case, list_cases
from braid.tests.parity.comparison import check
from braid.tests.parity.runners.loading import all_runners

Part = TypeVar("Part")
RUNNERS = all_runners()
NUM_PARTS = 5
CUT = ("video VAE encode", "video VAE decode", "tiled decode", "vocoder v2", "vocoder BWE")
CASES = [case for case in list_cases() if case.component in CUT] if GOLDENS.is_dir() else []


@pytest.fixture
def num_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Into how many parts each layer was cut: about `NUM_PARTS`, whatever its size."""
    counts: list[int] = []
    whole_regions, whole_runs = volumes.regions, signals.runs

    def regions(x: Tensor, macs_a_row: int, **together: int) -> list[Region]:
        macs = x.shape[2] * x.shape[3] * macs_a_row
        return limited(volumes.MAX_REGION_MACS, macs, lambda: whole_regions(x, macs_a_row, **together))

    def runs(length: int, macs: int, device: torch.device) -> list[slice]:
        return limited(signals.MAX_RUN_MACS, length * macs, lambda: whole_runs(length, macs, device))

    def limited(limits: dict[str, int], macs: int, cut: Callable[[], list[Part]]) -> list[Part]:
        monkeypatch.setitem(limits, "cpu", max(1, macs // NUM_PARTS))
        parts = cut()
        counts.append(len(parts))
        return parts

    monkeypatch.setattr(volumes, "regions", regions)
    monkeypatch.setattr(signals, "runs", runs)
    return counts


@pytest.mark.skipif(not CASES, reason=f"no such golden cases in {GOLDENS}: set BRAID_GOLDENS to a folder of them")
@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.name if case else "none")
def test_a_golden_case_is_reproduced_in_small_regions(case: Case, num_parts: list[int]) -> None:
    check(case.name, RUNNERS[case.component](case))
    assert min(num_parts) > 1
    assert sum(num_parts) >= (NUM_PARTS - 1) * len(num_parts)
