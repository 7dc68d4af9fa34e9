"""Small random models on disk, one for each architecture, as a Hugging Face folder or as a GGUF file.

The same architecture, seed and overrides give the same numbers in both forms (before quantisation), so that the two can
be compared with each other and with `transformers`. All carry a byte-level tokenizer with ChatML control tokens.
The GGUF form is written with the `gguf` package, the way llama.cpp's converter does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
VOCAB_SIZE = 288
MERGES = ("Ġ t", "h e", "i n", "Ġt he")
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma3": {
        "head_dim": 32,
        "num_hidden_layers": 7,  # the sixth sees everything
        "sliding_window": 16,
        "query_pre_attn_scalar": 32,
        "rms_norm_eps": 1e-6,
    },
}
_K_QUANT_SIZES = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "query_pre_attn_scalar": 64}
_CONFIGS: dict[str, type[Any]] = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma3": transformers.Gemma3TextConfig,
}


def tiny_hf_config(architecture: str, **overrides: Any) -> Any:
    """The `transformers` config of a tiny model; overrides are its own field names."""
    return _CONFIGS[architecture](**(_SIZES | _OWN_SIZES[architecture] | overrides))


def tiny_hf_model(architecture: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A float32 `transformers` model whose every weight is random, norms and biases included."""
    model = transformers.AutoModelForCausalLM.from_config(
        tiny_hf_config(architecture, **overrides), dtype=torch.float32, attn_implementation="eager"
    )
    _randomise(model, seed)
    return model.eval()


def _randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if "norm" in name and "gemma" not in model.config.model_type else 0.0
            spread = 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(centre + spread * noise)


def write_hf_folder(
    path: Path, architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:  # fmt: skip
    """Write config, safetensors (in shards of at most `max_shard_size`) and tokenizer into folder `path`."""
    model = tiny_hf_model(architecture, seed=seed, **overrides).to(dtype)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    write_tokenizer(path)
    return path


def write_multimodal_gemma3_folder(path: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Gemma 3 with its (tiny) vision tower, as the 4B and larger models are published."""
    text = _SIZES | _OWN_SIZES["gemma3"] | overrides
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3, eos_token_id=[2, 0]
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    _randomise(model, seed)
    model.save_pretrained(path)
    write_tokenizer(path)
    return path


def vocabulary() -> list[str]:
    """Control tokens, one token for each byte, then what the merges make."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*CONTROL_TOKENS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json` of the tiny byte-level tokenizer."""
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in MERGES)]
    vocab = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>", "bos_token": None, "add_bos_token": False,
              "tokenizer_class": "PreTrainedTokenizerFast"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_gguf(path: Path, architecture: str, *, storage: str = "F32", seed: int = 0, **overrides: Any) -> Path:
    """Write a GGUF file whose matrices are stored as `storage` (a `StorageType` value) and whose vectors are F32.

    K types have random blocks instead of the model's numbers (the `gguf` package cannot make them), and a model of
    wider rows, because their blocks hold 256.
    """
    if storage in K_QUANTS:
        overrides = {name: size for name, size in _K_QUANT_SIZES.items()
                     if name in _OWN_SIZES[architecture] or name in _SIZES} | overrides  # fmt: skip
    model = tiny_hf_model(architecture, seed=seed, **overrides)
    gguf_architecture = "llama" if architecture == "mistral" else architecture
    writer = gguf.GGUFWriter(path, gguf_architecture)
    _add_sizes(writer, model.config)
    _add_rope(writer, model.config)
    _add_tokenizer(writer)
    generator = np.random.default_rng(seed)
    for name, numbers in _gguf_tensors(model, gguf_architecture):
        _add_tensor(writer, name, numbers, "F32" if numbers.ndim == 1 else storage, generator)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def _add_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config))


def _llama3_divisors(config: Any) -> np.ndarray:
    """(head_dim / 2,) float32: unscaled over scaled frequency, which is what llama.cpp divides by."""
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return (config.rope_parameters["rope_theta"] ** -exponents / scaled).numpy().astype(np.float32)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = vocabulary()
    padding = [f"[PAD{index}]" for index in range(len(tokens), VOCAB_SIZE)]
    normal, control, unused = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED)
    types = [control] * len(CONTROL_TOKENS) + [normal] * (len(tokens) - len(CONTROL_TOKENS)) + [unused] * len(padding)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + padding)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_tensors(model: Any, gguf_architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """The model's numbers under llama.cpp's names, in its order of rows."""
    config = model.config
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[gguf_architecture], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        numbers = tensor.numpy()
        if gguf_architecture == "llama" and ".q_proj." in name:
            numbers = permute_for_llama_cpp(numbers, config.num_attention_heads)
        if gguf_architecture == "llama" and ".k_proj." in name:
            numbers = permute_for_llama_cpp(numbers, config.num_key_value_heads)
        if gguf_architecture == "gemma3" and name.endswith("norm.weight"):
            numbers = numbers + 1
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(numbers)


def permute_for_llama_cpp(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from (first half, second half) to pairs: row i and row i + head_dim / 2 become neighbours."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, numbers: np.ndarray, storage: str, generator: np.random.Generator
) -> None:
    kind = gguf.GGMLQuantizationType[storage]
    if storage in ("F32", "F16"):
        writer.add_tensor(name, numbers.astype(np.float32 if storage == "F32" else np.float16))
    elif storage in K_QUANTS:
        writer.add_tensor(name, random_k_rows(numbers.shape, storage, generator), raw_dtype=kind)
    else:
        writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)


def random_k_rows(shape: tuple[int, ...], storage: str, generator: np.random.Generator) -> np.ndarray:
    """(rows, row_bytes) uint8: random blocks with scales small enough that the numbers stay about as large as 0.1."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[storage]]
    blocks = generator.integers(0, 256, (shape[0], shape[1] // block_size, block_bytes), dtype=np.uint8)
    scale = np.array([0.0001], np.float16).view(np.uint8)
    for offset in (208,) if storage == "Q6_K" else (0, 2):
        blocks[..., offset : offset + 2] = scale
    return blocks.reshape(shape[0], -1)
