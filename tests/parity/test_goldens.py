"""Every golden case of the folder against our code; a case of a component that nobody runs is a failure.

A runner lives in `runners/`: a function from a case to `Comparison`s, called by the component's name. It must compare
every tensor recorded in the case, by its name there; `comparison.NOT_COMPARED` has the exceptions. The worst difference
of each component is printed at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from braid.tests.parity.cases import GOLDENS, Case, list_cases
from braid.tests.parity.comparison import Differences, check, forgotten
from braid.tests.parity.runners.loading import all_runners

RUNNERS = all_runners()
CASES = list_cases() if GOLDENS.is_dir() else []


@pytest.fixture(scope="module")
def differences(request: pytest.FixtureRequest) -> Iterator[Differences]:
    found = Differences()
    yield found
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with nullcontext() if capture is None else capture.global_and_fixture_disabled():
        if terminal is not None:
            terminal.write_line("\n" + found.table())


@pytest.mark.skipif(not CASES, reason=f"no golden cases in {GOLDENS}: set BRAID_GOLDENS to a folder of them")
@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case.name if case else "none")
def test_a_golden_case_is_reproduced(case: Case, differences: Differences) -> None:
    runner = RUNNERS.get(case.component)
    assert runner is not None, f"nobody runs component {case.component!r} of case {case.name}"
    comparisons = list(runner(case))
    assert comparisons, f"the runner of {case.component!r} compared nothing"
    missing = forgotten(case.component, case.tensors(), comparisons)
    assert not missing, f"the runner of {case.component!r} did not compare {missing}"
    differences.add(case.component, case.name, comparisons)
    check(case.name, comparisons)
