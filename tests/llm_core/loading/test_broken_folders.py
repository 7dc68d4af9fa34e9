"""Broken Hugging Face folders: each is refused with the file and what is wrong, and none crashes or hangs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.errors import BraidError, ModelFileError, UnsupportedModel
from braid.llm_core.loading.safetensors_model import open_folder_model
from braid.tests.tiny_models import write_hf_folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_hf_folder(folder / "single", "llama", num_hidden_layers=1)
    write_hf_folder(folder / "sharded", "llama", num_hidden_layers=1, max_shard_size="100KB")
    return folder


@pytest.fixture
def single(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "single", tmp_path / "single"))


@pytest.fixture
def sharded(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "sharded", tmp_path / "sharded"))


def read_header(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(folder: Path, header: bytes | dict[str, Any], data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    header, data = read_header(folder)
    edit(header)
    write_header(folder, header, data)


def norm_with(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[NORM].update(fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1234567", "has 7 bytes; a safetensors file starts with an 8-byte length"),
        (b"PK\3\4" + bytes(4) + b"x" * 64, "the header claims 67,324,752 bytes; at most 67,108,864 are possible"),
        ((2**63).to_bytes(8, "little") + b"{}", "the header claims 9,223,372,036,854,775,808 bytes; at most"),
        ((100).to_bytes(8, "little") + b"{}", "the header claims 100 bytes and the file has 2 left; it is truncated"),
        ((4).to_bytes(8, "little") + b"{\xff\xff}", "is not valid JSON"),
        ((2).to_bytes(8, "little") + b"[]", "the JSON is a list; it must be an object"),
        ((60000).to_bytes(8, "little") + b"[" * 60000, "the JSON is nested too deeply"),
        ((17).to_bytes(8, "little") + b'{"a": 1, "a": 22}', "is not valid JSON: the key 'a' is there twice"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "tensor 'a' is described by 1; it must be an object"),
        ((2).to_bytes(8, "little") + b"{}", "lacks|claims 1 layers, but has 0 tensors"),
    ],
)  # fmt: skip
def test_a_broken_container_is_refused(single: Path, content: bytes, message: str) -> None:
    (single / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as raised:
        open_folder_model(single)
    assert str(single) in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (norm_with(dtype="F33"), ModelFileError, "tensor 'model.norm.weight' has the unknown dtype 'F33'"),
        (norm_with(dtype=["F32"]), ModelFileError, "has the unknown dtype"),
        (norm_with(dtype="I32"), UnsupportedModel, "is stored as I32; supported are F32, F16 and BF16"),
        (norm_with(shape=[-64]), ModelFileError, r"has the shape \[-64\]; it must be a list of sizes"),
        (norm_with(shape=[2**62, 2**62]), ModelFileError, "takes 85,070,591,730,234,615,865,843,"),
        (norm_with(shape=[True] * 64), ModelFileError, "it must be a list of sizes"),
        (norm_with(shape=[65]), ModelFileError, r"of shape \[65\], F32, takes 260 bytes; its data_offsets hold 256"),
        (norm_with(data_offsets=[256, 0]), ModelFileError, r"has the data_offsets \[256, 0\]; they must be"),
        (norm_with(data_offsets=[0]), ModelFileError, "they must be"),
        (norm_with(data_offsets=[2**40, 2**40 + 256]), ModelFileError, "the file ends at .*: it is truncated"),
        (norm_with(shape=[1, 64]), ModelFileError, r"has the shape \(1, 64\); the config implies \(64,\)"),
        (norm_with(shape=[], data_offsets=[0, 4]), ModelFileError, r"has the shape \(\); it must not be empty"),
        (lambda header: header.pop(NORM), ModelFileError, "lacks the tensor 'model.norm.weight'"),
        (lambda header: header.pop("model.embed_tokens.weight"), ModelFileError, "lacks the tensor 'model.embed"),
        (lambda header: header.update(extra=header[NORM]), ModelFileError, "the unexpected tensor 'extra'"),
        (lambda header: header.update({"language_model." + NORM: header[NORM]}), ModelFileError, "are one and"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_table_is_refused(
    single: Path, edit: Callable[[dict[str, Any]], object], error: type[Exception], message: str
) -> None:
    edited(single, edit)
    with pytest.raises(error, match=message) as raised:
        open_folder_model(single)
    assert str(single) in str(raised.value)


def test_a_file_cut_anywhere_is_refused(single: Path) -> None:
    whole = (single / WEIGHTS).read_bytes()
    for length in [*range(8, len(whole), 5003), len(whole) - 1]:
        (single / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="truncated or damaged"):
            open_folder_model(single)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"config\.json is not a file"),
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("config.json", "[1]", r"config\.json: the JSON is a list; it must be an object"),
        ("config.json", '{"architectures": ' + "9" * 5000 + "}", r"config\.json is not valid JSON: Exceeds the limit"),
        ("generation_config.json", "nope", r"generation_config\.json is not valid JSON"),
        (WEIGHTS, None, "has neither model.safetensors nor model.safetensors.index.json; only safetensors weights are"),
    ],
)
def test_a_missing_or_broken_file_is_named(single: Path, name: str, content: str | None, message: str) -> None:
    (single / name).unlink()
    if content is not None:
        (single / name).write_text(content)
    with pytest.raises(ModelFileError, match=message):
        open_folder_model(single)


def test_a_config_that_is_a_pipe_is_not_waited_for(single: Path) -> None:
    (single / "config.json").unlink()
    os.mkfifo(single / "config.json")
    with pytest.raises(ModelFileError, match=r"config\.json is not a file"):
        open_folder_model(single)


def test_pickled_weights_are_never_read(single: Path) -> None:
    (single / WEIGHTS).unlink()
    (single / "pytorch_model.bin").write_bytes(b"would run code")
    with pytest.raises(ModelFileError, match="never pickled ones"):
        open_folder_model(single)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../outside.safetensors", r"tensor 'model\.norm\.weight' is in '\.\./outside\.safetensors'; it must be"),
        ("/etc/passwd", "it must be a .safetensors file of the same folder"),
        (7, "is in 7; it must be"),
        ("model-00009-of-00009.safetensors", r"names the shard 'model-00009-of-00009\.safetensors', which is not in"),
    ],
)
def test_a_wrong_shard_is_refused(sharded: Path, shard: object, message: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=message):
        open_folder_model(sharded)


def test_a_tensor_that_is_not_in_its_shard_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    index["weight_map"][NORM] = next(iter(shards - {index["weight_map"][NORM]}))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=r"says that tensor 'model\.norm\.weight' is in .*, and it is not"):
        open_folder_model(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(sharded: Path, weight_map: object) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFileError, match="weight_map must be an object of tensor names and shard files"):
        open_folder_model(sharded)


def test_a_shard_that_was_deleted_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelFileError, match=f"names the shard '{shard.name}', which is not in"):
        open_folder_model(sharded)


def test_a_nan_in_the_weights_is_named_when_they_are_loaded(single: Path) -> None:
    header, data = read_header(single)
    begin = header[NORM]["data_offsets"][0]
    damaged = bytearray(data)
    damaged[begin + 8 : begin + 12] = b"\0\0\xc0\x7f"
    write_header(single, header, bytes(damaged))
    weights = open_folder_model(single).weights
    with pytest.raises(ModelFileError, match=r"tensor 'model\.norm\.weight' \(F32, shape \(64,\)\) has the number nan"):
        weights[NORM].to_torch(torch.float32)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.just(10**400) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
FIELDS = [
    "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act", "rope_parameters",
    "rope_scaling", "rope_theta", "tie_word_embeddings", "bos_token_id", "eos_token_id", "text_config", "layer_types",
    "sliding_window", "attention_bias", "quantization_config", "max_window_layers", "use_sliding_window",
]  # fmt: skip
ARCHITECTURES = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM"]


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, min_size=1, max_size=3),
)
def test_any_config_is_opened_or_refused_clearly(sound: Path, architecture: str, fields: dict[str, Any]) -> None:
    path = sound / "single" / "config.json"
    original = path.read_text()
    config = json.loads(original) | {"architectures": [architecture]} | fields
    path.write_text(json.dumps(config))
    try:
        open_folder_model(path.parent)
    except BraidError:
        pass  # anything else fails the test
    finally:
        path.write_text(original)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_harmless_or_a_clear_error(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "damaged"
    if not folder.exists():
        shutil.copytree(sound / "single", folder)
    damaged = bytearray((sound / "single" / WEIGHTS).read_bytes())
    header_bytes = 8 + int.from_bytes(damaged[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header_bytes - 1) | st.integers(0, len(damaged) - 1))
        change = data.draw(st.binary(min_size=1, max_size=8))
        damaged[position : position + len(change)] = change
    (folder / WEIGHTS).unlink()  # a new file each time: the last one may still be mapped
    (folder / WEIGHTS).write_bytes(damaged)
    try:
        weights = open_folder_model(folder).weights
        for name in weights:
            weights[name].to_torch(torch.float32)
    except BraidError:
        pass  # anything else fails the test
