"""Checkpoint states as bytes: safetensors, with the shape of the dataclasses in the file's metadata.

A state is a tree of frozen dataclasses, tuples, mappings with string keys, numbers, strings, None and tensors. Only the
classes that the caller names are read back, and a file of another schema version is refused: an upgrade with jobs in
flight fails clearly, not wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from braid.errors import BraidError

_LENGTH_BYTES = 8


class StateError(BraidError):
    """Bytes that are no state of this version."""

    status = 409
    code = "invalid_checkpoint"


def save_state(state: Any, *, version: int) -> bytes:
    """A state as a safetensors file.

    Raises:
        TypeError: it holds something that is not named above.
    """
    tensors: dict[str, Tensor] = {}
    tree = _taken_apart(state, tensors)
    # one entry: safetensors writes several in an order that differs from call to call
    return save(tensors, metadata={"checkpoint": json.dumps({"version": version, "state": tree})})


def load_state(data: bytes, *, version: int, classes: Iterable[type]) -> Any:
    """The state that `save_state` wrote.

    Raises:
        StateError: it is damaged, of another version, or of a class that is not among `classes`.
    """
    checkpoint = _checkpoint(data)
    if checkpoint.get("version") != version:
        raise StateError(
            f"this checkpoint has schema version {checkpoint.get('version')} and this server reads version {version}; "
            "the job must be started anew"
        )
    try:
        return _put_together(checkpoint["state"], load(data), {known.__name__: known for known in classes})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"this checkpoint is damaged: {error}") from error


def _checkpoint(data: bytes) -> Mapping[str, Any]:
    """What `save_state` put into the free part of the safetensors header; empty for another file's header."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if not 0 < length <= len(data) - _LENGTH_BYTES:
        raise StateError(f"this checkpoint of {len(data)} bytes is cut off or no safetensors file")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        checkpoint: Mapping[str, Any] = json.loads(header.get("__metadata__", {}).get("checkpoint", "{}"))
    except (ValueError, AttributeError) as error:
        raise StateError(f"the header of this checkpoint is damaged: {error}") from error
    return checkpoint


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON with a reference in the place of each tensor."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = f"t{len(tensors):04}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, tuple | list):
        return [_taken_apart(item, tensors) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": {key: _taken_apart(item, tensors) for key, item in value.items()}}
    if is_dataclass(value):
        content = {field.name: _taken_apart(getattr(value, field.name), tensors) for field in fields(value)}
        return {"class": type(value).__name__, "fields": content}
    raise TypeError(f"a {type(value).__name__} cannot be part of a checkpoint")


def _put_together(tree: Any, tensors: Mapping[str, Tensor], classes: Mapping[str, type]) -> Any:
    if isinstance(tree, list):
        return tuple(_put_together(item, tensors, classes) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "mapping" in tree:
        return {key: _put_together(item, tensors, classes) for key, item in tree["mapping"].items()}
    content = {name: _put_together(item, tensors, classes) for name, item in tree["fields"].items()}
    return classes[tree["class"]](**content)
