"""What weights cost the budget, and how large the budget is on this machine.

A mapped file yields to whoever needs the memory: the system drops its pages and reads them again. Copies (repacked,
dequantised, on a GPU) stay until the model is dropped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from braid.llm_core.loading.weights import Weights
from braid.llm_core.memory.arena import Arena, Lease

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class ModelLeases:
    """The two leases of one model in memory."""

    mapped: Lease
    copied: Lease


class WeightResidency:
    """Leases the weights of models from the arena, by the model's name."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._models: dict[str, ModelLeases] = {}

    def admit(self, model: str, *, mapped_bytes: int, copied_bytes: int) -> None:
        """Lease what a model is going to hold; call it before loading.

        Args:
            mapped_bytes: of the tensors that it reads where they lie in its mapped files; `stored_bytes` if all.
            copied_bytes: of what loading copies out of them.
        Raises:
            CannotFit: the files are larger than the budget, or the copies than what other models leave of it.
            MemoryPressure: they would fit if less were running.
            ValueError: the model is there already.
        """
        if model in self._models:
            raise ValueError(f"the weights of {model} are leased already")
        copied = self._arena.lease(f"the weights of {model}", copied_bytes, kind="weights", permanent=True)
        try:
            self._models[model] = ModelLeases(self._lease_mapped(model, mapped_bytes), copied)
        except BaseException:
            copied.release()
            raise

    def correct(self, model: str, *, copied_bytes: int) -> None:
        """Replace the estimate of a loaded model's copies by what they really take. Raises as `admit`."""
        self._models[model].copied.resize(copied_bytes)

    def drop(self, model: str) -> None:
        """Give a model's bytes back, once its memory is free. Unknown ones are ignored."""
        leases = self._models.pop(model, None)
        if leases is not None:
            leases.mapped.release()
            leases.copied.release()

    def _lease_mapped(self, model: str, num_bytes: int) -> Lease:
        return self._arena.lease(f"the files of {model}", num_bytes, kind="mapped weights", evictable=True)


def stored_bytes(weights: Weights) -> int:
    """Bytes of all tensors of a checkpoint as they are stored."""
    return sum(weights[name].raw().nbytes for name in weights)


def default_budget_bytes(device: str = "cpu") -> int:
    """The budget where the user names none: on a CPU the smaller of half the memory and what is available now, within
    the container's limit; on a GPU nine tenths of what is free."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free * 9 // 10
    total, available = _memory_bytes()
    return max(1, min(total // 2, available))


def resident_bytes() -> int:
    """Physical memory of this process now (RSS). Linux only: 0 where /proc is missing."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0


def _memory_bytes() -> tuple[int, int]:
    """(total, available) of the machine, or of the container if it has less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = min([total, *_container_limits()])
    return limit, min(limit, _available_bytes(total))


def _available_bytes(total: int) -> int:
    """What the kernel could hand out without swapping; half of all where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return total // 2
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _container_limits() -> list[int]:
    texts = [path.read_text().strip() for path in CGROUP_LIMITS if path.exists()]
    return [int(text) for text in texts if text.isdigit()]
