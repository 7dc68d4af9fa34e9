"""Component `LoRA fuse`: adapters merged into one weight, stored in every way.

A case holds adapters `in.lora<i>.*`, base weights `in.weight_<form>`, and results whose names end in the strengths:
`out.<rule>.<strength 0>_<strength 1>`, `None` for an adapter that is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from braid.lora.apply import finish
from braid.lora.factors import Factors, StoredWeight, merge_weight
from braid.lora.layout import layout_of
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison, results

Adapters = dict[int, tuple[Tensor, Tensor]]

_FACTOR = re.compile(r"in\.lora(\d+)\..+\.lora_(A|B)\.weight")
_RESULT = re.compile(r"(?P<what>(out|ref)\..+?)\.(?P<strengths>(-?[\d.]+(e-?\d+)?|None)(_(-?[\d.]+(e-?\d+)?|None))*)")


def fuse(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    tolerance = case.tolerance(0.0)
    for name, expected in results(tensors).items():
        result = _RESULT.fullmatch(name)
        assert result, f"{name} is no result of merging"
        factors = _factors(_adapters(tensors), result["strengths"].split("_"))
        yield Comparison(name, _ours(result["what"], tensors, factors), expected, tolerance)


def _adapters(tensors: dict[str, Tensor]) -> Adapters:
    sides: dict[tuple[int, str], Tensor] = {}
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            sides[int(match[1]), match[2]] = tensor
    return {index: (sides[index, "A"], sides[index, "B"]) for index, side in sides if side == "A"}


def _factors(adapters: Adapters, strengths: list[str]) -> list[Factors]:
    return [
        Factors(*adapters[index], float(strength)) for index, strength in enumerate(strengths) if strength != "None"
    ]


def _ours(what: str, tensors: dict[str, Tensor], factors: list[Factors]) -> Tensor:
    form = what.split(".")[-1]
    match what.split("."):
        case ["out", "bf16rule", _]:
            return _merged(StoredWeight(tensors[f"in.weight_{form}"]), factors).weight
        case ["out", "fp8cast_cpu"]:
            return _merged(StoredWeight(tensors["in.weight_fp8cast"]), factors).weight
        case ["out", "fp8scaled" | "fp8scaled_scale"]:
            result = _merged(StoredWeight(tensors["in.weight_fp8scaled"], tensors["in.weight_scale"]), factors)
            assert result.scale is not None
            return result.scale if form == "fp8scaled_scale" else result.weight
        case ["ref", "exact_f32"]:
            return _exact(tensors["in.weight_f32"], factors)
    raise AssertionError(f"nobody knows what {what} is")


def _merged(stored: StoredWeight, factors: list[Factors]) -> StoredWeight:
    layout = layout_of(stored.weight, [("module", stored.weight.shape[0])])
    return finish(merge_weight(stored, layout, {"module": factors}))


def _exact(weight: Tensor, factors: list[Factors]) -> Tensor:
    """The mathematics of the rule without its rounding; merging never gives this."""
    delta = torch.zeros_like(weight)
    for factor in factors:
        delta += factor.strength * (factor.b @ factor.a)
    return weight + delta


RUNNERS = {"LoRA fuse": fuse}
