"""GGUF files of every architecture, written by the `gguf` package, read back: every number and every field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.gguf_model import open_gguf_model
from braid.llm_core.loading.weights import StorageType
from braid.llm_core.models.config import RopeScaling
from braid.tests import tiny_models
from braid.tests.tiny_models import ARCHITECTURES, permute_for_llama_cpp, tiny_hf_model, write_gguf

EditWriter = Callable[[gguf.GGUFWriter], None]


@pytest.fixture
def edit_metadata(monkeypatch: pytest.MonkeyPatch) -> Callable[[EditWriter], None]:
    """Have something done to the writer of the next files, after the sizes."""

    def use(edit: EditWriter) -> None:
        original = tiny_models._add_sizes

        def add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
            original(writer, config)
            edit(writer)

        monkeypatch.setattr(tiny_models, "_add_sizes", add_sizes)

    return use


def set_value(key: str, value: Any, kind: gguf.GGUFValueType) -> EditWriter:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value=value, type=kind)

    return edit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_reads_back_under_its_canonical_name(tmp_path: Path, architecture: str) -> None:
    model = open_gguf_model(write_gguf(tmp_path / "x.gguf", architecture))
    reference = tiny_hf_model(architecture)
    expected = reference.state_dict()
    if reference.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert set(model.weights) == set(expected)
    for name, numbers in expected.items():
        if model.config.rope_interleaved and ("q_proj" in name or "k_proj" in name):
            num_heads = model.config.num_heads if "q_proj" in name else model.config.num_kv_heads
            numbers = torch.from_numpy(permute_for_llama_cpp(numbers.numpy(), num_heads))
        if architecture == "gemma3" and name.endswith("norm.weight"):
            numbers = numbers + 1
        assert torch.equal(model.weights[name].to_torch(torch.float32), numbers), name


def test_permuted_rows_rotated_in_pairs_score_as_halves_do() -> None:
    heads, dim = 4, 16
    generator = np.random.default_rng(0)
    q, k = generator.normal(size=(2, heads * dim))
    angles = 0.7 * 10000.0 ** -(np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angles), np.sin(angles)

    def halves(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x.reshape(heads, dim), 2, axis=1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)

    def pairs(x: np.ndarray) -> np.ndarray:
        a, b = x.reshape(heads, dim)[:, 0::2], x.reshape(heads, dim)[:, 1::2]
        return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(heads, dim)

    expected = (halves(q) * k.reshape(heads, dim)).sum(axis=1)
    permuted_k = permute_for_llama_cpp(k, heads).reshape(heads, dim)
    np.testing.assert_allclose((pairs(permute_for_llama_cpp(q, heads)) * permuted_k).sum(axis=1), expected)


@pytest.mark.parametrize("storage", [storage.value for storage in StorageType])
def test_every_storage_type_is_read_as_gguf_reads_it(tmp_path: Path, storage: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", "qwen2", storage=storage)
    weights = open_gguf_model(path).weights
    stored = {weights[name].file_name: weights[name] for name in weights}
    for tensor in gguf.GGUFReader(path).tensors:
        assert stored[tensor.name].storage.value == tensor.tensor_type.name
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(stored[tensor.name].to_torch(torch.float32).numpy(), expected)
        np.testing.assert_array_equal(stored[tensor.name].raw().numpy().ravel(), tensor.data.view(np.uint8).ravel())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_has_the_sizes_of_the_reference(tmp_path: Path, architecture: str) -> None:
    config = open_gguf_model(write_gguf(tmp_path / "x.gguf", architecture)).config
    reference = tiny_hf_model(architecture).config
    assert config.architecture == ("llama" if architecture == "mistral" else architecture)
    assert config.rope_interleaved == (config.architecture == "llama")
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, reference.head_dim)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (288, 64, 96)
    assert config.context_length == 256
    assert config.norm_eps == pytest.approx(reference.rms_norm_eps, rel=1e-7)
    assert config.norm_weight_offset == 0.0
    assert config.tie_word_embeddings == reference.tie_word_embeddings
    assert config.attention_bias == (architecture == "qwen2")
    assert config.qk_norm == (architecture in ("qwen3", "gemma3"))
    assert config.eos_token_ids == (0, 2)
    types = getattr(reference, "layer_types", None)
    window = getattr(reference, "sliding_window", None)
    assert config.sliding_window == window
    for layer in range(config.num_layers):
        assert config.is_sliding(layer) == (types[layer] == "sliding_attention" if types else window is not None)


def test_gemma3_has_two_rotary_bases_and_its_own_scales(tmp_path: Path) -> None:
    config = open_gguf_model(write_gguf(tmp_path / "x.gguf", "gemma3")).config
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 1e4)
    assert config.embedding_scale == 8.0
    assert config.attention_scale == 32**-0.5
    assert config.hidden_act == "gelu_tanh"
    assert config.post_norms


def test_the_largest_gemma3_scales_scores_by_its_hidden_size(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", "gemma3", num_hidden_layers=62, hidden_size=32, head_dim=16)
    assert open_gguf_model(path).config.attention_scale == 8**-0.5


def test_linear_rotary_scaling_is_read(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    config = open_gguf_model(write_gguf(tmp_path / "x.gguf", "llama", rope_parameters=rope)).config
    assert (config.rope_theta, config.rope_scaling) == (5e5, RopeScaling("linear", 4.0))


def test_llama3_rotary_scaling_is_read_as_divisors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 1e4}  # fmt: skip
    model = open_gguf_model(write_gguf(tmp_path / "x.gguf", "llama", rope_parameters=rope))
    scaling = model.config.rope_scaling
    assert scaling.kind == "divisors"
    assert len(scaling.divisors) == 8
    assert scaling.divisors[0] == pytest.approx(1.0)
    assert scaling.divisors[-1] == pytest.approx(8.0)
    assert "rope_freqs.weight" not in model.weights


def test_a_llama_with_biases_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tiny_models._gguf_tensors

    def with_biases(model: Any, architecture: str) -> Any:
        yield from original(model, architecture)
        for layer in range(3):
            for letter, rows in (("q", 64), ("k", 32), ("v", 32)):
                yield f"blk.{layer}.attn_{letter}.bias", np.ones(rows, np.float32)

    monkeypatch.setattr(tiny_models, "_gguf_tensors", with_biases)
    assert open_gguf_model(write_gguf(tmp_path / "x.gguf", "llama")).config.attention_bias


def test_a_sliding_pattern_in_the_file_wins(tmp_path: Path, edit_metadata: Callable[[EditWriter], None]) -> None:
    edit_metadata(lambda writer: writer.add_sliding_window_pattern(3))
    config = open_gguf_model(write_gguf(tmp_path / "x.gguf", "gemma3")).config
    assert config.layer_is_sliding == (True, True, False, True, True, False, True)
    edit_metadata(lambda writer: writer.add_sliding_window_pattern([False] + [True] * 6))
    config = open_gguf_model(write_gguf(tmp_path / "y.gguf", "gemma3")).config
    assert config.layer_is_sliding == (False,) + (True,) * 6


def test_kv_heads_per_layer_are_read_where_all_are_equal(
    tmp_path: Path, edit_metadata: Callable[[EditWriter], None]
) -> None:
    edit_metadata(lambda writer: set_array(writer, "llama.attention.head_count_kv", [2, 2, 2]))
    assert open_gguf_model(write_gguf(tmp_path / "x.gguf", "llama")).config.num_kv_heads == 2
    edit_metadata(lambda writer: set_array(writer, "llama.attention.head_count_kv", [2, 1, 2]))
    with pytest.raises(ModelFileError, match=r"head_count_kv' is \[2, 1, 2\]; it must be an integer"):
        open_gguf_model(write_gguf(tmp_path / "y.gguf", "llama"))


def set_array(writer: gguf.GGUFWriter, key: str, values: list[Any]) -> None:
    writer.kv_data[0].pop(key, None)
    writer.add_array(key, values)


UINT32, FLOAT32, STRING, INT32 = (
    gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.INT32,
)  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (set_value("general.architecture", "mamba", STRING), UnsupportedModel,
         "the architecture 'mamba' is not supported; supported are llama, qwen2, qwen3, gemma3"),
        (set_value("general.architecture", 7, UINT32), ModelFileError, "lacks the metadata key 'general.architecture'"),
        (set_value("llama.block_count", 2_000_000_000, UINT32), ModelFileError,
         "claims 2,000,000,000 layers, but has 30 tensors"),
        (set_value("llama.context_length", 2**31, UINT32), ModelFileError, "must be an integer from 1 to 2,147"),
        (set_value("llama.block_count", 4, UINT32), ModelFileError, r"lacks the tensors 'model\.layers\.3\."),
        (set_value("llama.block_count", 2, UINT32), ModelFileError, r"unexpected tensors 'model\.layers\.2\."),
        (set_value("llama.block_count", -1, INT32), ModelFileError, "'llama.block_count' is -1; it must be"),
        (set_value("llama.embedding_length", 128, UINT32), ModelFileError, r"shape \(288, 64\); the config implies"),
        (set_value("llama.embedding_length", "64", STRING), ModelFileError, "is '64'; it must be an integer"),
        (set_value("llama.attention.head_count", 3, UINT32), ModelFileError, "num_heads=3 must be a multiple of"),
        (set_value("llama.attention.head_count", 0, UINT32), ModelFileError, "is 0; it must be an integer from 1"),
        (set_value("llama.attention.value_length", 8, UINT32), UnsupportedModel, "value_length=8 must be the head"),
        (set_value("llama.rope.dimension_count", 8, UINT32), UnsupportedModel, "dimension_count=8 must be the head"),
        (set_value("llama.attention.layer_norm_rms_epsilon", float("nan"), FLOAT32), ModelFileError,
         "is nan; it must be a positive number"),
        (set_value("llama.rope.scaling.type", "yarn", STRING), UnsupportedModel, "type='yarn' is not supported"),
        (set_value("llama.expert_count", 8, UINT32), UnsupportedModel, "llama.expert_count=8 is not supported"),
        (set_value("tokenizer.ggml.bos_token_id", 288, UINT32), ModelFileError, "is 288; it must be 0 to 287"),
        (lambda writer: writer.kv_data[0].pop("llama.context_length"), ModelFileError,
         "lacks the metadata key 'llama.context_length'"),
    ],
)  # fmt: skip
def test_wrong_metadata_is_named(
    tmp_path: Path, edit_metadata: Callable[[EditWriter], None], edit: EditWriter, error: type[Exception], message: str
) -> None:
    edit_metadata(edit)
    path = write_gguf(tmp_path / "x.gguf", "llama")
    with pytest.raises(error, match=message) as raised:
        open_gguf_model(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.1.attn_k.weight": None}, r"lacks the tensor 'model\.layers\.1\.self_attn\.k_proj\.weight'"),
        ({"token_embd.weight": None}, r"lacks the tensor 'token_embd\.weight'"),
        ({"token_embd.weight": np.ones(64)}, r"'token_embd\.weight' has the shape \(64,\); it must be 2-D"),
        ({"blk.1.attn_k.weight": np.ones((64, 64))}, r"k_proj\.weight' has the shape \(64, 64\); the config"),
        ({"output_norm.weight": np.ones((1, 64))}, r"'model\.norm\.weight' has the shape \(1, 64\); the"),
        ({"blk.0.strange.weight": np.ones(4)}, r"for a llama model the unexpected tensor 'blk\.0\.str"),
        ({"model.norm.weight": np.ones(64)}, r"the tensors 'output_norm\.weight' and 'model\.norm\.weight' are one"),
        ({"rope_freqs.weight": np.ones(7)}, r"'rope_freqs\.weight' must be 8 positive numbers"),
        ({"rope_freqs.weight": np.zeros(8)}, r"'rope_freqs\.weight' must be 8 positive numbers"),
        ({"rope_freqs.weight": np.full(8, np.nan)}, "has the number nan at index 0; weights must be finite"),
        ({"token_embd.weight": np.ones((100, 64))}, "the tokenizer has 288 tokens for 100 embedding rows"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, np.ndarray | None], message: str
) -> None:
    original = tiny_models._gguf_tensors

    def changed(model: Any, architecture: str) -> Any:
        tensors = dict(original(model, architecture)) | change
        return [(name, tensor) for name, tensor in tensors.items() if tensor is not None]

    monkeypatch.setattr(tiny_models, "_gguf_tensors", changed)
    with pytest.raises(ModelFileError, match=message):
        open_gguf_model(write_gguf(tmp_path / "x.gguf", "llama"))
