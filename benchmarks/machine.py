"""What a benchmark says about where it ran, and how it sums up its samples."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def describe() -> dict[str, Any]:
    """Processor, cores and commit."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), "commit": _commit()}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return run.stdout.strip() or "unknown"


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def p95(samples: Sequence[float]) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * 0.95))]


def read_bandwidth(num_threads: int, *, num_bytes: int = 256 << 20, seconds: float = 1.0) -> float:
    """Bytes a second that `num_threads` can read from memory: the best of several passes over a large array."""
    parts = [np.ones(num_bytes // num_threads // 8, dtype=np.float64) for _ in range(num_threads)]
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        threads = [threading.Thread(target=part.max) for part in parts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - began))
    return best
