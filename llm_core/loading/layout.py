"""Which tensors a config implies, of which shapes; compared with what a file has before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from braid.errors import ModelFileError
from braid.llm_core.models.config import ModelConfig

Shape = tuple[int, ...]

MAX_SIZE = 2**31 - 1
"""Every size, count and length of a model fits 32 bits, in which kernels count."""


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Canonical name to shape for every tensor that a model of this config has."""
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    layer = dict(_layer_tensors(config))
    for index in range(config.num_layers):
        shapes.update((f"model.layers.{index}.{name}", shape) for name, shape in layer.items())
    return shapes


def _layer_tensors(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if config.post_norms:
        yield "pre_feedforward_layernorm.weight", (hidden,)
        yield "post_feedforward_layernorm.weight", (hidden,)
    for letter, rows in (("q", query_rows), ("k", kv_rows), ("v", kv_rows)):
        yield f"self_attn.{letter}_proj.weight", (rows, hidden)
        if config.attention_bias:
            yield f"self_attn.{letter}_proj.bias", (rows,)
    yield "self_attn.o_proj.weight", (hidden, query_rows)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)
    yield "mlp.gate_proj.weight", (intermediate, hidden)
    yield "mlp.up_proj.weight", (intermediate, hidden)
    yield "mlp.down_proj.weight", (hidden, intermediate)


def require_plausible_depth(path: Path, num_layers: int, num_tensors: int) -> None:
    """Refuse a layer count that the file has no tensors for, before anything is made per layer."""
    if not 1 <= num_layers <= num_tensors:
        raise ModelFileError(
            f"{path}: the model claims {num_layers:,} layers, but has {num_tensors:,} tensors; each layer has several"
        )


def check_shapes(path: Path, config: ModelConfig, found: Mapping[str, Shape]) -> None:
    """Compare the tensors of a file, by canonical name, with what its config implies.

    Raises:
        ModelFileError: names what is missing, what is there for no reason, or the first wrong shape.
    """
    expected = expected_tensors(config)
    _refuse_names(path, "lacks the", [name for name in expected if name not in found])
    _refuse_names(path, f"has for a {config.architecture} model the unexpected", sorted(found.keys() - expected.keys()))
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelFileError(f"{path}: tensor {name!r} has the shape {found[name]}; the config implies {shape}")


def _refuse_names(path: Path, what: str, names: list[str]) -> None:
    if not names:
        return
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    raise ModelFileError(f"{path} {what} tensor{'s' if len(names) > 1 else ''} {shown}{more}")
