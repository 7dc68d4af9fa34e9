"""The weights of a `TorchModel`: every tensor dequantised once to one dtype, products of one input fused.

It knows the names and shapes that a checkpoint must have, and the order of rotation pairs; not how layers compute.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.errors import ModelFileError
from braid.llm_core.layers.linear import Linear, SharedBuckets, make_linear
from braid.llm_core.loading.weights import Weights
from braid.llm_core.models.config import ModelConfig

MAX_LOGITS_ROWS = 64
"""Larger products with the vocabulary are rare, and long to try."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block. Norm weights are float32 with the offset added; those that an architecture lacks are None."""

    input_norm: Tensor
    qkv: Linear
    """(num_heads + 2 * num_kv_heads) * head_dim features: queries, keys, values."""
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Linear
    post_attention_norm: Tensor | None
    ffn_norm: Tensor
    gate_up: Linear
    down: Linear
    post_ffn_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class TorchWeights:
    """All weights of a model."""

    embeddings: Tensor
    """(vocab_size, hidden_size)"""
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    lm_head: Linear
    """Holds `embeddings` itself when tied."""
    storage: dict[str, int]
    """How many tensors of each storage type were read."""
    num_bytes: int


class WeightLoader:
    """Reads a checkpoint into memory of `device`.

    Raises (all methods):
        ModelFileError: a tensor is missing or has another shape than the configuration says.
    """

    def __init__(self, config: ModelConfig, weights: Weights, *, device: torch.device, dtype: torch.dtype) -> None:
        self._config = config
        self._weights = weights
        self._device = device
        self._dtype = dtype
        self._storage: Counter[str] = Counter()
        self._num_bytes = 0
        self._buckets: SharedBuckets = {}

    def load(self) -> TorchWeights:
        config = self._config
        embeddings = self._matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        head = embeddings
        if not config.tie_word_embeddings and "lm_head.weight" in self._weights:
            head = self._matrix("lm_head.weight", config.vocab_size, config.hidden_size)
        layers = tuple(self._layer(f"model.layers.{i}") for i in range(config.num_layers))
        return TorchWeights(
            embeddings=embeddings,
            layers=layers,
            norm=self._norm("model.norm"),
            lm_head=make_linear(head, None, self._buckets, max_rows=MAX_LOGITS_ROWS),
            storage=dict(self._storage),
            num_bytes=self._num_bytes,
        )

    def _layer(self, prefix: str) -> LayerWeights:
        config = self._config
        has_post_norms = config.post_norms
        ffn_norm = "pre_feedforward_layernorm" if has_post_norms else "post_attention_layernorm"
        attention_width = config.num_heads * config.head_dim
        return LayerWeights(
            input_norm=self._norm(f"{prefix}.input_layernorm"),
            qkv=self._qkv(f"{prefix}.self_attn"),
            q_norm=self._head_norm(f"{prefix}.self_attn.q_norm"),
            k_norm=self._head_norm(f"{prefix}.self_attn.k_norm"),
            output=self._linear([f"{prefix}.self_attn.o_proj"], [config.hidden_size], attention_width),
            post_attention_norm=self._norm(f"{prefix}.post_attention_layernorm") if has_post_norms else None,
            ffn_norm=self._norm(f"{prefix}.{ffn_norm}"),
            gate_up=self._linear(
                [f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"], [config.intermediate_size] * 2, config.hidden_size
            ),
            down=self._linear([f"{prefix}.mlp.down_proj"], [config.hidden_size], config.intermediate_size),
            post_ffn_norm=self._norm(f"{prefix}.post_feedforward_layernorm") if has_post_norms else None,
        )

    def _qkv(self, prefix: str) -> Linear:
        config = self._config
        sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        names = [f"{prefix}.{part}_proj" for part in "qkv"]
        num_rotated = sizes[0] + sizes[1] if config.rope_interleaved else 0
        return self._linear(
            names, sizes, config.hidden_size, has_bias=config.attention_bias, num_interleaved=num_rotated
        )

    def _linear(
        self,
        names: list[str],
        out_features: list[int],
        in_features: int,
        *,
        has_bias: bool = False,
        num_interleaved: int = 0,
    ) -> Linear:
        """One layer from the rows of several.

        Args:
            num_interleaved: how many of the first rows, whole heads, to put in half-split order.
        """
        weight = self._empty(sum(out_features), in_features)
        bias = self._empty(sum(out_features)) if has_bias else None
        start = 0
        for name, count in zip(names, out_features, strict=True):
            end = start + count
            weight[start:end] = self._read(f"{name}.weight", (count, in_features))
            if bias is not None:
                bias[start:end] = self._read(f"{name}.bias", (count,))
            start = end
        for tensor in (weight, bias):
            if tensor is not None and num_interleaved:
                tensor[:num_interleaved] = self._half_split(tensor[:num_interleaved])
        return make_linear(weight, bias, self._buckets)

    def _half_split(self, rows: Tensor) -> Tensor:
        """Rows of whole heads from pair order (0, 1), (2, 3), ... to (0, dim/2), (1, dim/2 + 1), ..."""
        pairs = rows.reshape(-1, self._config.head_dim // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).reshape(rows.shape)

    def _head_norm(self, name: str) -> Tensor | None:
        config = self._config
        if not config.qk_norm:
            return None
        weight = self._norm(name, config.head_dim)
        return self._half_split(weight) if config.rope_interleaved else weight

    def _norm(self, name: str, width: int | None = None) -> Tensor:
        shape = (self._config.hidden_size if width is None else width,)
        weight = self._read(f"{name}.weight", shape, torch.float32).to(self._device)
        self._num_bytes += weight.nbytes
        return weight + self._config.norm_weight_offset

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        return self._empty(rows, columns).copy_(self._read(name, (rows, columns)))

    def _empty(self, *shape: int) -> Tensor:
        """Memory of our own, aligned: a mapped file's pages could be evicted, and are aligned as the file likes."""
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._num_bytes += tensor.nbytes
        return tensor

    def _read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        stored = self._weights[name]
        if tuple(stored.shape) != shape:
            raise ModelFileError(f"tensor {name} has shape {tuple(stored.shape)}; the configuration needs {shape}")
        self._storage[stored.storage.value] += 1
        return stored.to_torch(dtype or self._dtype)
