"""How long a device worked on a piece: by its own clock where it has one.

A GPU is told to note the time when it comes to a piece and when it has done it (CUDA events), so that neither the
calls nor the waiting for them count. On a CPU the host's clock is the device's.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch

from braid.llm_core.core import Clock


class DeviceTimer(Protocol):
    """Used by one thread: `start`, the work, `stop`, `elapsed_ms`. One that was not read may be started again."""

    def start(self) -> None:
        """What is asked of the device from here on counts."""
        ...

    def stop(self) -> None:
        """What is asked from here on does not. Waits for nothing."""
        ...

    def elapsed_ms(self) -> float:
        """Wait until the work is done, and tell what it took."""
        ...


class HostTimer:
    """For a device that has done what it was asked when the call returns.

    Host and device are then the same, and what the host does up to `elapsed_ms` counts as well.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._began = 0.0

    def start(self) -> None:
        self._began = self._clock()

    def stop(self) -> None:
        pass

    def elapsed_ms(self) -> float:
        return (self._clock() - self._began) * 1e3


class EventTimer:
    """Events on the calling thread's stream. Other streams, such as those that copy weights, are not looked at.

    Between the two the stream may also have been empty: a piece that only the host works on takes as long here as
    there, as it holds the stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        self._first.record(torch.cuda.current_stream(self._device))

    def stop(self) -> None:
        self._last.record(torch.cuda.current_stream(self._device))

    def elapsed_ms(self) -> float:
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last))


def device_timer(device: str) -> DeviceTimer:
    """For `cpu`, `cuda` or `cuda:N`."""
    place = torch.device(device)
    return EventTimer(place) if place.type == "cuda" else HostTimer()
