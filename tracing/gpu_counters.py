"""How busy a GPU is and what it draws, where NVIDIA's library tells (the package `nvidia-ml-py`); nothing elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

GpuCounters = Callable[[], dict[str, float]]


def gpu_counters(device: str) -> GpuCounters:
    """What reads the counters of a device such as `cuda:0`; gives nothing where there is nobody to ask.

    `utilization_ratio` is the part of the last moments in which a kernel ran; `energy_joules` counts from the start of
    the driver.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return dict
    try:
        library: Any = importlib.import_module("pynvml")
    except ImportError:
        return dict
    try:
        library.nvmlInit()
        handle = library.nvmlDeviceGetHandleByIndex(int(index or 0))
    except library.NVMLError:
        return dict
    questions: dict[str, Callable[[], float]] = {
        "utilization_ratio": lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "memory_used_bytes": lambda: library.nvmlDeviceGetMemoryInfo(handle).used,
        "power_watts": lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000,
        "energy_joules": lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
    }

    def read() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, ask in questions.items():
            try:
                found[name] = float(ask())
            except library.NVMLError:  # this GPU does not tell
                continue
        return found

    return read
