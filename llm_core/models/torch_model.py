"""A language model of plain PyTorch operators: runs anywhere, and is the specification of the faster ones.

Everything is arranged so that a token's numbers do not depend on what else is in the call (docs/numerics.md): tokens
are padded to a tile of rows, products run in row counts that were tried (`layers.row_buckets`), attention sums in an
order fixed by positions (`layers.attention_plan`), and norms, gates and rotations (`kernels.ops`) treat all places
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from braid.kernels.ops import Ops
from braid.kernels.registry import Facts
from braid.llm_core.layers.attention import attend, write_kv
from braid.llm_core.layers.attention_plan import MAX_TILE_TOKENS, AttentionPlan, PlanLimits, Planner, SlabRows
from braid.llm_core.layers.block_products import CpuProducts, GpuProducts
from braid.llm_core.layers.kv_layout import PAGE_TOKENS, KVLayout
from braid.llm_core.layers.rotary import RotaryTable, layer_frequencies
from braid.llm_core.layers.row_buckets import padded
from braid.llm_core.loading.weights import Weights
from braid.llm_core.models.config import ModelConfig
from braid.llm_core.models.model import ForwardBatch, ForwardResult, IntArray, KVSlabs
from braid.llm_core.models.torch_weights import LayerWeights, TorchWeights, WeightLoader

CPU_LIMITS = PlanLimits(row_tile=8, tile_tokens=(1, 2, 4, 8, 16, 32, MAX_TILE_TOKENS), group_bytes=8 << 20)
GPU_LIMITS = PlanLimits(row_tile=16, tile_tokens=(16,), group_bytes=256 << 20)
"""One size of tile: a decode step pays for 16 tokens in its attention, which a GPU hardly notices."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of one call share."""

    slabs: Sequence[Any]
    num_tokens: int
    """Before padding."""
    writes: tuple[SlabRows, ...]
    plans: dict[bool, AttentionPlan]
    """By whether the layer is sliding."""
    angles: dict[bool, tuple[Tensor, Tensor]]


