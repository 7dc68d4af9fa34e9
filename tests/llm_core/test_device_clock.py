"""Clocks of devices: a GPU's waits for what it was given to do."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from braid.llm_core.device_clock import device_clock


def test_a_cpu_has_done_what_it_was_asked() -> None:
    assert device_clock("cpu") is time.perf_counter


def test_the_stream_of_the_device_is_awaited_before_the_time_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def stream(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: told.append(str(device)))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(told)))
    clock = device_clock("cuda:1")
    assert [clock(), clock()] == [1.0, 2.0]
    assert told == ["cuda:1", "cuda:1"]


@pytest.mark.gpu
def test_the_time_of_a_piece_is_that_of_its_work_and_not_of_its_calls() -> None:
    clock = device_clock("cuda")
    matrix = torch.randn(8192, 8192, device="cuda")
    torch.mm(matrix, matrix)  # the library is loaded
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began = clock()
    first.record()
    for _ in range(10):
        torch.mm(matrix, matrix)
    last.record()
    took_ms = (clock() - began) * 1e3
    assert last.query()
    assert took_ms >= first.elapsed_time(last) * 0.99
