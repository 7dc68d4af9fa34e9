"""Compiled functions that go on uncompiled where a compiler fails: a run of minutes must not end for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from braid.training.autoencoders.run import Log


def compiled_if_possible(function: Callable[..., Any], log: Log) -> Callable[..., Any]:
    """A function that is compiled for every shape of its arguments; failures are logged."""
    chosen = torch.compile(function, dynamic=False)

    def call(*arguments: Any) -> Any:
        nonlocal chosen
        if chosen is not function:
            try:
                return chosen(*arguments)
            except Exception as error:
                log.write(stage="compile", failed=f"{type(error).__name__}: {str(error)[:400]}")
                chosen = function
        return function(*arguments)

    return call
