"""Tiny autoencoders, a tiny language model in a compact file, and pools of a few clips made with them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from braid.llm_core.loading.weights import StorageType
from braid.llm_core.models.config import ModelConfig
from braid.tests.training.autoencoders.toy_recipe import toy_recipe
from braid.training.autoencoders.run import Run
from braid.training.denoiser.compact_language_model import CompactLanguageModel, words_of, write_compact
from braid.training.denoiser.configs import Shape, TextLayers, transformer_section
from braid.training.denoiser.latent_pools import LatentEncoder, Pool, PoolPlan, make_pool
from braid.training.denoiser.material import Material
from braid.training.world.captions import caption
from braid.training.world.scene import sample_scene
from braid.training.world.vocabulary import STYLES

CPU = torch.device("cpu")
TEXT = TextLayers(hidden_size=16, num_layers=3, layers=(0, 1, 2), max_length=128)
SHAPE = Shape(
    transformer_section(num_heads=2, head_dims=(12, 8), num_layers=2, num_connector_layers=1, channels=(8, 128)),
    TEXT, num_registers=32,
)  # fmt: skip
CONFIG = ModelConfig("llama", 1000, 16, 24, 3, 2, 1, 8, 256, rope_interleaved=True)


class Stored(dict[str, Any]):
    """Random float32 weights of a language model."""

    def __missing__(self, name: str) -> Any:
        generator = torch.Generator().manual_seed(len(self))
        numbers = torch.randn(_shape(name), generator=generator) * 0.2
        self[name] = SimpleNamespace(storage=StorageType.F32, raw=lambda: numbers.view(torch.uint8))
        return self[name]


def _shape(name: str) -> tuple[int, int]:
    if "embed" in name:
        return 1000, 16
    if "layernorm" in name:
        return 1, 16
    shapes = {"q_proj": (16, 16), "o_proj": (16, 16), "gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24)}
    return shapes.get(name.split(".")[-2], (8, 16))


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model's file."""
    rng = random.Random(5)
    scenes = [sample_scene(rng, held_out=number % 2 == 0) for number in range(3000)]
    scenes += [sample_scene(rng, style=style) for style in STYLES for _ in range(100)]
    words = sorted({word for scene in scenes for word in words_of(caption(scene, rng))})
    path = tmp_path_factory.mktemp("language") / "captions.safetensors"
    write_compact(path, CONFIG, Stored(), {word: [7 + index] for index, word in enumerate(words)}, TEXT)
    return path


@pytest.fixture(scope="session")
def language_model(captions: Path) -> CompactLanguageModel:
    return CompactLanguageModel(captions, CPU, dtype=torch.float32)


@pytest.fixture(scope="session")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("autoencoders")
    Run(dataclasses.replace(toy_recipe()), out, CPU).save()
    return out


@pytest.fixture(scope="session")
def material(autoencoders: Path, language_model: CompactLanguageModel) -> Material:
    pool = make_pool(PoolPlan(16, 17, 3), LatentEncoder(autoencoders, CPU), language_model.words, random.Random(1))
    return Material(language_model, {(16, 17): pool})


@pytest.fixture(scope="session")
def pools(material: Material) -> Mapping[tuple[int, int], Pool]:
    return material.pools
