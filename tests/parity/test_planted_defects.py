"""Mistakes that ports of res_2s make are planted one by one: at least one golden case must see each."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from braid.diffusion import res_2s
from braid.tests.parity.cases import KNOWN_GOLDENS, list_cases
from braid.tests.parity.runners import sampling

KNOWN_CASES = list_cases(KNOWN_GOLDENS) if KNOWN_GOLDENS.is_dir() else []
CASES = [case for case in KNOWN_CASES if case.component == "res2s loop"]
DEFECTS = {
    "the anchor is never pulled": ("anchors = each(pull, anchors, middles, first)", "pass"),
    "noise is added from the anchor that was not pulled": (
        "to_end, anchors, ends, streams",
        "to_end, latents.map(Tensor.double), ends, streams",
    ),
    "the midpoint is the arithmetic mean": ("math.sqrt(sigma * sigma_next)", "(sigma + sigma_next) / 2"),
    "the second estimate is not used": ("weights.b2 * (d2 - anchor)", "weights.b2 * (d1 - anchor)"),
    "the last step ends elsewhere": ("LAST_SIGMA = 0.0011", "LAST_SIGMA = 0.002"),
    "midpoints have the noise of whole steps": ("options.substep_eta", "options.eta"),
    "what is held is not blended after noising": (
        "blend_clean(noised(anchor, end, sigma, sigma_next, noise, self.eta), stream)",
        "noised(anchor, end, sigma, sigma_next, noise, self.eta)",
    ),
    "the anchor of long steps is pulled": (" and h < _BONG_MAX_H and", " and"),
    "noise is not normalised over all": ("noise.step, ends", "(lambda *a, **b: noise.step(*a, **b) * 1.01), ends"),
}


def broken(old: str, new: str) -> ModuleType:
    """The module with a piece of its text replaced."""
    source = inspect.getsource(res_2s)
    assert source.count(old) == 1, f"the text to break is there {source.count(old)} times: {old}"
    module = ModuleType(res_2s.__name__)
    exec(compile(source.replace(old, new), "broken res_2s", "exec"), module.__dict__)
    return module


@pytest.mark.skipif(not CASES, reason=f"no golden cases of res_2s in {KNOWN_GOLDENS}")
@pytest.mark.parametrize(("old", "new"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_planted_defect_fails_a_golden_case(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.setattr(sampling, "res_2s", broken(old, new).res_2s)
    caught = [case.name for case in CASES if not all(item.is_close for item in sampling.run_res_2s(case))]
    assert caught