class TorchModel:
    """See `model.LanguageModel`.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: of weights, activations, keys and values; None is float32 on a CPU and bfloat16 on a GPU.
        ops: what runs norms, gates and rotations; None for the fastest on `device`.
    Raises:
        ModelFileError: a tensor is missing or misshapen.
    """

    page_tokens = PAGE_TOKENS

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        ops: Ops | None = None,
    ) -> None:
        self.config = config
        self._device = torch.device(device)
        self.device = self._device.type
        self.dtype = dtype or (torch.float32 if self.device == "cpu" else torch.bfloat16)
        with torch.inference_mode():
            self._weights: TorchWeights | None = WeightLoader(
                config, weights, device=self._device, dtype=self.dtype
            ).load()
        self.weight_bytes = self._weights.num_bytes
        self._embedding_scale = torch.tensor(config.embedding_scale).to(self.dtype).item()
        self._layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, self.dtype)
        self.page_bytes = self._layout.page_bytes
        kinds = {config.is_sliding(layer) for layer in range(config.num_layers)}
        self._rotary = {k: RotaryTable(layer_frequencies(config, is_sliding=k), self._device) for k in kinds}
        self._planners = {k: self._planner(config.sliding_window if k else None) for k in kinds}
        self._ops = ops or Ops(device)
        self._gated = self._ops.silu_mul if config.hidden_act == "silu" else self._ops.gelu_tanh_mul
        self._products = CpuProducts() if self.device == "cpu" else GpuProducts()
        self._row_tile = self._weights.lm_head.buckets[0]

    def describe(self) -> dict[str, Any]:
        """What runs, and how each storage type of the file is held."""
        weights = self._loaded()
        held = str(self.dtype).removeprefix("torch.")
        facts, gate = Facts(self.device, dtype=held), self._gated.__name__
        operations = {op: self._ops.select(op, facts).kernel.backend for op in ("rms_norm", "rope", gate)}
        products = {"qkv": weights.layers[0].qkv, "gate_up": weights.layers[0].gate_up, "lm_head": weights.lm_head}
        return {
            "backend": "torch",
            "device": str(self._device),
            "dtype": held,
            "weights": {storage: f"{count} tensors held as {held}" for storage, count in weights.storage.items()},
            "kernels": {"linear": "torch", "attention": "torch", **operations},
            "row_buckets": {name: list(linear.buckets) for name, linear in products.items()},
        }

    def workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Predicted peak of a call: activations, one attention group at full context, logits and the rotary tables."""
        config = self.config
        rows = padded(num_tokens, self._row_tile)
        attention_width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        width = 4 * config.hidden_size + max(3 * attention_width, 6 * config.intermediate_size)
        logits = padded(num_logits, self._row_tile) * config.vocab_size * (4 + self.dtype.itemsize)
        attention = max(planner.peak_bytes(config.context_length) for planner in self._planners.values())
        tables = sum(4 * 2 * config.head_dim * config.context_length for _ in self._rotary)
        return 4 * rows * width + logits + attention + tables

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, slabs: KVSlabs) -> ForwardResult:
        """See `LanguageModel.forward`. Logits and hidden states are numpy arrays on a CPU."""
        weights = self._loaded()
        num_tokens = len(batch.input_ids)
        if num_tokens == 0:
            return ForwardResult(self._result(torch.empty((0, self.config.vocab_size))))
        step = self._step(batch, slabs)
        hidden_rows = None if batch.hidden_rows is None else self._index(batch.hidden_rows)
        kept: dict[int, Tensor] = {}
        x = self._embed(batch.input_ids)
        for number, layer in enumerate(weights.layers):
            if hidden_rows is not None and number in batch.hidden_layers:
                kept[number] = x.index_select(0, hidden_rows).float()
            x = self._block(x, layer, number, step)
        if hidden_rows is not None and self.config.num_layers in batch.hidden_layers:
            last = self._ops.rms_norm(x.index_select(0, hidden_rows), weights.norm, self.config.norm_eps)
            kept[self.config.num_layers] = last.float()
        hidden = torch.stack([kept[i] for i in batch.hidden_layers]) if kept else None
        return ForwardResult(self._logits(x, batch.logits_rows), None if hidden is None else self._result(hidden))

    def close(self) -> None:
        """Drop the weights."""
        self._weights = None
        self._rotary.clear()

    def _loaded(self) -> TorchWeights:
        if self._weights is None:
            raise RuntimeError("the model is closed")
        return self._weights

    def _planner(self, window: int | None) -> Planner:
        limits = CPU_LIMITS if self.device == "cpu" else GPU_LIMITS
        return Planner(
            self._layout, num_heads=self.config.num_heads, window=window, limits=limits, device=self._device
        )

    def _step(self, batch: ForwardBatch, slabs: KVSlabs) -> _Step:
        num_padded = padded(len(batch.input_ids), self._row_tile)
        positions = self._index(self._pad(batch.positions))
        max_position = int(batch.positions.max())
        per_slab = slabs.pages_per_slab
        return _Step(
            slabs=slabs.slabs(),
            num_tokens=len(batch.input_ids),
            writes=next(iter(self._planners.values())).writes(batch, per_slab),
            plans={
                kind: planner.plan(batch, num_padded=num_padded, pages_per_slab=per_slab)
                for kind, planner in self._planners.items()
            },
            angles={kind: table.rows(positions, max_position=max_position) for kind, table in self._rotary.items()},
        )

    def _embed(self, input_ids: IntArray) -> Tensor:
        x = self._loaded().embeddings.index_select(0, self._index(self._pad(input_ids)))
        return x if self._embedding_scale == 1.0 else x * self._embedding_scale

    def _block(self, x: Tensor, layer: LayerWeights, number: int, step: _Step) -> Tensor:
        rms_norm, eps = self._ops.rms_norm, self.config.norm_eps
        attended = self._attention(rms_norm(x, layer.input_norm, eps), layer, number, step)
        if layer.post_attention_norm is not None:
            attended = rms_norm(attended, layer.post_attention_norm, eps)
        x = x + attended
        gate, up = layer.gate_up(rms_norm(x, layer.ffn_norm, eps)).chunk(2, -1)
        fed = layer.down(self._gated(gate, up))
        if layer.post_ffn_norm is not None:
            fed = rms_norm(fed, layer.post_ffn_norm, eps)
        return x + fed

    def _attention(self, x: Tensor, layer: LayerWeights, number: int, step: _Step) -> Tensor:
        config = self.config
        is_sliding = config.is_sliding(number)
        heads = layer.qkv(x).view(len(x), -1, config.head_dim)  # (rows, queries + keys + values, head_dim)
        rotated = heads[:, : config.num_heads + config.num_kv_heads]
        turned = self._ops.rope(self._normed_heads(rotated, layer), *step.angles[is_sliding])
        queries, keys = torch.split_with_sizes(turned, (config.num_heads, config.num_kv_heads), 1)
        rotated[:, config.num_heads :] = keys
        write_kv(heads[: step.num_tokens, config.num_heads :], step.slabs, step.writes, self._layout, number)
        queries = (queries * config.attention_scale).to(self.dtype)
        attended = attend(queries, step.slabs, step.plans[is_sliding], self._layout, number, self._products)
        return layer.output(attended.to(self.dtype))

    def _normed_heads(self, heads: Tensor, layer: LayerWeights) -> Tensor:
        if layer.q_norm is None or layer.k_norm is None:
            return heads
        queries, keys = torch.split_with_sizes(heads, (self.config.num_heads, self.config.num_kv_heads), 1)
        rms_norm, eps = self._ops.rms_norm, self.config.norm_eps
        return torch.cat((rms_norm(queries, layer.q_norm, eps), rms_norm(keys, layer.k_norm, eps)), 1)

    def _logits(self, x: Tensor, rows: IntArray) -> Any:
        if len(rows) == 0:
            return self._result(x.new_empty((0, self.config.vocab_size), dtype=torch.float32))
        weights = self._loaded()
        wanted = x.index_select(0, self._index(self._pad(rows)))
        logits = weights.lm_head(self._ops.rms_norm(wanted, weights.norm, self.config.norm_eps))
        return self._result(logits[: len(rows)].float())

    def _pad(self, values: IntArray) -> IntArray:
        return np.pad(values, (0, padded(len(values), self._row_tile) - len(values)))

    def _index(self, values: IntArray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._device)

    def _result(self, tensor: Tensor) -> Any:
        return tensor.numpy() if self.device == "cpu" else tensor
