"""A language model on the C++ kernels: quantised weights stay quantised, and one call runs the whole step.

`can_run` says why a checkpoint cannot run here; the plain operators of `torch_model` can take it then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from braid.errors import UnsupportedModel
from braid.kernels.cpu.library import KernelsUnavailable, load_library, reasons_against
from braid.kernels.cpu.transformer import (
    PACKED_AS,
    PAGE_TOKENS,
    CpuTransformer,
    MatrixPart,
    StoredType,
    TransformerSizes,
    VectorPart,
)
from braid.llm_core.loading.weights import StorageType, StoredTensor, Weights
from braid.llm_core.models.choice import usable_processors
from braid.llm_core.models.config import ModelConfig, RopeScaling
from braid.llm_core.models.model import ForwardBatch, ForwardResult, KVSlabs

_LAYER_MATRICES = {
    MatrixPart.QUERY: "self_attn.q_proj",
    MatrixPart.KEY: "self_attn.k_proj",
    MatrixPart.VALUE: "self_attn.v_proj",
    MatrixPart.OUTPUT: "self_attn.o_proj",
    MatrixPart.GATE: "mlp.gate_proj",
    MatrixPart.UP: "mlp.up_proj",
    MatrixPart.DOWN: "mlp.down_proj",
}

_BIASES = {VectorPart.QUERY_BIAS: "q", VectorPart.KEY_BIAS: "k", VectorPart.VALUE_BIAS: "v"}


def can_run(config: ModelConfig, weights: Weights, *, variant: str | None = None) -> str | None:
    """Why the kernels cannot run this checkpoint on this machine, or None if they can."""
    try:
        load_library(variant)
    except KernelsUnavailable as error:
        return error.message
    if (reason := _sizes(config, exact=True).why_not()) is not None:
        return reason
    for _, _, name in _matrix_names(config, weights):
        tensor = weights[name]
        if tensor.storage.value not in StoredType.__members__:
            return f"{name} is stored as {tensor.storage.value}, for which there is no kernel"
    return None


class CpuModel:
    """A `LanguageModel` on the C++ kernels."""

    page_tokens = PAGE_TOKENS
    device = "cpu"

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        num_threads: int | None = None,
        exact: bool = True,
        variant: str | None = None,
    ) -> None:
        """Pack the weights into the kernels' layout; the checkpoint's memory may be dropped afterwards.

        Args:
            num_threads: None for one per processor that this process may use.
            exact: 16-bit activations; False is faster and changes the most likely token now and then.
            variant: a name from `kernels.cpu.library.VARIANTS`; None for the fastest that this processor has.
        Raises:
            UnsupportedModel: `can_run` gives a reason.
        """
        if (reason := can_run(config, weights, variant=variant)) is not None:
            raise UnsupportedModel(f"the C++ kernels cannot run this model: {reason}")
        self.config = config
        sizes = _sizes(config, exact=exact)
        self.page_bytes = sizes.page_bytes
        self._library = load_library(variant)
        self._transformer = CpuTransformer(self._library, sizes, num_threads=num_threads or usable_processors())
        self._storage: Counter[tuple[str, StorageType]] = Counter()
        self._load_matrices(weights)
        self._load_vectors(weights)
        self._transformer.pack()
        self.weight_bytes = self._transformer.weight_bytes

    def describe(self) -> dict[str, Any]:
        """Which kernel runs each part, and how its weights are held."""
        name = self._library.variant.name
        linear = f"cpp_{name}_{'exact' if self._transformer.sizes.exact else 'fast'}"
        return {
            "backend": "cpu_kernels",
            "variant": name,
            "variants_not_used": {k: v for k, v in reasons_against().items() if v is not None},
            "num_threads": self._transformer.num_threads,
            "activations": "16-bit, exact products" if self._transformer.sizes.exact else "8-bit, approximate",
            "kv_cache": "pages of 16 positions, 16-bit integers with scales per position and head",
            "weight_bytes": self.weight_bytes,
            "parts": {
                part: {
                    "kernel": "cpp_gather" if part == "embed_tokens" else linear,
                    "weights": {
                        storage.value: {"tensors": count, "held_as": PACKED_AS[StoredType[storage.value]]}
                        for (owner, storage), count in self._storage.items()
                        if owner == part
                    },
                }
                for part in dict.fromkeys(part for part, _ in self._storage)
            },
        }

    def workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Predicted peak bytes of a forward call beside weights and KV."""
        return self._transformer.workspace_bytes(num_tokens, num_logits)

    def forward(self, batch: ForwardBatch, slabs: KVSlabs) -> ForwardResult:
        """Run every layer on the batch. The logits are overwritten by the next call. Releases the GIL."""
        logits, hidden = self._transformer.forward(
            input_ids=batch.input_ids,
            positions=batch.positions,
            sequence_index=batch.sequence_index,
            block_tables=batch.block_tables,
            logits_rows=batch.logits_rows,
            slabs=slabs.addresses(),
            pages_per_slab=slabs.pages_per_slab,
            hidden_rows=batch.hidden_rows,
            hidden_layers=batch.hidden_layers,
        )
        return ForwardResult(logits, hidden)

    def close(self) -> None:
        """Give weights and threads back."""
        self._transformer.close()

    def _load_matrices(self, weights: Weights) -> None:
        for part, layer, name in _matrix_names(self.config, weights):
            tensor = weights[name]
            shape = _matrix_shape(self.config, part)
            if tensor.shape != shape:
                raise UnsupportedModel(f"{name} has shape {tensor.shape}; the config says {shape}")
            blocks = tensor.raw().contiguous().numpy()
            self._transformer.set_matrix(part, layer, StoredType[tensor.storage.value], blocks, shape[1])
            self._storage[name.split(".")[-2], tensor.storage] += 1

    def _load_vectors(self, weights: Weights) -> None:
        for part, layer, values in _vectors(self.config, weights):
            self._transformer.set_vector(part, layer, values)
        for layer in range(self.config.num_layers):
            if self.config.is_sliding(layer):
                self._transformer.set_sliding(layer)


