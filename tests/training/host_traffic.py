"""Watching what a step of training brings to its device, for which the meta device stands, and what it asks of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, META = torch.device("cpu"), torch.device("meta")


class _Copies(TorchDispatchMode):
    """Tensors of the host that become tensors of the device, and numbers that come back."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        brings = any(value.device == CPU and value.dim() > 0 for value in given) and any(m.is_meta for m in made)
        if brings or "_local_scalar_dense" in str(func):
            self._found.append(str(func))
        return result


class _NewTensors(TorchFunctionMode):
    """Numbers of Python that become tensors of the device, which no dispatch shows."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.is_meta:
            self._found.append(str(func))
        return result


def traffic(step: Callable[[], Any]) -> list[str]:
    """Of a step that was done once before."""
    step()
    found: list[str] = []
    with _Copies(found), _NewTensors(found):
        step()
    return found


class IdleAdam:
    """In the place of torch's, whose own promise it is to be recordable."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def step(self) -> None:
        pass

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass
