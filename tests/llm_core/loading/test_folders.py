"""Hugging Face folders written by `transformers`, read back: every number, every field of the config."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.safetensors_model import FolderModel, open_folder_model
from braid.llm_core.models.config import RopeScaling
from braid.tests.tiny_models import ARCHITECTURES, tiny_hf_model, write_hf_folder, write_multimodal_gemma3_folder


def rewrite_config(folder: Path, **fields: Any) -> None:
    """Change fields of `config.json`; a field set to `...` is removed."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def opened_with(folder: Path, **fields: Any) -> FolderModel:
    rewrite_config(folder, **fields)
    return open_folder_model(folder)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_hf_folder(tmp_path / "llama", "llama")


@pytest.fixture
def gemma3(tmp_path: Path) -> Path:
    return write_hf_folder(tmp_path / "gemma3", "gemma3")


@pytest.mark.parametrize("max_shard_size", ["1GB", "40KB"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_reads_back_equal(tmp_path: Path, architecture: str, max_shard_size: str) -> None:
    folder = write_hf_folder(tmp_path, architecture, max_shard_size=max_shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (max_shard_size == "40KB")
    weights = open_folder_model(folder).weights
    reference = tiny_hf_model(architecture)
    expected = reference.state_dict()
    if reference.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert set(weights) == set(expected)
    for name, numbers in expected.items():
        assert torch.equal(weights[name].to_torch(torch.float32), numbers), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_has_the_sizes_of_the_reference(tmp_path: Path, architecture: str) -> None:
    config = open_folder_model(write_hf_folder(tmp_path, architecture)).config
    reference = tiny_hf_model(architecture).config
    assert config.architecture == architecture
    assert config.vocab_size == reference.vocab_size
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.head_dim == reference.head_dim
    assert config.norm_eps == reference.rms_norm_eps
    assert config.tie_word_embeddings == reference.tie_word_embeddings
    assert config.context_length == 256
    assert config.eos_token_ids == (2,)
    assert not config.rope_interleaved
    types = getattr(reference, "layer_types", None)
    window = getattr(reference, "sliding_window", None)
    for layer in range(config.num_layers):
        assert config.is_sliding(layer) == (types[layer] == "sliding_attention" if types else window is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_folders_convert_exactly_to_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = open_folder_model(write_hf_folder(tmp_path, "qwen3", dtype=dtype)).weights
    name = "model.layers.1.mlp.up_proj.weight"
    expected = tiny_hf_model("qwen3").state_dict()[name].to(dtype)
    assert torch.equal(weights[name].to_torch(torch.float32), expected.float())
    assert torch.equal(weights[name].to_torch(dtype), expected)


def test_numbers_of_the_stored_dtype_are_a_view_of_the_file(llama: Path) -> None:
    tensor = open_folder_model(llama).weights["model.layers.0.mlp.up_proj.weight"]
    assert tensor.raw().shape == (96, 64 * 4)
    assert tensor.to_torch(torch.float32).data_ptr() == tensor.raw().data_ptr()
    assert tensor.to_torch(torch.float16).data_ptr() != tensor.raw().data_ptr()


def test_writing_through_a_view_never_reaches_the_file(llama: Path) -> None:
    before = (llama / "model.safetensors").read_bytes()
    open_folder_model(llama).weights["model.norm.weight"].to_torch(torch.float32).zero_()
    assert (llama / "model.safetensors").read_bytes() == before


def test_tensors_at_odd_bytes_are_read_all_the_same(llama: Path) -> None:
    expected = open_folder_model(llama).weights["model.norm.weight"].to_torch(torch.float32).clone()
    path = llama / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.unlink()
    path.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    assert torch.equal(open_folder_model(llama).weights["model.norm.weight"].to_torch(torch.float32), expected)


def test_the_language_model_of_a_multimodal_gemma3_is_found(tmp_path: Path) -> None:
    model = open_folder_model(write_multimodal_gemma3_folder(tmp_path))
    assert model.config.architecture == "gemma3"
    assert model.config.eos_token_ids == (0, 2)
    assert not any("vision" in name or "multi_modal" in name for name in model.weights)
    assert "model.layers.6.self_attn.q_norm.weight" in model.weights


def test_a_published_gemma3_config_that_leaves_out_nearly_all_has_its_class_defaults(tmp_path: Path) -> None:
    folder = write_multimodal_gemma3_folder(
        tmp_path, hidden_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256
    )
    (folder / "generation_config.json").unlink()
    text = {"hidden_size": 64, "intermediate_size": 96, "model_type": "gemma3_text", "num_hidden_layers": 7,
            "vocab_size": 288, "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config = opened_with(folder, text_config=text, eos_token_id=[1, 106], tie_word_embeddings=...).config
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 1e4)
    assert config.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    assert (config.sliding_window, config.context_length) == (1024, 131072)
    assert config.layer_is_sliding == (True,) * 5 + (False, True)
    assert config.query_scale == 256**-0.5
    assert config.eos_token_ids == (1, 106)
    assert config.tie_word_embeddings


def test_gemma3_adds_one_to_norms_and_scales_embeddings_in_the_stored_dtype(tmp_path: Path, gemma3: Path) -> None:
    config = open_folder_model(gemma3).config
    assert config.norm_weight_offset == 1.0
    assert config.embedding_scale == 8.0
    assert config.post_norms
    assert config.qk_norm
    assert config.hidden_act == "gelu_tanh"
    wider = {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1}
    bf16 = open_folder_model(write_hf_folder(tmp_path / "bf16", "gemma3", dtype=torch.bfloat16, **wider)).config
    assert bf16.embedding_scale == float(torch.tensor(80**0.5).bfloat16())
    assert bf16.embedding_scale != math.sqrt(80)


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, RopeScaling()),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, RopeScaling()),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}, 5e5, RopeScaling("linear", 4.0)),
        ({"rope_parameters": {"rope_theta": 7e5, "rope_type": "linear", "factor": 2}}, 7e5, RopeScaling("linear", 2.0)),
        (
            {"rope_theta": 5e5, "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}},
            5e5, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        ),
        ({}, 1e4, RopeScaling()),
    ],
)  # fmt: skip
def test_both_ways_to_write_rotary_fields_are_read(
    llama: Path, fields: dict[str, Any], theta: float, scaling: RopeScaling
) -> None:
    config = opened_with(llama, **({"rope_parameters": ...} | fields)).config
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