def _sizes(config: ModelConfig, *, exact: bool) -> TransformerSizes:
    return TransformerSizes(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        context_length=config.context_length,
        sliding_window=config.sliding_window or 0,
        rope_interleaved=config.rope_interleaved,
        gelu=config.hidden_act == "gelu_tanh",
        exact=exact,
        norm_eps=config.norm_eps,
        attention_scale=config.attention_scale,
        embedding_scale=config.embedding_scale,
    )


def _matrix_names(config: ModelConfig, weights: Weights) -> Iterator[tuple[MatrixPart, int, str]]:
    for layer in range(config.num_layers):
        for part, name in _LAYER_MATRICES.items():
            yield part, layer, f"model.layers.{layer}.{name}.weight"
    yield MatrixPart.EMBEDDING, 0, "model.embed_tokens.weight"
    if not config.tie_word_embeddings and "lm_head.weight" in weights:
        yield MatrixPart.HEAD, 0, "lm_head.weight"


def _matrix_shape(config: ModelConfig, part: MatrixPart) -> tuple[int, int]:
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        MatrixPart.QUERY: (heads, config.hidden_size),
        MatrixPart.KEY: (kv_heads, config.hidden_size),
        MatrixPart.VALUE: (kv_heads, config.hidden_size),
        MatrixPart.OUTPUT: (config.hidden_size, heads),
        MatrixPart.GATE: (config.intermediate_size, config.hidden_size),
        MatrixPart.UP: (config.intermediate_size, config.hidden_size),
        MatrixPart.DOWN: (config.hidden_size, config.intermediate_size),
    }.get(part, (config.vocab_size, config.hidden_size))


def _vectors(config: ModelConfig, weights: Weights) -> Iterator[tuple[VectorPart, int, npt.NDArray[Any]]]:
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for part, name in _norm_names(config).items():
            yield part, layer, _norm(weights[prefix + name], config)
        if config.attention_bias:
            for part, letter in _BIASES.items():
                yield part, layer, weights[f"{prefix}self_attn.{letter}_proj.bias"].to_torch(torch.float32).numpy()
    yield VectorPart.FINAL_NORM, 0, _norm(weights["model.norm.weight"], config)
    yield VectorPart.FREQUENCIES, 0, rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    if config.rope_local_theta is not None:
        local = rotary_frequencies(config.head_dim, config.rope_local_theta, RopeScaling())
        yield VectorPart.LOCAL_FREQUENCIES, 0, local


def _norm_names(config: ModelConfig) -> dict[VectorPart, str]:
    names = {VectorPart.INPUT_NORM: "input_layernorm.weight", VectorPart.FFN_NORM: "post_attention_layernorm.weight"}
    if config.post_norms:
        names[VectorPart.POST_ATTENTION_NORM] = "post_attention_layernorm.weight"
        names[VectorPart.FFN_NORM] = "pre_feedforward_layernorm.weight"
        names[VectorPart.POST_FFN_NORM] = "post_feedforward_layernorm.weight"
    if config.qk_norm:
        names[VectorPart.QUERY_NORM] = "self_attn.q_norm.weight"
        names[VectorPart.KEY_NORM] = "self_attn.k_norm.weight"
    return names


def _norm(tensor: StoredTensor, config: ModelConfig) -> npt.NDArray[np.float32]:
    weight: npt.NDArray[np.float32] = (tensor.to_torch(torch.float32) + config.norm_weight_offset).numpy()
    return weight.reshape(-1)


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """Radians per position of each of the head_dim / 2 rotation pairs.

    Source: RoFormer (arXiv 2104.09864); `llama3`: the Llama 3.1 rule, which divides long wavelengths by `factor`,
    keeps short ones, and goes linearly from one to the other in between.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "divisors":
        return frequencies / np.asarray(scaling.divisors, np.float64)
    if scaling.kind != "llama3":
        return frequencies
    turns = frequencies * scaling.original_context_length / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)
