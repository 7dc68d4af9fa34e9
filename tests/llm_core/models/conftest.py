"""Tiny random models of every architecture, as `transformers` and as ours read them, and pages to run them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from braid.llm_core.loading.weights import StorageType
from braid.llm_core.models.config import ModelConfig, RopeScaling
from braid.llm_core.models.model import ForwardBatch, ForwardResult

SIZES = {
    "vocab_size": 160,
    "hidden_size": 96,
    "intermediate_size": 136,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
WINDOW = 24


@dataclass(frozen=True)
class MemoryTensor:
    name: str
    tensor: torch.Tensor
    storage: StorageType = StorageType.F32

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def raw(self) -> torch.Tensor:
        return self.tensor.reshape(-1, self.shape[-1]).view(torch.uint8)

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor:
        return self.tensor.to(dtype)

    def check_finite(self) -> None:
        assert torch.isfinite(self.tensor).all()


class MemoryWeights:
    """`Weights` of a state dict."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> MemoryTensor:
        return MemoryTensor(name, self.tensors[name])

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)


class MemorySlabs:
    """`KVSlabs` full of NaN, with a hole where a slab was given back."""

    def __init__(self, page_bytes: int, *, num_slabs: int = 6, pages_per_slab: int = 8, device: str = "cpu") -> None:
        self.pages_per_slab = pages_per_slab
        self.page_bytes = page_bytes
        self._slabs: list[torch.Tensor | None] = [
            torch.full((pages_per_slab, page_bytes), 255, dtype=torch.uint8, device=device) for _ in range(num_slabs)
        ]
        self._slabs[1] = None

    @property
    def page_ids(self) -> list[int]:
        per_slab = self.pages_per_slab
        return [s * per_slab + p for s, slab in enumerate(self._slabs) if slab is not None for p in range(per_slab)]

    def addresses(self) -> Any:
        return np.array([0 if slab is None else slab.data_ptr() for slab in self._slabs], dtype=np.int64)

    def slabs(self) -> list[torch.Tensor | None]:
        return self._slabs


@dataclass(frozen=True)
class TinyModel:
    reference: Any
    config: ModelConfig
    weights: MemoryWeights


def _reference(architecture: str, *, tied: bool, **extra: Any) -> Any:
    kinds: dict[str, tuple[str, str]] = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "mistral": ("MistralConfig", "MistralForCausalLM"),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    }
    config_class, model_class = (getattr(transformers, name) for name in kinds[architecture])
    config = config_class(**(SIZES | extra), tie_word_embeddings=tied, attn_implementation="eager")
    torch.manual_seed(1)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim == 1 else 0.15)
            if parameter.ndim == 1 and architecture != "gemma3":
                parameter += 1.0
    return model


def _config(architecture: str, *, tied: bool, **extra: Any) -> ModelConfig:
    return ModelConfig(
        architecture=architecture,
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["hidden_size"],
        intermediate_size=SIZES["intermediate_size"],
        num_layers=SIZES["num_hidden_layers"],
        num_heads=SIZES["num_attention_heads"],
        num_kv_heads=SIZES["num_key_value_heads"],
        head_dim=extra.pop("head_dim", SIZES["head_dim"]),
        context_length=SIZES["max_position_embeddings"],
        norm_eps=SIZES["rms_norm_eps"],
        tie_word_embeddings=tied,
        **extra,
    )


def _llama3_scaling() -> tuple[dict[str, Any], RopeScaling]:
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return parameters, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


