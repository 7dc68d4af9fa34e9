"""The small JSON files of a Hugging Face folder that speak about text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from braid.errors import ModelFileError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
"""The names that chat templates use."""


def read_json(path: Path) -> dict[str, Any]:
    """An object; empty where there is no such file. Raises ModelFileError for anything else than an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens by name, as text; tokenizer_config.json counts before special_tokens_map.json."""
    files = [read_json(folder / name) for name in ("special_tokens_map.json", "tokenizer_config.json")]
    declared = {name: file[name] for file in files for name in SPECIAL_TOKENS if file.get(name) is not None}
    return {name: _token_text(folder, name, value) for name, value in declared.items()}


def read_generation_eos_ids(folder: Path) -> list[int]:
    """The ids that end a generation by generation_config.json or, where it says nothing, config.json."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ModelFileError(f"{folder / name}: eos_token_id={value!r} must be a token id or an array of them")
        return ids
    return []


def _token_text(folder: Path, name: str, value: Any) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ModelFileError(f"{folder}: {name}={value!r} must be a string, or an object with its content")
    return text
