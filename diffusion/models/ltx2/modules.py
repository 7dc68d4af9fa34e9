"""Modules whose weights are a file's tensors: built without memory, then given exactly what the file has.

Nothing is copied: a parameter *is* the memory-mapped tensor, and nobody writes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from braid.errors import ModelFileError

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")

Pieces = Generator[int, None, T]
"""Work in bounded pieces: yields in front of each piece its multiply-adds, and returns the result after the last one.
Between pieces it holds only its own tensors, so that others may run; stopping changes no bit of the result."""


def finish(pieces: Pieces[T]) -> T:
    """Run all that is left, and give the result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def work(module: nn.Module, x: Tensor) -> int:
    """Multiply-adds of layers that read every parameter once for every position of (B, C, ...positions)."""
    return sum(parameter.numel() for parameter in module.parameters()) * (x.numel() // x.shape[1])


@dataclass(frozen=True)
class KeyNames:
    """Parts of key names that differ between the official files and the module, as (official, of the module)."""

    pairs: Sequence[tuple[str, str]] = ()

    def of_module(self, official: str) -> str:
        for old, new in self.pairs:
            official = official.replace(old, new)
        return official

    def official(self, of_module: str) -> str:
        for old, new in reversed(self.pairs):
            of_module = of_module.replace(new, old)
        return of_module


SAME_NAMES = KeyNames()


def build_module(what: str, make: Callable[[], M], weights: Mapping[str, Tensor], names: KeyNames = SAME_NAMES) -> M:
    """A module in inference mode that shares its tensors with `weights`.

    Args:
        what: for errors: "the video encoder".
        make: constructs the module; called where new tensors take no memory.
        weights: by official names, all of them the module's.
    Raises:
        ModelFileError: tensors are missing, unexpected or of another shape; the message names all of them.
    """
    with torch.device("meta"):
        module = make()
    expected = {names.official(key): tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    check_tensors(what, expected, weights)
    module.load_state_dict({names.of_module(key): tensor for key, tensor in weights.items()}, assign=True)
    return module.eval().requires_grad_(False)


def without_memory(make: Callable[[], M], dtype: torch.dtype) -> M:
    """The same module on the meta device, to predict with: it has shapes and a dtype, and no weights."""
    with torch.device("meta"):
        module = make()
    # Not `module.to`: diffusers' own logs a warning on every change of dtype.
    nn.Module.to(module, dtype=dtype)
    return module.requires_grad_(False)


def check_tensors(what: str, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor]) -> None:
    """Compare tensors with what a network has.

    Raises:
        ModelFileError: some are missing, unexpected or of another shape; the message names all of them.
    """
    problems = [f"missing {key} {expected[key]}" for key in sorted(expected.keys() - weights.keys())]
    problems += [f"unexpected {key} {tuple(weights[key].shape)}" for key in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{key} is {tuple(weights[key].shape)} and must be {shape}"
        for key, shape in sorted(expected.items())
        if key in weights and weights[key].shape != shape
    ]
    if problems:
        raise ModelFileError(f"the tensors of {what} do not fit its config: " + "; ".join(problems))


def with_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start so, under the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
