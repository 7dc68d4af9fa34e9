"""Which implementation of an operation runs here, and why the faster ones do not.

An operation has one reference, backend `torch`, which is its specification, and any number of faster kernels. The
registry decides; it never runs a kernel, and it knows no operation by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from braid.errors import InvalidRequest

REFERENCE = "torch"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a kernel may ask about a call before it accepts it. Hashable: a decision is cached by it."""

    device: str
    """`cpu`, `cuda`: without an index."""
    dtype: str = "float32"
    """Of the activations, as torch names it without the `torch.`."""
    storage: str = ""
    """Of quantised weights: `Q4_0`; empty where there are none."""
    width: int = 0
    """Length of the last dimension; 0 where the operation has no such thing."""


def accepts_all(_facts: Facts) -> str | None:
    """For a reference: nothing is refused."""
    return None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of one operation."""

    op: str
    backend: str
    target: Callable[..., Any] | str
    """The callable, or `module:name` to be imported when the kernel is first chosen."""
    accepts: Callable[[Facts], str | None] = accepts_all
    """None, or the reason why this kernel cannot take such a call."""
    priority: int = 0
    """The highest that accepts is chosen; the reference has 0."""
    is_maker: bool = False
    """The target takes nothing and returns the kernel: one that holds a library or a workspace."""

    def load(self) -> Callable[..., Any]:
        """The kernel, for one caller; imports the target's module if it was given by name."""
        target: Callable[..., Any] = self.target if callable(self.target) else _import(self.target)
        loaded: Callable[..., Any] = target() if self.is_maker else target
        return loaded


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kernel that would have come first, and its reason."""

    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The kernel that runs, and those ahead of it that do not."""

    kernel: Kernel
    refused: tuple[Refusal, ...]


class Registry:
    """All kernels that a process may choose from."""

    def __init__(self, kernels: Iterable[Kernel] = ()) -> None:
        self._kernels: dict[str, dict[str, Kernel]] = {}
        for kernel in kernels:
            self.add(kernel)

    def add(self, kernel: Kernel) -> None:
        """Register a kernel.

        Raises:
            ValueError: the operation already has a kernel of this backend.
        """
        of_op = self._kernels.setdefault(kernel.op, {})
        if kernel.backend in of_op:
            raise ValueError(f"op {kernel.op!r} already has a kernel of backend {kernel.backend!r}")
        of_op[kernel.backend] = kernel

    def __iter__(self) -> Iterator[str]:
        """The names of the operations, in the order they were registered."""
        return iter(self._kernels)

    def backends(self) -> list[str]:
        """Every backend that some operation has."""
        return sorted({backend for of_op in self._kernels.values() for backend in of_op})

    def check_preference(self, prefer: str | None) -> None:
        """Raises InvalidRequest if `prefer` is neither `auto` nor a backend of any operation."""
        if prefer not in (None, AUTO, REFERENCE, *self.backends()):
            known = ", ".join([AUTO, *self.backends()])
            raise InvalidRequest(f"kernels={prefer!r} is not a backend; choose one of {known}", param="kernels")

    def select(self, op: str, facts: Facts, prefer: str | None = None) -> Selection:
        """The fastest kernel of `op` that accepts `facts`.

        Args:
            prefer: a backend to try before all others; `torch` forces the reference; None or `auto` go by priority.
        Raises:
            KeyError: no such operation.
            InvalidRequest: unknown `prefer`, or every kernel refuses; with the reasons.
        """
        self.check_preference(prefer)
        refused: list[Refusal] = []
        for kernel in self._in_order(op, prefer):
            reason = kernel.accepts(facts)
            if reason is None:
                return Selection(kernel, tuple(refused))
            refused.append(Refusal(kernel.backend, reason))
        reasons = "; ".join(f"{refusal.backend}: {refusal.reason}" for refusal in refused)
        raise InvalidRequest(f"no kernel for op {op!r} accepts {facts}: {reasons}", param="kernels")

    def _in_order(self, op: str, prefer: str | None) -> list[Kernel]:
        of_op = self._kernels[op]
        if prefer == REFERENCE and REFERENCE in of_op:
            return [of_op[REFERENCE]]
        return sorted(of_op.values(), key=lambda kernel: (kernel.backend != prefer, -kernel.priority))
