"""A Hugging Face `config.json` to our ModelConfig.

What a config leaves out has the default of its `transformers` class (published Gemma 3 files leave out most). What
would change the numbers and is not supported is refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.layout import MAX_SIZE
from braid.llm_core.models.config import ModelConfig, RopeScaling

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
}

_COMMON_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096, "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {
        "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096,
    },
    "gemma3": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1,
    },
}  # fmt: skip
LAYER_TYPES = ("full_attention", "sliding_attention")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """The text model's part of a `config.json`, with its class's defaults behind it."""

    path: Path
    architecture: str
    fields: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value, else the default, else None."""
        value = self.fields.get(name)
        if value is None:
            value = _DEFAULTS[self.architecture].get(name, _COMMON_DEFAULTS.get(name))
        return value

    def given(self, name: str) -> Any:
        """The value in the file itself, where an explicit null is not the same as a default."""
        return self.fields[name] if name in self.fields else self.get(name)

    def integer(self, name: str) -> int:
        value = self.get(name)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self.error(name, value, f"an integer from 1 to {MAX_SIZE:,}")
        return value

    def integer_or(self, name: str, otherwise: int) -> int:
        """The value, or `otherwise` where an explicit null or no default leaves it open."""
        return otherwise if self.given(name) is None else self.integer(name)

    def number(self, name: str) -> float:
        return positive_number(self.path, name, self.get(name))

    def error(self, name: str, value: Any, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {name}={value!r} must be {wanted}")

    def unsupported(self, name: str, value: Any, supported: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.path}: {name}={value!r} is not supported; supported is {supported}")


def positive_number(path: Path, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise ModelFileError(f"{path}: {name}={value!r} must be a positive number")
    return float(value)


def read_folder_config(path: Path, fields: Mapping[str, Any]) -> FolderConfig:
    """Find the architecture and the text model's fields in a parsed `config.json`."""
    names = fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelFileError(f"{path}: architectures={names!r} must name a model class, such as ['LlamaForCausalLM']")
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{path}: the architecture {names[0]!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    if fields.get("quantization_config") is not None:
        raise UnsupportedModel(f"{path}: quantization_config is not supported; use an unquantised folder or GGUF")
    text = fields.get("text_config", fields)
    if not isinstance(text, dict):
        raise ModelFileError(f"{path}: text_config={text!r} must be an object")
    return FolderConfig(path, ARCHITECTURES[names[0]], text)


def model_config(
    config: FolderConfig, *, eos_token_ids: tuple[int, ...], embedding_dtype: torch.dtype
) -> ModelConfig:
    """Everything but the tensors.

    Raises:
        ModelFileError: a field is missing or has an impossible value.
        UnsupportedModel: a field asks for what we do not have.
    """
    _refuse_unsupported(config)
    num_heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    gemma3 = config.architecture == "gemma3"
    try:
        return ModelConfig(
            architecture=config.architecture,
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.integer("intermediate_size"),
            num_layers=config.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=config.integer_or("num_key_value_heads", num_heads),
            head_dim=config.integer_or("head_dim", max(hidden_size // num_heads, 1)),
            context_length=config.integer("max_position_embeddings"),
            norm_eps=config.number("rms_norm_eps"),
            norm_weight_offset=1.0 if gemma3 else 0.0,
            attention_bias=config.architecture == "qwen2",
            qk_norm=config.architecture in ("qwen3", "gemma3"),
            post_norms=gemma3,
            hidden_act=_activation(config),
            query_scale=config.number("query_pre_attn_scalar") ** -0.5 if gemma3 else None,
            embedding_scale=_rounded(math.sqrt(hidden_size), embedding_dtype) if gemma3 else 1.0,
            tie_word_embeddings=bool(config.get("tie_word_embeddings")),
            bos_token_id=_token_id(config, "bos_token_id"),
            eos_token_ids=eos_token_ids,
            **_rope(config),
            **_sliding(config),
        )
    except ValueError as error:
        raise ModelFileError(f"{config.path}: {error}") from error


def eos_token_ids(path: Path, value: Any, vocab_size: int) -> tuple[int, ...]:
    """One id, a list of ids or null, as `config.json` and `generation_config.json` have them."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise ModelFileError(f"{path}: eos_token_id={value!r} must be ids from 0 to {vocab_size - 1}")
    return tuple(sorted(set(ids)))


def _token_id(config: FolderConfig, name: str) -> int | None:
    value = config.given(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < config.integer("vocab_size"):
        raise config.error(name, value, f"an id from 0 to {config.integer('vocab_size') - 1}")
    return value


def _rounded(value: float, dtype: torch.dtype) -> float:
    """As `transformers` does: to float32 first."""
    return float(torch.tensor(value, dtype=torch.float32).to(dtype))


def _refuse_unsupported(config: FolderConfig) -> None:
    names = ["mlp_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"]
    if config.architecture != "qwen2":  # whose q, k and v always have a bias, whatever its config says
        names.append("attention_bias")
    for name in names:
        if config.get(name):
            raise config.unsupported(name, config.get(name), "only its absence")


def _activation(config: FolderConfig) -> str:
    name = "hidden_activation" if config.architecture == "gemma3" else "hidden_act"
    value = config.get(name)
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise config.unsupported(name, value, ", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[value]


def _rope(config: FolderConfig) -> dict[str, Any]:
    """Rotary fields, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    parameters = config.get("rope_parameters")
    if parameters is None:
        parameters = dict(_object(config, "rope_scaling", config.get("rope_scaling") or {}))
    parameters = _object(config, "rope_parameters", parameters)
    local: dict[str, Any] = {}
    if "full_attention" in parameters or "sliding_attention" in parameters:
        local = _object(config, "rope_parameters", parameters.get("sliding_attention") or {})
        parameters = _object(config, "rope_parameters", parameters.get("full_attention") or {})
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    rope = {
        "rope_theta": positive_number(config.path, "rope_theta", theta),
        "rope_scaling": _rope_scaling(config, parameters),
    }
    if config.architecture == "gemma3":
        _require_unscaled(config, local)
        theta = local.get("rope_theta", config.get("rope_local_base_freq"))
        rope["rope_local_theta"] = positive_number(config.path, "rope_local_base_freq", theta)
    return rope


def _object(config: FolderConfig, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise config.error(name, value, "an object")
    return value


def _require_unscaled(config: FolderConfig, local: Mapping[str, Any]) -> None:
    if local.get("rope_type", "default") != "default":
        raise config.unsupported("rope_parameters.sliding_attention", local, "rope_type 'default'")


def _rope_scaling(config: FolderConfig, parameters: Mapping[str, Any]) -> RopeScaling:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise config.unsupported("partial_rotary_factor", parameters["partial_rotary_factor"], "1.0")
    if kind == "default":
        return RopeScaling()

    def number(name: str) -> float:
        return positive_number(config.path, f"rope scaling's {name}", parameters.get(name))

    if kind == "linear":
        return RopeScaling(kind="linear", factor=number("factor"))
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_context_length=int(number("original_max_position_embeddings")),
        )
    raise config.unsupported("rope scaling's type", kind, "default, linear and llama3")


def _sliding(config: FolderConfig) -> dict[str, Any]:
    """The window and which layers have it; no window where no layer does."""
    if config.architecture == "llama":
        return {}
    window = config.given("sliding_window")
    if config.architecture in ("qwen2", "qwen3") and not config.get("use_sliding_window"):
        window = None
    if window is None:
        return {}
    layers = _sliding_layers(config)
    if layers and not any(layers):
        return {}
    return {"sliding_window": config.integer("sliding_window"), "layer_is_sliding": layers}


def _sliding_layers(config: FolderConfig) -> tuple[bool, ...]:
    """From `layer_types`, or from the rule of the architecture; nothing means every layer."""
    types, num_layers = config.get("layer_types"), config.integer("num_hidden_layers")
    if types is not None:
        if not isinstance(types, list) or any(kind not in LAYER_TYPES for kind in types):
            raise config.unsupported("layer_types", types, "a list of 'full_attention' and 'sliding_attention'")
        return tuple(kind == "sliding_attention" for kind in types)
    if config.architecture == "gemma3":
        period = config.integer("sliding_window_pattern")
        return tuple((layer + 1) % period != 0 for layer in range(num_layers))
    if config.architecture in ("qwen2", "qwen3"):
        first = config.get("max_window_layers")
        if type(first) is not int or first < 0:
            raise config.error("max_window_layers", first, "a non-negative integer")
        return tuple(layer >= first for layer in range(num_layers))
    return ()
