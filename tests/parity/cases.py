"""Golden cases on disk: a folder of NAME.safetensors with NAME.json, found by listing it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

GOLDENS = Path(os.environ.get("BRAID_GOLDENS", Path(__file__).parents[2].parent / "shared" / "goldens" / "ltx2"))


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
        """The shared weights that the case names (or the one called `name`): tensors, config and key map."""
        return read_case(self.folder, name or self.info["weights"])


def read_case(folder: Path, name: str) -> Case:
    return Case(name, folder, json.loads((folder / f"{name}.json").read_text()))


def list_cases(folder: Path = GOLDENS) -> list[Case]:
    """Every case of the folder, in order of name; files of shared weights are not cases."""
    names = sorted(path.stem for path in folder.glob("*.json") if path.stem != "index")
    return [read_case(folder, name) for name in names if not name.startswith("weights__")]
