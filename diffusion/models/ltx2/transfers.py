"""Copies from the host to a device that run beside what the device computes."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

Mark = Any
"""A point in the device's work; opaque to whoever passes it on."""

LEAST_REGISTERED_BYTES = 16 << 20
"""Of buffers that are pinned by themselves: torch rounds the size of its own pinned memory up to a power of two."""


class Transfers(Protocol):
    """A queue of copies. Nothing waits here but the device, except in `finish`."""

    copied_bytes: int
    """Ever."""

    def empty(self, num_bytes: int) -> Tensor:
        """(num_bytes,) uint8 on the device."""
        ...

    def pinned(self, num_bytes: int) -> Tensor:
        """(num_bytes,) uint8 on the host, from where copies need not wait for each other."""
        ...

    def now(self) -> Mark:
        """After all that was computed so far."""
        ...

    def copy(self, target: Tensor, source: Tensor, *, after: Mark) -> Mark:
        """Copy once the device has reached `after`; returns the point where the copy is complete."""
        ...

    def wait(self, mark: Mark) -> None:
        """What is computed from now on begins after `mark`."""
        ...

    def finish(self, mark: Mark) -> None:
        """Wait on the host until the device has reached `mark`."""
        ...


class CudaTransfers:
    """A stream of its own for copies, with events in both directions."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self.copied_bytes = 0

    def empty(self, num_bytes: int) -> Tensor:
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        buffer.record_stream(self._stream)  # freed memory is not handed out while a copy writes to it
        return buffer

    def pinned(self, num_bytes: int) -> Tensor:
        if num_bytes < LEAST_REGISTERED_BYTES:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        buffer = torch.empty(num_bytes, dtype=torch.uint8)
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(cudart.cudaHostRegister(buffer.data_ptr(), num_bytes, 0))
        weakref.finalize(buffer.untyped_storage(), _unregister, buffer.data_ptr(), self._device).atexit = False
        return buffer

    def now(self) -> torch.cuda.Event:
        return self._event(torch.cuda.current_stream(self._device))

    def copy(self, target: Tensor, source: Tensor, *, after: Mark) -> torch.cuda.Event:
        self.copied_bytes += source.nbytes
        self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._event(self._stream)

    def wait(self, mark: Mark) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self, mark: Mark) -> None:
        mark.synchronize()

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event


def _unregister(address: int, device: torch.device) -> None:
    torch.cuda.synchronize(device)  # a copy may still read
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(cudart.cudaHostUnregister(address))