def test_gemma3_rotary_fields_per_layer_type_are_read(gemma3: Path) -> None:
    parameters = {
        "full_attention": {"rope_theta": 2e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 3e4, "rope_type": "default"},
    }
    config = opened_with(gemma3, rope_parameters=parameters).config
    assert (config.rope_theta, config.rope_local_theta) == (2e6, 3e4)
    assert config.rope_scaling == RopeScaling("linear", 8.0)


def test_qwen_windows_only_the_upper_layers_and_only_if_asked(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path, "qwen2")
    old = {"layer_types": ..., "sliding_window": 32, "max_window_layers": 2}
    assert opened_with(folder, **old, use_sliding_window=False).config.sliding_window is None
    config = opened_with(folder, **old, use_sliding_window=True).config
    assert (config.sliding_window, config.layer_is_sliding) == (32, (False, False, True))
    assert opened_with(folder, max_window_layers=3).config.sliding_window is None


def test_mistral_without_a_window_sees_everything(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path, "mistral")
    assert opened_with(folder, sliding_window=None).config.sliding_window is None
    assert opened_with(folder, sliding_window=...).config.sliding_window == 4096


def test_generation_config_decides_what_ends_an_answer(llama: Path) -> None:
    (llama / "generation_config.json").write_text('{"eos_token_id": [7, 2, 7]}')
    assert open_folder_model(llama).config.eos_token_ids == (2, 7)
    (llama / "generation_config.json").write_text('{"eos_token_id": null}')
    assert open_folder_model(llama).config.eos_token_ids == (2,)
    (llama / "generation_config.json").unlink()
    assert opened_with(llama, eos_token_id=None).config.eos_token_ids == ()


