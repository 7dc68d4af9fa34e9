"""How much memory a piece of work took at its peak, as far as the device tells.

On CUDA the allocator counts every byte. On a CPU nobody does: the resident set moves in steps of megabytes, and with
whatever other threads do, so it could not tell a step of 2 MB from none. There a prediction stands as it is.
"""

from __future__ import annotations

from typing import Protocol

import torch


class PeakMeter(Protocol):
    """Used by one thread: `start`, the work, `stop`."""

    def start(self) -> None: ...

    def stop(self) -> int | None:
        """Bytes that were allocated at the highest since `start`, beyond those that were there; None: unknown."""
        ...


class NoMeter:
    """For devices that do not tell."""

    def start(self) -> None:
        pass

    def stop(self) -> int | None:
        return None


class CudaMeter:
    """Reads torch's allocator. It counts the whole device, so nothing else may allocate meanwhile."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._num_bytes_before = 0

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._num_bytes_before = torch.cuda.memory_allocated(self._device)

    def stop(self) -> int | None:
        return torch.cuda.max_memory_allocated(self._device) - self._num_bytes_before


def peak_meter(device: str) -> PeakMeter:
    """What there is for a device: `cpu`, `cuda` or `cuda:N`."""
    return CudaMeter(device) if torch.device(device).type == "cuda" else NoMeter()
