"""What every language model on every backend promises to the workloads that run it.

Two implementations: `torch_model.TorchModel` (plain operators, any device: the specification) and
`cpu_model.CpuModel` (the C++ kernels, quantised weights). Both keep their keys and values in pages of
`page_tokens` positions; a page holds all layers, and its inner layout is the backend's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from braid.llm_core.models.config import ModelConfig

IntArray = npt.NDArray[np.int32]


@dataclass(slots=True)
class ForwardBatch:
    """Tokens of several sequences for one forward call, prefill chunks and decode tokens mixed.

    The tokens of one sequence stand together, in ascending positions without gaps, after all of its earlier positions
    have been computed. Arrays are C-contiguous int32.
    """

    input_ids: IntArray
    """(num_tokens,)"""
    positions: IntArray
    """(num_tokens,) index in the sequence, which is also the slot: page `positions // page_tokens` of its table."""
    sequence_index: IntArray
    """(num_tokens,) row of `block_tables`; ascending."""
    block_tables: IntArray
    """(num_sequences, max_pages) page ids; entries past a sequence's end are never read."""
    logits_rows: IntArray
    """(num_logits,) the tokens whose logits are wanted; ascending."""
    hidden_rows: IntArray | None = None
    """(num_hidden,) the tokens whose hidden states are wanted; ascending. None: none."""
    hidden_layers: tuple[int, ...] = ()
    """0 is the embedding output (after scaling), i the output of layer i; `num_layers` is after the final norm."""


@dataclass(slots=True)
class ForwardResult:
    """Outputs of one forward call; the arrays may be reused by the next call of the same model."""

    logits: Any
    """(num_logits, vocab_size) float32: a numpy array on a CPU, a torch tensor on another device."""
    hidden_states: Any = None
    """(len(hidden_layers), num_hidden, hidden_size) float32, or None."""


class KVSlabs(Protocol):
    """The memory behind page ids. Page id = slab * pages_per_slab + page in the slab."""

    pages_per_slab: int
    page_bytes: int

    def addresses(self) -> npt.NDArray[np.int64]:
        """(num_slabs,) start address of each slab on a CPU, 0 where a slab has been given back."""
        ...

    def slabs(self) -> Sequence[Any]:
        """One uint8 torch tensor (pages_per_slab, page_bytes) per slab on the model's device, None where given back."""
        ...


class LanguageModel(Protocol):
    """Weights in memory that turn tokens into logits or hidden states.

    The outputs for one token depend on its own sequence alone, bit for bit: not on batch-mates, not on how the prompt
    was cut into calls (docs/numerics.md).
    """

    config: ModelConfig
    page_tokens: int
    """Positions per KV page."""
    page_bytes: int
    """Bytes of one page, all layers together."""
    weight_bytes: int
    device: str
    """`cpu` or `cuda`; where slabs must live."""

    def describe(self) -> dict[str, Any]:
        """Which kernel runs each part, how each weight type is held (kept quantised or dequantised to what)."""
        ...

    def workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Predicted peak bytes of a forward call beside weights and KV."""
        ...

    def forward(self, batch: ForwardBatch, slabs: KVSlabs) -> ForwardResult:
        """Run every layer on the batch, writing the tokens' keys and values to their pages. Releases the GIL."""
        ...

    def close(self) -> None:
        """Give weights and threads back."""
        ...
