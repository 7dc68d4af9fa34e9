"""A Hugging Face folder: `config.json`, safetensors in one file or in shards, `generation_config.json`.

Only safetensors is read, never pickle. Tensors stay on disk until they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.folder_config import FolderConfig, eos_token_ids, model_config, read_folder_config
from braid.llm_core.loading.layout import check_shapes, require_plausible_depth
from braid.llm_core.loading.mapped_weights import MappedTensor, MappedWeights
from braid.llm_core.loading.quantization import DENSE_DTYPES
from braid.llm_core.loading.safetensors_file import SafetensorsFile, TensorEntry, parse_json_object
from braid.llm_core.loading.weights import StorageType
from braid.llm_core.models.config import ModelConfig

MAX_JSON_BYTES = 64 << 20
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_OTHER_PARTS = re.compile(r"(model\.)?(vision_tower|vision_model|multi_modal_projector)\.")
"""Tensors of a multimodal checkpoint that are not the language model's."""
_RECOMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Old checkpoints store what follows from the config."""
_PREFIXES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)


@dataclass(frozen=True, slots=True)
class FolderModel:
    """An opened and checked language model."""

    config: ModelConfig
    weights: MappedWeights


def open_folder_model(folder: Path) -> FolderModel:
    """Open a folder and check that it is, whole, a model that we run.

    Raises:
        ModelFileError: a file is missing or broken, or the tensors are not those that the config implies.
        UnsupportedModel: its architecture, or something that it asks for, is not supported.
    """
    path = folder / "config.json"
    fields = _read_json(path)
    config = read_folder_config(path, fields)
    tensors = _canonical_tensors(folder, config)
    require_plausible_depth(path, config.integer("num_hidden_layers"), len(tensors))
    model = model_config(
        config,
        eos_token_ids=_eos_token_ids(folder, fields, config),
        embedding_dtype=_embedding_dtype(folder, tensors),
    )
    if model.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    check_shapes(folder, model, {name: tensor.shape for name, tensor in tensors.items()})
    return FolderModel(model, MappedWeights(folder, tensors))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ModelFileError(f"{path} is not a file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
        return parse_json_object(path, path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _eos_token_ids(folder: Path, fields: Mapping[str, Any], config: FolderConfig) -> tuple[int, ...]:
    """What ends an answer: `generation_config.json` knows best (end of turn too), then the outermost config."""
    vocab_size = config.integer("vocab_size")
    path = folder / "generation_config.json"
    if path.exists():
        value = _read_json(path).get("eos_token_id")
        if value is not None:
            return eos_token_ids(path, value, vocab_size)
    value = fields.get("eos_token_id")
    return eos_token_ids(config.path, config.given("eos_token_id") if value is None else value, vocab_size)


def _embedding_dtype(folder: Path, tensors: Mapping[str, MappedTensor]) -> torch.dtype:
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise ModelFileError(f"{folder} lacks the tensor 'model.embed_tokens.weight'")
    return DENSE_DTYPES[embedding.storage]


def _canonical_tensors(folder: Path, config: FolderConfig) -> dict[str, MappedTensor]:
    tensors: dict[str, MappedTensor] = {}
    for file, entry in _language_model_entries(folder):
        name = _canonical_name(entry.name)
        if name in tensors:
            other = tensors[name].file_name
            raise ModelFileError(f"{folder}: the tensors {other!r} and {entry.name!r} are one and the same")
        storage = _storage(file.file.path, entry)
        tensors[name] = MappedTensor(name, storage, entry.shape, file.file, entry.offset, file_name=entry.name)
    return tensors


def _language_model_entries(folder: Path) -> Iterable[tuple[SafetensorsFile, TensorEntry]]:
    for file, entry in _all_entries(folder):
        if not _OTHER_PARTS.match(entry.name) and not _RECOMPUTED.fullmatch(entry.name):
            yield file, entry


def _canonical_name(name: str) -> str:
    for prefix, canonical in _PREFIXES:
        if name.startswith(prefix):
            return canonical + name.removeprefix(prefix)
    return name


def _storage(path: Path, entry: TensorEntry) -> StorageType:
    if entry.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedModel(
            f"{path}: tensor {entry.name!r} is stored as {entry.dtype}; supported are F32, F16 and BF16"
        )
    if not entry.shape or 0 in entry.shape:
        raise ModelFileError(f"{path}: tensor {entry.name!r} has the shape {entry.shape}; it must not be empty")
    return StorageType(entry.dtype)


def _all_entries(folder: Path) -> Iterable[tuple[SafetensorsFile, TensorEntry]]:
    index = folder / INDEX_NAME
    if not index.exists():
        file = SafetensorsFile(_single_file(folder))
        return [(file, entry) for entry in file.tensors.values()]
    weight_map = _weight_map(index)
    shards = {name: SafetensorsFile(_shard_path(index, name)) for name in sorted(set(weight_map.values()))}
    return [(shards[shard], _shard_entry(index, shards[shard], name)) for name, shard in weight_map.items()]


def _single_file(folder: Path) -> Path:
    if (folder / SINGLE_NAME).exists():
        return folder / SINGLE_NAME
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    raise ModelFileError(
        f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}; only safetensors weights are read, never pickled ones"
    )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index}: weight_map must be an object of tensor names and shard files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelFileError(
                f"{index}: tensor {name!r} is in {shard!r}; it must be a .safetensors file of the same folder"
            )
    return weight_map


def _shard_path(index: Path, name: str) -> Path:
    path = index.parent / name
    if not path.is_file():
        raise ModelFileError(f"{index} names the shard {name!r}, which is not in {index.parent}")
    return path


def _shard_entry(index: Path, shard: SafetensorsFile, name: str) -> TensorEntry:
    if name not in shard.tensors:
        raise ModelFileError(f"{index} says that tensor {name!r} is in {shard.file.path.name}, and it is not")
    return shard.tensors[name]
