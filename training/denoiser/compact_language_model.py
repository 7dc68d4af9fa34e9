"""The part of SmolLM2 that captions need, in a file small enough to send anywhere: some layers, the rows of some words.

Blocks are stored as the GGUF file has them and dequantised when they are read, so nothing is lost. Captions are made of
few words, and a word has the same tokens wherever it stands, so a table of words takes the tokenizer's place.

`python -m braid.training.denoiser.compact_language_model OUT` writes the file; 14 layers are 31 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from braid.llm_core.loading.quantization import dequantize
from braid.llm_core.loading.weights import StorageType, Weights
from braid.llm_core.models.config import ModelConfig
from braid.training.denoiser.configs import TextLayers

WORD = re.compile(r" ?[A-Za-z]+| ?[^\sA-Za-z]+")
"""What the tokenizer cuts captions into before it makes tokens of them."""
MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBEDDINGS = "model.embed_tokens"


def words_of(caption: str) -> list[str]:
    """A caption cut into words, each with the space in front of it."""
    return WORD.findall(caption.strip())


class WordTable:
    """Tokens of words, counted among the tokens that the compact file has rows for."""

    def __init__(self, tokens: Mapping[str, list[int]], prefix: list[int]) -> None:
        """
        Args:
            prefix: what every text begins with.
        """
        self._tokens, self._prefix = tokens, prefix

    def encode(self, caption: str, max_length: int) -> list[int]:
        """A caption's tokens, cut to `max_length`."""
        tokens = [*self._prefix, *(token for word in words_of(caption) for token in self._tokens[word])]
        return tokens[:max_length]

    def padded(self, captions: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """(N, longest) int16 with zeros behind, and how many of each are tokens, (N,) int64."""
        rows = [torch.tensor(self.encode(caption, max_length), dtype=torch.int16) for caption in captions]
        lengths = torch.tensor([len(row) for row in rows])
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def write_compact(
    path: Path, config: ModelConfig, weights: Weights, words: Mapping[str, list[int]], text: TextLayers,
    prefix: Sequence[int] = (),
) -> None:  # fmt: skip
    """Write the layers below the highest that is taken, and the rows of these words' tokens.

    Args:
        words: with the model's tokens.
        prefix: tokens that every text begins with.
    """
    tokens = sorted({token for ids in words.values() for token in ids} | set(prefix))
    number = {token: index for index, token in enumerate(tokens)}
    tensors: dict[str, Tensor] = {}
    storages: dict[str, str] = {}
    names = [EMBEDDINGS] + [
        f"model.layers.{layer}.{name}" for layer in range(max(text.layers)) for name in (*MATRICES, *NORMS)
    ]
    for name in names:
        stored = weights[f"{name}.weight"]
        raw = stored.raw()
        tensors[name] = raw[tokens].clone() if name == EMBEDDINGS else raw.clone()
        storages[name] = stored.storage.value
    metadata = {
        "storages": json.dumps(storages),
        "words": json.dumps({word: [number[token] for token in ids] for word, ids in words.items()}),
        "prefix": json.dumps([number[token] for token in prefix]),
        "config": json.dumps({
            "num_heads": config.num_heads, "num_kv_heads": config.num_kv_heads, "head_dim": config.head_dim,
            "norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "layers": list(text.layers),
        }),
    }  # fmt: skip
    save_file(tensors, path, metadata=metadata)


@dataclass(frozen=True)
class _Sizes:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    layers: Sequence[int]


class CompactLanguageModel:
    """The file, read: tokens of many captions to hidden states at once, in bfloat16 products and float32 sums."""

    def __init__(self, path: Path, device: torch.device, *, dtype: torch.dtype = torch.bfloat16) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
            storages = json.loads(metadata["storages"])
            self._weights = {
                name: _numbers(file.get_tensor(name), StorageType(storages[name])).to(device, dtype)
                for name in file.keys()  # noqa: SIM118, a file is no mapping
            }
        self.words = WordTable(json.loads(metadata["words"]), json.loads(metadata["prefix"]))
        self._sizes = _Sizes(**json.loads(metadata["config"]))
        self._device = device

    @torch.no_grad()
    def hidden_states(self, tokens: Tensor) -> Tensor:
        """(B, T) tokens, text first, to (B, T, D, L) float32; what stands behind the text means nothing."""
        x = self._weights[EMBEDDINGS][tokens.to(self._device).long()].float()
        rotation = self._rotation(tokens.shape[1])
        kept = {0: x}
        for layer in range(max(self._sizes.layers)):
            x = self._block(x, f"model.layers.{layer}.", rotation)
            kept[layer + 1] = x
        return torch.stack([kept[layer] for layer in self._sizes.layers], -1)

    def _block(self, x: Tensor, name: str, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self._attention(self._normed(x, f"{name}input_layernorm"), f"{name}self_attn.", rotation).float()
        normed = self._normed(x, f"{name}post_attention_layernorm")
        gate, up = (functional.linear(normed, self._weights[f"{name}mlp.{part}_proj"]) for part in ("gate", "up"))
        return x + functional.linear(functional.silu(gate) * up, self._weights[f"{name}mlp.down_proj"]).float()

    def _attention(self, x: Tensor, name: str, rotation: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            torch.unflatten(
                functional.linear(x, self._weights[f"{name}{part}_proj"]), -1, (-1, self._sizes.head_dim)
            ).transpose(1, 2)
            for part in ("q", "k", "v")
        )
        q, k = _rotated(q, rotation), _rotated(k, rotation)
        # what stands behind a text is hidden from it by causality alone
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return functional.linear(attended.transpose(1, 2).flatten(2), self._weights[f"{name}o_proj"])

    def _normed(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[name]
        return functional.rms_norm(x, x.shape[-1:], weight.flatten().float(), self._sizes.norm_eps).to(weight.dtype)

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self._sizes.head_dim, 2, device=self._device).float() / self._sizes.head_dim
        angles = torch.arange(length, device=self._device).float()[:, None] / self._sizes.rope_theta**exponents
        return angles.cos(), angles.sin()


def _numbers(raw: Tensor, storage: StorageType) -> Tensor:
    return dequantize(raw, storage) if storage.is_quantized else raw.view(torch.float32)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Pairs of neighbours, which is how llama.cpp orders the rows of queries and keys."""
    cos, sin = rotation
    even, odd = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def world_words(num_scenes: int = 20_000, seed: int = 0) -> Iterable[str]:
    """Every word of many captions, and so of all."""
    from braid.training.world.captions import caption
    from braid.training.world.scene import sample_scene
    from braid.training.world.vocabulary import STYLES

    rng = random.Random(seed)
    found: set[str] = set()
    for number in range(num_scenes):
        scene = sample_scene(rng, held_out=number % 2 == 0, style=rng.choice((None, None, *STYLES)))
        found.update(words_of(caption(scene, rng)))
    return sorted(found)


def main() -> None:
    """The command."""
    from braid.llm_core.loading.checkpoint import EMBEDDED_MODEL, open_checkpoint

    parser = argparse.ArgumentParser(description="write the part of SmolLM2 that captions need")
    parser.add_argument("out", type=Path)
    path = parser.parse_args().out
    checkpoint = open_checkpoint(EMBEDDED_MODEL)
    tokenizer = checkpoint.tokenizer()
    words = {word: tokenizer.encode(word, add_special_tokens=False) for word in world_words()}
    prefix = [tokenizer.bos_token_id] if tokenizer.adds_bos else []
    write_compact(path, checkpoint.config, checkpoint.weights, words, TextLayers(), prefix)
    print(f"{path}: {path.stat().st_size:,} bytes, {len(words):,} words")


if __name__ == "__main__":
    main()
