"""One piece of memory for KV pages that goes back to the system when it is dropped.

An allocator's heap would keep freed memory; a mapping of its own does not.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """Zeroed memory for whole pages."""

    tensor: torch.Tensor
    """(num_pages, page_bytes) uint8 on the device."""
    discard: Callable[[], None]
    """Make the contents go now, even if a view of `tensor` lives on somewhere (it then reads zeros on a CPU)."""

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()


def new_slab(num_pages: int, page_bytes: int, device: str) -> Slab:
    """Allocate pages on `device` (`cpu`, or any other that torch knows)."""
    if torch.device(device).type != "cpu":
        # Zeroed: a masked position's garbage could be NaN, and 0 * NaN is not 0.
        return Slab(torch.zeros((num_pages, page_bytes), dtype=torch.uint8, device=device), lambda: None)
    mapping = _map_anonymous(num_pages * page_bytes)
    tensor = torch.frombuffer(mapping, dtype=torch.uint8).view(num_pages, page_bytes)
    return Slab(tensor, lambda: _advise(mapping, "MADV_DONTNEED"))


def _map_anonymous(num_bytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, num_bytes)
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(mapping, "MADV_HUGEPAGE")
    return mapping


def _advise(mapping: mmap.mmap, name: str) -> None:
    """Give the kernel advice where it takes it: the constant, or the kernel's support, may be missing."""
    advice = getattr(mmap, name, None)
    if advice is not None:
        with contextlib.suppress(OSError):
            mapping.madvise(advice)
