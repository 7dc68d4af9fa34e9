"""Typed, checked access to the metadata of one GGUF model: every mistake names the file, the key and the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braid.errors import ModelFileError
from braid.llm_core.loading.layout import MAX_SIZE


class ModelMetadata:
    """Metadata of one file; names are keys without the architecture in front, unless said otherwise.

    Args:
        path: for messages.
        metadata: as read.
        architecture: the prefix of the model's own keys.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any], architecture: str) -> None:
        self.path = path
        self._metadata = metadata
        self._architecture = architecture

    def key(self, name: str) -> str:
        return f"{self._architecture}.{name}"

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A size or count. One number per layer is accepted where all are equal."""
        value = self._get(name, default)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if type(value) is not int or not minimum <= value <= MAX_SIZE:
            raise self._error(name, value, f"an integer from {minimum} to {MAX_SIZE:,}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self._get(name, default)
        if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
            raise self._error(name, value, "a positive number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        value = self._get(name, default)
        if type(value) is not str:
            raise self._error(name, value, "a string")
        return value

    def raw(self, name: str) -> Any:
        """Whatever is there, or None."""
        return self._metadata.get(self.key(name))

    def token_id(self, name: str, vocab_size: int) -> int | None:
        """A token id under `tokenizer.ggml`, or None where there is none."""
        key = f"tokenizer.ggml.{name}"
        value = self._metadata.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < vocab_size:
            raise ModelFileError(f"{self.path}: metadata {key!r} is {value!r}; it must be 0 to {vocab_size - 1}")
        return value

    def tokens(self) -> list[str]:
        """The vocabulary, or nothing where the file has none."""
        tokens = self._metadata.get("tokenizer.ggml.tokens", [])
        if not isinstance(tokens, list) or any(type(token) is not str for token in tokens):
            raise ModelFileError(f"{self.path}: metadata 'tokenizer.ggml.tokens' must be an array of strings")
        return tokens

    def token_types(self) -> list[int]:
        """One per token; 3 is a control token. Without them every token is an ordinary one (1)."""
        tokens = self.tokens()
        types = self._metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
        if not isinstance(types, list) or len(types) != len(tokens):
            wanted = f"an array of {len(tokens):,} integers, one per token"
            raise ModelFileError(f"{self.path}: metadata 'tokenizer.ggml.token_type' must be {wanted}")
        return types

    def _get(self, name: str, default: Any) -> Any:
        value = self._metadata.get(self.key(name), default)
        if value is None:
            raise ModelFileError(f"{self.path} lacks the metadata key {self.key(name)!r}")
        return value

    def _error(self, name: str, value: Any, wanted: str) -> ModelFileError:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
        return ModelFileError(f"{self.path}: metadata {self.key(name)!r} is {shown}; it must be {wanted}")
