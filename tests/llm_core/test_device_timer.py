"""What a device's part of a piece is: by events where it works beside the host, by the host's clock where it is one."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from braid.llm_core.core import Request
from braid.llm_core.device_timer import EventTimer, HostTimer, device_timer
from braid.llm_core.pipeline import InPieces, Segment
from braid.llm_core.pipeline_workload import PipelineWorkload
from braid.llm_core.scheduler.loop import Scheduler
from braid.tests.llm_core.fake_gpu import FakeGPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    return FakeGPU(monkeypatch)


def test_on_a_cpu_all_up_to_the_reading_is_the_devices() -> None:
    seconds = iter((1.0, 1.5))
    timer = HostTimer(lambda: next(seconds))
    timer.start()
    timer.stop()
    assert timer.elapsed_ms() == 500
    assert isinstance(device_timer("cpu"), HostTimer)


def test_the_devices_time_is_that_of_its_work_and_neither_of_calls_nor_of_waiting(gpu: FakeGPU) -> None:
    timer = device_timer("cuda:1")
    assert isinstance(timer, EventTimer)
    timer.start()
    gpu.ask(5, call_ms=0)
    gpu.ask(7)
    timer.stop()
    gpu.now += 2  # of the host, beside it
    assert (gpu.num_waits, timer.elapsed_ms()) == (0, 12)
    assert (gpu.num_waits, gpu.now) == (1, 12), "the piece ends when the device has done it"
    assert set(gpu.asked) == {"cuda:1"}


def test_what_the_host_does_after_the_devices_part_is_not_the_devices(gpu: FakeGPU) -> None:
    timer = device_timer("cuda")
    timer.start()
    gpu.ask(3, call_ms=0)
    timer.stop()
    gpu.now += 40
    assert timer.elapsed_ms() == 3


def test_what_was_asked_before_is_not_counted(gpu: FakeGPU) -> None:
    timer = device_timer("cuda")
    gpu.ask(100)
    timer.start()
    gpu.ask(5)
    timer.stop()
    assert timer.elapsed_ms() == pytest.approx(5)


def test_a_piece_that_failed_leaves_the_timer_to_the_next(gpu: FakeGPU) -> None:
    timer = device_timer("cuda")
    timer.start()
    gpu.ask(100, call_ms=0)
    timer.start()
    gpu.ask(5, call_ms=0)
    timer.stop()
    assert timer.elapsed_ms() == 5


@dataclass(frozen=True)
class Blur:
    kind: str = "blur"


@pytest.mark.parametrize(("has_own_timer", "device_ms"), [(True, 13), (False, 13.5)])
def test_a_steps_device_and_host_time_stand_beside_each_other_in_the_journal(
    gpu: FakeGPU, has_own_timer: bool, device_ms: float
) -> None:
    gpu.wake_ms = 0.5

    def blur(operation: Blur) -> Generator[Segment, None, str]:
        yield Segment(10.0)
        gpu.now += 1  # before anything is asked
        gpu.ask(10, call_ms=2)
        return "blurred"

    def pipeline(params: int, state: Any = None) -> Generator[Any, Any, str]:
        blurred = yield Blur()
        gpu.now += 4
        return str(blurred)

    workload = PipelineWorkload(
        "blurs",
        {int: pipeline},
        {Blur: InPieces(blur)},
        clock=gpu.settled,
        timer=device_timer("cuda") if has_own_timer else None,
    )
    scheduler = Scheduler([workload], clock=gpu.clock)
    scheduler.submit(Request("one", 1, lambda event: None))
    while scheduler.run_once():
        pass
    entries = {entry.kind: entry for entry in scheduler.journal.since()}
    assert (entries["blur"].device_ms, entries["blur"].host_ms) == pytest.approx((device_ms, 5))
    assert entries["resume"].device_ms == 0


@pytest.mark.gpu
def test_events_measure_the_work_within_the_time_that_the_host_saw() -> None:
    timer, host = device_timer("cuda"), HostTimer()
    matrix = torch.randn(8192, 8192, device="cuda")
    torch.mm(matrix, matrix)  # the library is loaded
    torch.cuda.synchronize()
    host.start()
    timer.start()
    for _ in range(10):
        torch.mm(matrix, matrix)
    timer.stop()
    asked_ms = host.elapsed_ms()
    device_ms = timer.elapsed_ms()
    assert asked_ms < device_ms <= host.elapsed_ms() * 1.001
