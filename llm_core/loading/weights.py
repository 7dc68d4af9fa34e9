"""What a checkpoint gives to whoever builds a model from it: a config and named tensors that are still on disk.

Names are those of Hugging Face's causal language models, whatever the file calls them:

    model.embed_tokens.weight, model.norm.weight, lm_head.weight (absent when tied)
    model.layers.{i}.input_layernorm.weight
    model.layers.{i}.self_attn.{q,k,v,o}_proj.weight, .bias; .self_attn.{q,k}_norm.weight
    model.layers.{i}.post_attention_layernorm.weight   (norm before the feed-forward; Gemma 3: norm after attention)
    model.layers.{i}.pre_feedforward_layernorm.weight, .post_feedforward_layernorm.weight   (Gemma 3)
    model.layers.{i}.mlp.{gate,up,down}_proj.weight
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from braid.llm_core.models.config import ModelConfig


class StorageType(enum.Enum):
    """How the numbers of a tensor are stored. Quantised types are GGML's block formats."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"

    @property
    def is_quantized(self) -> bool:
        return self.value[0] == "Q"


class StoredTensor(Protocol):
    """One tensor in a memory-mapped file."""

    @property
    def name(self) -> str: ...

    @property
    def storage(self) -> StorageType: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """As PyTorch has it: (out_features, in_features) for a linear layer."""
        ...

    def raw(self) -> torch.Tensor:
        """The stored bytes, uint8 (rows, row_bytes), a view of the mapped file: nothing is copied. Blocks run along
        the last dimension; 1-D tensors have one row."""
        ...

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor:
        """The numbers, dequantised, of `shape`; a copy unless the file stores exactly `dtype`. Raises ModelFileError
        if one of them is NaN or infinite."""
        ...

    def check_finite(self) -> None:
        """For users of `raw`: raise ModelFileError if a number, or a scale of a block, is NaN or infinite."""
        ...


class Weights(Protocol):
    """All tensors of a checkpoint by canonical name."""

    def __getitem__(self, name: str) -> StoredTensor:
        """Raises ModelFileError naming the file and the tensor if it is not there."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...


class Checkpoint(Protocol):
    """A model on disk, opened and checked; see `loading.checkpoint.open_checkpoint`."""

    @property
    def path(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def weights(self) -> Weights: ...

    def tokenizer(self) -> Any:
        """Build the `text.tokenizer.Tokenizer` of this checkpoint."""
        ...

    def chat_template(self) -> Any:
        """Build the `text.chat_template.ChatTemplate`, or None where the checkpoint has none."""
        ...