def _build(name: str) -> tuple[Any, ModelConfig]:
    sliding = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    llama3, llama3_scaling = _llama3_scaling()
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    match name:
        case "llama":
            return _reference("llama", tied=True), _config("llama", tied=True)
        case "llama-untied-llama3":
            reference = _reference("llama", tied=False, rope_parameters=llama3)
            return reference, _config("llama", tied=False, rope_theta=500.0, rope_scaling=llama3_scaling)
        case "llama-linear":
            reference = _reference("llama", tied=False, rope_parameters=linear)
            return reference, _config("llama", tied=False, rope_scaling=RopeScaling("linear", 4.0))
        case "mistral":
            reference = _reference("mistral", tied=False, sliding_window=WINDOW)
            return reference, _config("mistral", tied=False, sliding_window=WINDOW)
        case "qwen2":
            return _reference("qwen2", tied=True), _config("qwen2", tied=True, attention_bias=True)
        case "qwen3":
            return _reference("qwen3", tied=False), _config("qwen3", tied=False, qk_norm=True)
        case "gemma3":
            rope = {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
            }
            reference = _reference(
                "gemma3",
                tied=True,
                head_dim=32,
                layer_types=sliding,
                sliding_window=WINDOW,
                query_pre_attn_scalar=20,
                rope_parameters=rope,
            )
            return reference, _config(
                "gemma3",
                tied=True,
                head_dim=32,
                norm_weight_offset=1.0,
                rope_theta=5000.0,
                rope_local_theta=100.0,
                rope_scaling=RopeScaling("linear", 8.0),
                qk_norm=True,
                post_norms=True,
                hidden_act="gelu_tanh",
                query_scale=20**-0.5,
                embedding_scale=SIZES["hidden_size"] ** 0.5,
                sliding_window=WINDOW,
                layer_is_sliding=tuple(kind == "sliding_attention" for kind in sliding),
            )
    raise ValueError(name)


TINY_MODELS = ("llama", "llama-untied-llama3", "llama-linear", "mistral", "qwen2", "qwen3", "gemma3")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], TinyModel]:
    """Builds one of `TINY_MODELS` by name, once."""
    built: dict[str, TinyModel] = {}

    def build(name: str) -> TinyModel:
        if name not in built:
            reference, config = _build(name)
            tensors = {key: value.detach() for key, value in reference.state_dict().items()}
            if config.tie_word_embeddings:
                tensors.pop("lm_head.weight", None)
            built[name] = TinyModel(reference, config, MemoryWeights(tensors))
        return built[name]

    return build


@dataclass
class Runner:
    """Runs sequences on a model through pages drawn at random, chunk by chunk."""

    model: Any
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.slabs = MemorySlabs(self.model.page_bytes, device=self.device)
        self._free = list(np.random.default_rng(self.seed).permutation(self.slabs.page_ids))
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    def step(self, chunks: dict[int, list[int]], *, layers: tuple[int, ...] = ()) -> ForwardResult:
        """Feed each sequence its next tokens in one call, wanting everything of every token."""
        ids, positions, index, tables = [], [], [], []
        for row, (sequence, tokens) in enumerate(chunks.items()):
            start = self._lengths.get(sequence, 0)
            ids += tokens
            positions += range(start, start + len(tokens))
            index += [row] * len(tokens)
            self._lengths[sequence] = start + len(tokens)
            pages = self._pages.setdefault(sequence, [])
            while len(pages) * self.model.page_tokens < start + len(tokens):
                pages.append(self._free.pop())
            tables.append(pages)
        width = max(map(len, tables)) + 1
        rows = np.arange(len(ids), dtype=np.int32)
        batch = ForwardBatch(
            input_ids=np.array(ids, dtype=np.int32),
            positions=np.array(positions, dtype=np.int32),
            sequence_index=np.array(index, dtype=np.int32),
            block_tables=np.array([t + [2**30] * (width - len(t)) for t in tables], dtype=np.int32),
            logits_rows=rows,
            hidden_rows=rows if layers else None,
            hidden_layers=layers,
        )
        return self.model.forward(batch, self.slabs)

    def release(self, sequence: int) -> None:
        """Forget a sequence; its pages, old contents and all, serve the next."""
        self._free += self._pages.pop(sequence, [])
        self._lengths.pop(sequence, None)


@pytest.fixture(scope="session")
def runner() -> type[Runner]:
    return Runner
