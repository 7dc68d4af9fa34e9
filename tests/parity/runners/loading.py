"""Finds the runners: every module of this folder has a `RUNNERS` of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison

Runner = Callable[[Case], Iterable[Comparison]]


def all_runners() -> dict[str, Runner]:
    """By the component that they run; no component may have two."""
    runners: dict[str, Runner] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem == Path(__file__).stem:
            continue
        for component, runner in importlib.import_module(f"braid.tests.parity.runners.{path.stem}").RUNNERS.items():
            assert component not in runners, f"two runners for {component!r}"
            runners[component] = runner
    return runners
