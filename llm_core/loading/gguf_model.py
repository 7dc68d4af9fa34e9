"""What a GGUF file says about its language model: config and tensors, in our words.

The file names architectures, metadata keys and tensors as llama.cpp does. Three things differ from Hugging Face folders
and are kept as they are in the file, for the config to say: rows of q and k of `llama` are permuted for rotation of
neighbouring pairs, Gemma's norms already have their 1 added, and `llama3` rotary scaling is a tensor of divisors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.gguf import GGUFFile
from braid.llm_core.loading.gguf_metadata import ModelMetadata
from braid.llm_core.loading.layout import check_shapes, require_plausible_depth
from braid.llm_core.loading.mapped_weights import MappedTensor, MappedWeights
from braid.llm_core.models.config import ModelConfig, RopeScaling

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")

GEMMA3_PATTERN = 6
"""Every sixth layer of Gemma 3 sees the whole context."""
GEMMA3_27B_LAYERS = 62
"""The one size whose scores are scaled by hidden_size / num_heads; the file does not say so."""
GEMMA3_LOCAL_THETA = 10000.0

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>")
"""Control tokens that end an answer even where the file names only one of them as end of sequence."""
CONTROL_TOKEN = 3

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROPE_DIVISORS = "rope_freqs.weight"
_LAYER_TENSOR = re.compile(r"blk\.(0|[1-9][0-9]*)\.([a-z_]+)\.(weight|bias)", re.ASCII)


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """An opened and checked language model."""

    config: ModelConfig
    weights: MappedWeights
    metadata: Mapping[str, Any]
    """All of the file's, for the tokenizer and the chat template."""


def open_gguf_model(path: Path) -> GGUFModel:
    """Open a GGUF file and check that it is, whole, a model that we run.

    Raises:
        ModelFileError: the file is broken, or its tensors are not those that its metadata implies.
        UnsupportedModel: its architecture, or something that it asks for, is not supported.
    """
    file = GGUFFile(path)
    architecture = _architecture(path, file.metadata)
    tensors = _canonical_tensors(file, architecture)
    divisors = tensors.pop(_ROPE_DIVISORS, None)
    metadata = ModelMetadata(path, file.metadata, architecture)
    require_plausible_depth(path, metadata.integer("block_count"), len(tensors))
    _refuse_unsupported(metadata)
    try:
        config = _config(metadata, architecture, tensors, _divisor_values(divisors))
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
    check_shapes(path, config, {name: tensor.shape for name, tensor in tensors.items()})
    return GGUFModel(config, MappedWeights(path, tensors), file.metadata)


def _architecture(path: Path, metadata: Mapping[str, Any]) -> str:
    architecture = metadata.get("general.architecture")
    if type(architecture) is not str:
        raise ModelFileError(f"{path} lacks the metadata key 'general.architecture'; it is not a model")
    if architecture not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{path}: the architecture {architecture!r} is not supported; supported are {supported}")
    return architecture


def _canonical_tensors(file: GGUFFile, architecture: str) -> dict[str, MappedTensor]:
    """By canonical name; a tensor that we have no name for keeps its own, and is refused with the other unexpected."""
    layer_names = _GEMMA3_LAYER_NAMES if architecture == "gemma3" else _LAYER_NAMES
    tensors: dict[str, MappedTensor] = {}
    for info in file.tensors.values():
        name = _canonical_name(info.name, layer_names)
        if name in tensors:
            other = tensors[name].file_name
            raise ModelFileError(f"{file.file.path}: the tensors {other!r} and {info.name!r} are one and the same")
        tensors[name] = MappedTensor(name, info.storage, info.shape, file.file, info.offset, file_name=info.name)
    return tensors


def _canonical_name(name: str, layer_names: Mapping[str, str]) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None or match[2] not in layer_names:
        return name
    return f"model.layers.{match[1]}.{layer_names[match[2]]}.{match[3]}"


def _refuse_unsupported(metadata: ModelMetadata) -> None:
    """Switches that change the numbers and that we do not have: better no answer than a wrong one."""
    for name in ("expert_count", "attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"):
        if metadata.raw(name):
            key, value = metadata.key(name), metadata.raw(name)
            raise UnsupportedModel(f"{metadata.path}: {key}={value!r} is not supported; only 0 or its absence is")


def _divisor_values(tensor: MappedTensor | None) -> tuple[float, ...]:
    return () if tensor is None else tuple(tensor.to_torch(torch.float32).flatten().tolist())


