"""What weights cost the budget, and the default budget."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.memory import residency
from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.residency import WeightResidency, default_budget_bytes, resident_bytes, stored_bytes


def test_mapped_weights_yield_and_copies_stay() -> None:
    arena = Arena(1_000)
    WeightResidency(arena).admit("smollm2", mapped_bytes=900, copied_bytes=300)
    usage = arena.usage()
    assert usage.by_kind == {"mapped weights": 900, "weights": 300}
    assert (usage.leased_bytes, usage.evictable_bytes) == (300, 900)
    assert arena.could_ever_fit(700)
    assert not arena.could_ever_fit(701)


def test_model_larger_than_the_budget_is_refused_with_both_numbers_and_holds_nothing() -> None:
    arena = Arena(1_000)
    weights = WeightResidency(arena)
    weights.admit("first", mapped_bytes=0, copied_bytes=400)
    with pytest.raises(CannotFit, match=r"^holding the weights of second needs 601 bytes .* room for 600"):
        weights.admit("second", mapped_bytes=10, copied_bytes=601)
    with pytest.raises(CannotFit, match=r"^holding the files of second \(mapped weights\) needs 1,001 bytes"):
        weights.admit("second", mapped_bytes=1_001, copied_bytes=100)
    assert arena.usage().by_owner == {"the weights of first": 400}
    weights.admit("second", mapped_bytes=10, copied_bytes=600)


def test_model_that_does_not_fit_beside_running_work_may_be_tried_again() -> None:
    arena = Arena(1_000)
    weights = WeightResidency(arena)
    running = arena.lease("video", 800, kind="latents")
    with pytest.raises(MemoryPressure, match="needs 300 bytes and 200 are free"):
        weights.admit("model", mapped_bytes=0, copied_bytes=300)
    running.release()
    weights.admit("model", mapped_bytes=0, copied_bytes=300)


def test_estimate_is_corrected_and_a_dropped_model_gives_all_back() -> None:
    arena = Arena(1_000)
    weights = WeightResidency(arena)
    weights.admit("model", mapped_bytes=50, copied_bytes=300)
    weights.correct("model", copied_bytes=900)
    assert arena.available_bytes == 100
    with pytest.raises(ValueError, match="model are leased already"):
        weights.admit("model", mapped_bytes=1, copied_bytes=1)
    weights.drop("model")
    weights.drop("model")
    assert arena.usage().by_owner == {}
    assert arena.could_ever_fit(1_000)


class TwoTensors:
    """Weights of 24 and 10 stored bytes."""

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "b"))

    def __getitem__(self, name: str) -> Any:
        return Raw(torch.zeros((2, 12) if name == "a" else (1, 10), dtype=torch.uint8))


class Raw:
    def __init__(self, stored: torch.Tensor) -> None:
        self.stored = stored

    def raw(self) -> torch.Tensor:
        return self.stored


def test_stored_bytes_are_those_of_all_tensors_in_the_file() -> None:
    weights: Any = TwoTensors()
    assert stored_bytes(weights) == 34


def test_default_budget_on_a_cpu_is_at_most_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "_memory_bytes", lambda: (1_000, 900))
    assert default_budget_bytes("cpu") == 500
    monkeypatch.setattr(residency, "_memory_bytes", lambda: (1_000, 300))
    assert default_budget_bytes("cpu") == 300


def test_container_limit_bounds_the_default_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(residency, "CGROUP_LIMITS", (limit, tmp_path / "missing"))
    assert default_budget_bytes() == 500_000
    limit.write_text("max\n")
    assert default_budget_bytes() > 500_000


@pytest.mark.skipif(resident_bytes() == 0, reason="needs /proc")
def test_resident_memory_grows_with_what_is_written() -> None:
    with mmap.mmap(-1, 32 << 20) as block:  # pages of its own: the heap may have as many that it does not use
        before = resident_bytes()
        block.write(bytes(32 << 20))
        assert resident_bytes() - before > 30 << 20
