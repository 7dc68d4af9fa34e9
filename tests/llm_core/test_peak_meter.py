"""The allocator's peak on a GPU, and nothing where nobody counts."""

from __future__ import annotations

import pytest
import torch

from braid.llm_core.peak_meter import peak_meter

MB = 1 << 20


def test_a_cpu_tells_no_peak() -> None:
    meter = peak_meter("cpu")
    meter.start()
    assert meter.stop() is None


@pytest.mark.gpu
def test_a_gpu_tells_the_peak_beyond_what_was_there() -> None:
    held = torch.empty(8 * MB, dtype=torch.uint8, device="cuda")
    meter = peak_meter("cuda")
    meter.start()
    freed = torch.empty(4 * MB, dtype=torch.uint8, device="cuda")
    del freed
    kept = torch.empty(2 * MB, dtype=torch.uint8, device="cuda")
    assert meter.stop() == 4 * MB
    meter.start()
    assert meter.stop() == 0
    assert held.numel() + kept.numel() == 10 * MB