def _config(
    metadata: ModelMetadata, architecture: str, tensors: Mapping[str, MappedTensor], divisors: tuple[float, ...]
) -> ModelConfig:
    vocab_size, hidden_size = _embedding_shape(metadata.path, tensors)
    num_heads = metadata.integer("attention.head_count")
    head_dim = _head_dim(metadata, metadata.integer("embedding_length"), num_heads)
    return ModelConfig(
        architecture=architecture,
        vocab_size=_checked_vocab_size(metadata, vocab_size),
        hidden_size=metadata.integer("embedding_length"),
        intermediate_size=metadata.integer("feed_forward_length"),
        num_layers=metadata.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=metadata.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        context_length=metadata.integer("context_length"),
        norm_eps=metadata.number("attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.number("rope.freq_base", 1000000.0 if architecture == "gemma3" else 10000.0),
        rope_scaling=_rope_scaling(metadata, head_dim, divisors),
        rope_interleaved=architecture == "llama",
        attention_bias=architecture == "qwen2" or "model.layers.0.self_attn.q_proj.bias" in tensors,
        qk_norm=architecture in ("qwen3", "gemma3"),
        tie_word_embeddings="lm_head.weight" not in tensors,
        bos_token_id=metadata.token_id("bos_token_id", vocab_size),
        eos_token_ids=tuple(sorted(set(_eos_token_ids(metadata, vocab_size)))),
        **_sliding(metadata, architecture),
        **(_gemma3(metadata, hidden_size, num_heads) if architecture == "gemma3" else {}),
    )


def _embedding_shape(path: Path, tensors: Mapping[str, MappedTensor]) -> tuple[int, int]:
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise ModelFileError(f"{path} lacks the tensor 'token_embd.weight'")
    if len(embedding.shape) != 2:
        raise ModelFileError(f"{path}: tensor 'token_embd.weight' has the shape {embedding.shape}; it must be 2-D")
    return embedding.shape[0], embedding.shape[1]


def _checked_vocab_size(metadata: ModelMetadata, rows: int) -> int:
    num_tokens = len(metadata.tokens())
    if num_tokens > rows:
        raise ModelFileError(f"{metadata.path}: the tokenizer has {num_tokens:,} tokens for {rows:,} embedding rows")
    return rows


def _head_dim(metadata: ModelMetadata, hidden_size: int, num_heads: int) -> int:
    head_dim = metadata.integer("attention.key_length", max(hidden_size // num_heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        value = metadata.integer(name, head_dim)
        if value != head_dim:
            raise UnsupportedModel(f"{metadata.path}: {metadata.key(name)}={value} must be the head size {head_dim}")
    return head_dim


def _rope_scaling(metadata: ModelMetadata, head_dim: int, divisors: tuple[float, ...]) -> RopeScaling:
    kind = metadata.text("rope.scaling.type", "linear" if metadata.raw("rope.scale_linear") else "none")
    if kind not in ("none", "linear"):
        raise UnsupportedModel(
            f"{metadata.path}: {metadata.key('rope.scaling.type')}={kind!r} is not supported; "
            "supported are none, linear and a rope_freqs tensor"
        )
    factor = 1.0
    if kind == "linear":
        factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 1.0))
    if not divisors:
        return RopeScaling(kind="linear", factor=factor) if factor != 1.0 else RopeScaling()
    if len(divisors) != head_dim // 2 or min(divisors) <= 0:
        raise ModelFileError(
            f"{metadata.path}: tensor {_ROPE_DIVISORS!r} must be {head_dim // 2} positive numbers, half the head size"
        )
    return RopeScaling(kind="divisors", divisors=tuple(factor * divisor for divisor in divisors))


def _sliding(metadata: ModelMetadata, architecture: str) -> dict[str, Any]:
    window = metadata.integer("attention.sliding_window", 0, minimum=0)
    if not window:
        return {}
    pattern = metadata.raw("attention.sliding_window_pattern")
    num_layers = metadata.integer("block_count")
    if isinstance(pattern, list):
        return {"sliding_window": window, "layer_is_sliding": tuple(bool(is_sliding) for is_sliding in pattern)}
    if architecture != "gemma3" and pattern is None:
        return {"sliding_window": window}
    period = metadata.integer("attention.sliding_window_pattern", GEMMA3_PATTERN)
    return {
        "sliding_window": window,
        "layer_is_sliding": tuple((layer + 1) % period != 0 for layer in range(num_layers)),
    }


def _gemma3(metadata: ModelMetadata, hidden_size: int, num_heads: int) -> dict[str, Any]:
    query_scale = None
    if metadata.raw("attention.scale"):
        query_scale = metadata.number("attention.scale")
    elif metadata.integer("block_count") == GEMMA3_27B_LAYERS:
        query_scale = (hidden_size / num_heads) ** -0.5
    return {
        "rope_local_theta": metadata.number("rope.freq_base_swa", GEMMA3_LOCAL_THETA),
        "post_norms": True,
        "hidden_act": "gelu_tanh",
        "query_scale": query_scale,
        "embedding_scale": math.sqrt(hidden_size),
    }


def _eos_token_ids(metadata: ModelMetadata, vocab_size: int) -> Iterator[int]:
    for name in ("eos_token_id", "eot_token_id", "eom_token_id"):
        token_id = metadata.token_id(name, vocab_size)
        if token_id is not None:
            yield token_id
    types = metadata.token_types()
    tokens = metadata.tokens()
    for text in TURN_ENDS:
        if text in tokens and types[tokens.index(text)] == CONTROL_TOKEN:
            yield tokens.index(text)
