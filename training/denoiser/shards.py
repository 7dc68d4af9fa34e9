"""The averaged weights of a run in a few files of bfloat16, from which the next run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from braid.multimodal.atomic_file import AtomicFile
from braid.training.denoiser.configs import Shape, TextLayers

NUM_SHARDS = 4
PATTERN = "denoiser-{index}-of-{count}.safetensors"


@dataclass(frozen=True)
class Saved:
    """What a run left."""

    weights: dict[str, Tensor]
    """float32, by official name without prefix."""
    shape: Shape
    num_steps: int


def write_shards(folder: Path, weights: Mapping[str, Tensor], shape: Shape, num_steps: int) -> None:
    """Write all files, each whole or not at all; the metadata of each says everything."""
    metadata = {
        "section": json.dumps(shape.section), "text": json.dumps(shape.text.metadata()),
        "num_registers": str(shape.num_registers), "num_steps": str(num_steps),
    }  # fmt: skip
    for index, names in enumerate(_shared_out(weights), start=1):
        path = folder / PATTERN.format(index=index, count=NUM_SHARDS)
        tensors = {name: weights[name].detach().to("cpu", torch.bfloat16).contiguous() for name in names}
        with AtomicFile(path) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)


def _shared_out(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of each shard, about equal in size: the largest tensor left goes to the smallest shard."""
    shards: list[list[str]] = [[] for _ in range(NUM_SHARDS)]
    sizes = [0] * NUM_SHARDS
    for name in sorted(weights, key=lambda name: -weights[name].numel()):
        smallest = sizes.index(min(sizes))
        shards[smallest].append(name)
        sizes[smallest] += weights[name].numel()
    return shards


def read_shards(folder: Path) -> Saved:
    """What `write_shards` wrote.

    Raises:
        FileNotFoundError: a shard is missing.
    """
    weights: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for index in range(1, NUM_SHARDS + 1):
        with safe_open(folder / PATTERN.format(index=index, count=NUM_SHARDS), framework="pt") as file:
            metadata = dict(file.metadata())
            weights |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, no mapping
    text = json.loads(metadata["text"])
    layers = TextLayers(
        text["name"], text["hidden_size"], text["num_layers"], tuple(text["layers"]), text["max_length"]
    )
    shape = Shape(json.loads(metadata["section"]), layers, int(metadata["num_registers"]))
    return Saved(weights, shape, int(metadata["num_steps"]))
