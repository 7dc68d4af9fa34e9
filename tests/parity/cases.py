"""Golden cases on disk: a folder of NAME.safetensors with NAME.json, found by listing it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

_NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?"
KNOWN_GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens" / "ltx2"
"""What tests of ours take a case of by its name, or make another case of; they need no other folder to have it."""
GOLDENS = Path(os.environ.get("BRAID_GOLDENS", KNOWN_GOLDENS))
"""What is compared: any cases of the same form."""


@dataclass(frozen=True)
class Case:
    """One golden case; tensors are read when asked for."""

    name: str
    folder: Path
    info: dict[str, Any]

    @property
    def component(self) -> str:
        return str(self.info["component"])

    def tensors(self) -> dict[str, Tensor]:
        path = self.folder / f"{self.name}.safetensors"
        return load_file(path) if path.exists() else {}

    def weights(self, name: str | None = None) -> Case:
        """The shared weights that the case names (or the one called `name`); the case itself where it names none."""
        name = name or self.info.get("weights")
        # Some say which tensors of which file they mean: "vae.safetensors (w.* tensors)".
        return self if name is None else read_case(self.folder, name.split(".safetensors")[0])

    def tolerance(self, default: float) -> float:
        """The case's own, which goes before the README's: a number, or the (absolute) one of a sentence."""
        told = self.info.get("tolerance", default)
        if not isinstance(told, str):
            return float(told)
        found = re.search(rf"(?<=atol ){_NUMBER}", told) or re.search(_NUMBER, told)
        if found is not None:
            return float(found[0])
        return 0.0 if "exact" in told else default


def read_case(folder: Path, name: str) -> Case:
    return Case(name, folder, json.loads((folder / f"{name}.json").read_text()))


def list_cases(folder: Path = GOLDENS) -> list[Case]:
    """Every case of the folder, in order of name; files of shared weights are not cases."""
    names = sorted(path.stem for path in folder.glob("*.json") if path.stem != "index")
    return [read_case(folder, name) for name in names if not name.startswith("weights__")]
