"""The configuration of an LTX-2 checkpoint: sections of JSON whose values are read by name and checked.

A section gives typed values or an error that names file, section, key, value and what would be right. Which keys a
network needs is the network's business; here are only the sections themselves and what must be so for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.safetensors_file import parse_json_object

V = TypeVar("V")
MAX_SIZE = 2**31 - 1
"""Every size and count of a model fits 32 bits."""
REQUIRED: Any = object()
"""As a default: the key must be there."""


@dataclass(frozen=True, slots=True)
class Section:
    """One object of the configuration.

    Raises:
        ModelFileError: by every reader, where the value is missing, of a wrong type or impossible.
    """

    path: Path
    name: str
    """Dotted, from the top of the configuration: `audio_vae.model.params`."""
    values: Mapping[str, Any]

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def error(self, key: str, value: object, right: str) -> ModelFileError:
        """The error to raise for a value."""
        return ModelFileError(f"{self.path}: config {self.name}.{key} is {value!r}; it must be {right}")

    def value(self, key: str, default: Any = REQUIRED) -> Any:
        """As it stands, or the default."""
        if key not in self.values and default is REQUIRED:
            raise ModelFileError(f"{self.path}: config {self.name}.{key} is missing")
        return self.values.get(key, default)

    def integer(self, key: str, default: Any = REQUIRED) -> int:
        """A positive integer of 31 bits."""
        value = self.value(key, default)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self.error(key, value, "a positive integer")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """A positive finite number."""
        value = self.value(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(key, value, "a positive number")
        return float(value)

    def boolean(self, key: str, default: Any = REQUIRED) -> bool:
        """True or False."""
        value = self.value(key, default)
        if type(value) is not bool:
            raise self.error(key, value, "true or false")
        return value

    def integers(self, key: str, default: Any = REQUIRED) -> tuple[int, ...]:
        """A list of positive integers, not empty."""
        value = self.value(key, default)
        if not isinstance(value, (list, tuple)) or not value:
            raise self.error(key, value, "a list of positive integers")
        if not all(type(item) is int and 1 <= item <= MAX_SIZE for item in value):
            raise self.error(key, value, "a list of positive integers")
        return tuple(value)

    def choice(self, key: str, choices: tuple[V, ...], default: Any = REQUIRED) -> V:
        """One of the values that we support.

        Raises:
            UnsupportedModel: it is another one.
        """
        value = self.value(key, default)
        for choice in choices:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        right = " or ".join(repr(choice) for choice in choices)
        raise UnsupportedModel(f"{self.path}: config {self.name}.{key} is {value!r}; supported is {right}")

    def section(self, key: str) -> Section:
        """The object under a key."""
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.error(key, value, "an object")
        return Section(self.path, f"{self.name}.{key}", value)


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """The sections of a checkpoint and what its file says about itself, in the official form."""

    path: Path
    sections: Mapping[str, Mapping[str, Any]]
    """`transformer`, `vae`, `audio_vae`, `vocoder`, `scheduler`: those that are there."""
    model_version: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Parsed: `gemma_source_checkpoint`, `license`, and our own `braid`; see docs/checkpoints.md."""

    def __contains__(self, name: object) -> bool:
        return name in self.sections

    def section(self, name: str) -> Section:
        """A section that must be there.

        Raises:
            ModelFileError: it is not.
        """
        if name not in self.sections:
            known = ", ".join(self.sections) or "none"
            raise ModelFileError(f"{self.path}: the config section {name!r} is missing; it has {known}")
        return Section(self.path, name, self.sections[name])

    def braid_section(self, name: str) -> Section:
        """A section of our own metadata; empty where the file has none."""
        braid = Section(self.path, "braid", self.metadata.get("braid") or {})
        return braid.section(name) if name in braid else Section(self.path, f"braid.{name}", {})

    def with_braid(self, name: str, **values: Any) -> CheckpointConfig:
        """With values of a section of our own metadata said otherwise."""
        braid = self.metadata.get("braid") or {}
        section = {**self.braid_section(name).values, **values}
        return replace(self, metadata={**self.metadata, "braid": {**braid, name: section}})


def read_metadata(path: Path, metadata: Mapping[str, str]) -> CheckpointConfig:
    """The configuration in the `__metadata__` of an official file.

    Raises:
        ModelFileError: there is no `config`, or it is not an object of objects.
    """
    if "config" not in metadata:
        raise ModelFileError(f"{path}: the metadata has no 'config'; this is not an official LTX-2 checkpoint")
    sections = parse_json_object(path, metadata["config"].encode())
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise ModelFileError(f"{path}: config section {name!r} is {values!r}; it must be an object")
    parsed = {name: _parsed(path, metadata, name) for name in metadata if name != "config"}
    return CheckpointConfig(path, sections, metadata.get("model_version"), parsed)


def _parsed(path: Path, metadata: Mapping[str, str], name: str) -> Any:
    text = metadata[name]
    if name == "braid" or (name == "gemma_source_checkpoint" and text.lstrip().startswith("{")):
        return parse_json_object(path, text.encode())
    return text