def test_a_head_that_is_tied_is_not_read_twice(tmp_path: Path) -> None:
    folder = write_hf_folder(tmp_path, "llama", tie_word_embeddings=False)
    assert "lm_head.weight" in open_folder_model(folder).weights
    assert "lm_head.weight" not in opened_with(folder, tie_word_embeddings=True).weights


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedModel, "'GPT2LMHeadModel' is not supported; supported are"),
        ({"architectures": ...}, ModelFileError, "architectures=None must name a model class"),
        ({"architectures": [["LlamaForCausalLM"]]}, ModelFileError, "must name a model class"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModel, "quantization_config is not supported"),
        ({"hidden_size": "64"}, ModelFileError, "hidden_size='64' must be an integer from 1 to"),
        ({"hidden_size": ...}, ModelFileError, "hidden_size=None must be an integer from 1 to"),
        ({"hidden_size": 128}, ModelFileError, r"has the shape \(288, 64\); the config implies \(288, 128\)"),
        ({"num_hidden_layers": 10**9}, ModelFileError, r"claims 1,000,000,000 layers, but has 30 tensors"),
        ({"max_position_embeddings": 10**12}, ModelFileError, "must be an integer from 1 to 2,147,483,647"),
        ({"rms_norm_eps": 10**400}, ModelFileError, "rms_norm_eps=1000.* must be a positive number"),
        ({"num_hidden_layers": 4}, ModelFileError, r"lacks the tensors 'model\.layers\.3\..*' and 4 more"),
        ({"num_hidden_layers": 2}, ModelFileError, r"has for a llama model the unexpected tensors 'model\.layers\.2\."),
        ({"num_key_value_heads": 3}, ModelFileError, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"head_dim": 15}, ModelFileError, "head_dim=15 must be even"),
        ({"rms_norm_eps": 0}, ModelFileError, "rms_norm_eps=0 must be a positive number"),
        ({"hidden_act": "relu"}, UnsupportedModel, "hidden_act='relu' is not supported; supported is silu"),
        ({"hidden_act": []}, UnsupportedModel, r"hidden_act=\[\] is not supported"),
        ({"attention_bias": True}, UnsupportedModel, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, UnsupportedModel, "mlp_bias=True is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4}}, UnsupportedModel, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, ModelFileError, "rope scaling's factor=None must be a positive"),
        ({"rope_parameters": [1]}, ModelFileError, r"rope_parameters=\[1\] must be an object"),
        ({"bos_token_id": 288}, ModelFileError, "bos_token_id=288 must be an id from 0 to 287"),
        ({"tie_word_embeddings": True, "vocab_size": 287}, ModelFileError, r"the config implies \(287, 64\)"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_named(llama: Path, fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        opened_with(llama, **fields)
    assert str(llama) in str(raised.value)


def test_gemma3_softcapping_is_refused(gemma3: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"final_logit_softcapping=30\.0 is not supported"):
        opened_with(gemma3, final_logit_softcapping=30.0)


def test_unknown_layer_types_are_refused(gemma3: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"layer_types=.* is not supported"):
        opened_with(gemma3, layer_types=["chunked_attention"] * 7)
    with pytest.raises(ModelFileError, match="layer_is_sliding has 1 entries for 7 layers"):
        opened_with(gemma3, layer_types=["sliding_attention"])


def test_eos_ids_outside_the_vocabulary_are_refused(llama: Path) -> None:
    (llama / "generation_config.json").write_text('{"eos_token_id": [2, -1]}')
    with pytest.raises(ModelFileError, match=r"generation_config\.json: eos_token_id=\[2, -1\] must be ids from 0"):
        open_folder_model(llama)
