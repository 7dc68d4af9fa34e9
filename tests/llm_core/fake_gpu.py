"""A GPU of one stream whose time the test moves: calls return at once, and work is done when its turn has come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


class FakeGPU:
    """Host and device have one time, in milliseconds. `torch.cuda` is this one's while a test runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        """The host's."""
        self.free_at = 0.0
        """When all that was asked is done."""
        self.wake_ms = 0.0
        """From the end of the work until the host that waits for it goes on."""
        self.num_waits = 0
        self.asked: list[str] = []
        """The devices whose stream was asked for."""
        monkeypatch.setattr(torch.cuda, "Event", lambda *, enable_timing: FakeEvent(self, has_time=enable_timing))
        monkeypatch.setattr(torch.cuda, "current_stream", self._stream)

    def ask(self, ms: float, *, call_ms: float = 0.01) -> None:
        """A kernel of so many milliseconds."""
        self.now += call_ms
        self.free_at = max(self.free_at, self.now) + ms

    def wait_until(self, done_at: float) -> None:
        self.num_waits += 1
        self.now = max(self.now, done_at) + self.wake_ms

    def clock(self) -> float:
        """The host's, in seconds."""
        return self.now / 1e3

    def settled(self) -> float:
        """The same, when all that was asked is done."""
        self.wait_until(self.free_at)
        return self.clock()

    def _stream(self, device: torch.device) -> SimpleNamespace:
        self.asked.append(str(device))
        return SimpleNamespace(synchronize=lambda: self.wait_until(self.free_at), gpu=self)


class FakeEvent:
    """`torch.cuda.Event`."""

    def __init__(self, gpu: FakeGPU, *, has_time: bool) -> None:
        assert has_time
        self._gpu = gpu
        self._noted: float | None = None

    def record(self, stream: SimpleNamespace) -> None:
        assert stream.gpu is self._gpu
        self._noted = max(self._gpu.free_at, self._gpu.now)

    def synchronize(self) -> None:
        assert self._noted is not None
        self._gpu.wait_until(self._noted)

    def elapsed_time(self, later: FakeEvent) -> float:
        assert self._noted is not None and later._noted is not None
        assert later._noted <= self._gpu.now, "the device is not there yet"
        return later._noted - self._noted
