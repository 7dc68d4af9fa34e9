"""Finds and loads the compiled kernels that suit this machine's processor.

The same C++ sources are compiled once for each instruction set (`setup.py`). All variants export the same C functions;
ctypes releases the GIL while one runs. Nothing here knows what the functions do.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from braid.errors import BraidError

_CPU_INFO = Path("/proc/cpuinfo")


class KernelsUnavailable(BraidError):
    """No compiled kernels can run here; the message says why, variant by variant."""

    code = "kernels_unavailable"


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation of the kernels, and the processor features that it uses (as Linux names them)."""

    name: str
    cpu_flags: frozenset[str]

    @property
    def path(self) -> Path:
        return Path(__file__).with_name(f"libbraid_cpu_{self.name}.so")

    def why_not(self, cpu_flags: frozenset[str]) -> str | None:
        """Why a processor with `cpu_flags` cannot use this variant, or None."""
        missing = sorted(self.cpu_flags - cpu_flags)
        if missing:
            return f"the processor lacks {', '.join(missing)}"
        if not self.path.exists():
            return f"{self.path.name} was not compiled (install again with a C++ compiler present)"
        return None


VARIANTS = (
    Variant(
        "avx512_vnni",
        frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx2", "f16c", "fma"}),
    ),
    Variant("avx2", frozenset({"avx2", "f16c", "fma"})),
)
"""Fastest first."""


class Library:
    """One loaded variant. `functions` is the C interface; who calls a function declares its argument types."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    @cached_property
    def functions(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.variant.path))


def read_cpu_flags(cpu_info: Path = _CPU_INFO) -> frozenset[str]:
    """The processor's feature flags; empty where the system does not list them."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpu_info.exists():
        return frozenset()
    for line in cpu_info.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def reasons_against(cpu_flags: frozenset[str] | None = None) -> dict[str, str | None]:
    """For each variant, why it cannot be used on this machine, or None if it can."""
    flags = read_cpu_flags() if cpu_flags is None else cpu_flags
    return {variant.name: variant.why_not(flags) for variant in VARIANTS}


def load_library(name: str | None = None) -> Library:
    """Load the fastest usable variant, or the one called `name`.

    Raises:
        KernelsUnavailable: none can be used, or not the one that was asked for.
    """
    reasons = reasons_against()
    if name is not None and name not in reasons:
        raise KernelsUnavailable(f"kernel variant {name!r} does not exist; there are {', '.join(reasons)}")
    wanted = [variant for variant in VARIANTS if name in (None, variant.name)]
    for variant in wanted:
        if reasons[variant.name] is None:
            return Library(variant)
    raise KernelsUnavailable("; ".join(f"{variant.name}: {reasons[variant.name]}" for variant in wanted))
