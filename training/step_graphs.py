"""Steps of training as CUDA graphs: recorded once for each kind of batch, then replayed.

A step is thousands of small kernels, and some machines take 30 microseconds of a CPU to launch each: three quarters of
the time the GPU waits. A recorded step is launched as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
WARM_UPS = 3
"""Steps of a kind before it is recorded: compilers, algorithms, caches and the optimiser's state settle in them."""


@dataclass(frozen=True)
class _Recorded:
    graph: Any
    inputs: tuple[Tensor, ...]
    result: Any

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        """What it gives lies where it always does: read it before the next step."""
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.result


class StepGraphs:
    """Runs steps, and replays them where it can.

    Args:
        tell: of a step that could not be recorded; all go on as they are then.
        is_used: False runs all steps as they are, as on a CPU.
    """

    def __init__(self, device: torch.device, tell: Callable[..., None], *, is_used: bool = True) -> None:
        self._tell = tell
        self._can_record = is_used and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._can_record else None  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle() if self._can_record else None
        self._num_calls: Counter[str] = Counter()
        self._recorded: dict[str, _Recorded] = {}

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Where everything must run that steps depend on: one stream, which is not the default one."""
        if self._stream is None:
            yield
            return
        torch.cuda.synchronize(self._stream.device)
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize(self._stream.device)

    def run(self, kind: str, step: Callable[..., T], *inputs: Tensor) -> T:
        """Do a step.

        Args:
            kind: of a batch; all of a kind have inputs of the same shapes.
            step: of the inputs. What it reads beside them stays where it is in memory, and nothing in it waits for the
                GPU, brings numbers to it or draws random ones.
        """
        if self._can_record and kind not in self._recorded:
            self._num_calls[kind] += 1
            if self._num_calls[kind] > WARM_UPS:
                self._record(kind, step, inputs)
        if not self._can_record or kind not in self._recorded:
            return step(*inputs)
        result: T = self._recorded[kind].replay(inputs)
        return result

    def _record(self, kind: str, step: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        held = tuple(value.clone() for value in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = step(*held)
        except RuntimeError as error:
            self._can_record = False
            self._tell(stage="graph", kind=kind, failed=f"{type(error).__name__}: {str(error)[:300]}")
            return
        self._recorded[kind] = _Recorded(graph, held, result)
