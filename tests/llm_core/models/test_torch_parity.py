"""TorchModel computes what transformers computes, for every architecture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from braid.errors import ModelFileError
from braid.kernels.ops import Ops, reference_registry
from braid.kernels.registry import Kernel
from braid.llm_core.models.model import ForwardBatch
from braid.llm_core.models.torch_model import TorchModel

NAMES = ("llama", "llama-untied-llama3", "llama-linear", "mistral", "qwen2", "qwen3", "gemma3")
LENGTHS = (1, 17, 63, 150)


def _tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 160, length).tolist()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_every_hidden_state_are_those_of_transformers(name, length, tiny_model, runner):
    tiny = tiny_model(name)
    tokens = _tokens(length)
    with torch.no_grad():
        expected = tiny.reference(torch.tensor([tokens]), output_hidden_states=True)
    model = TorchModel(tiny.config, tiny.weights)
    layers = tuple(range(tiny.config.num_layers + 1))
    result = runner(model).step({0: tokens}, layers=layers)
    assert result.logits.dtype == np.float32
    assert result.hidden_states.shape == (len(layers), length, tiny.config.hidden_size)
    assert np.abs(result.logits - expected.logits[0].numpy()).max() < 1e-4
    for layer in layers:
        assert np.abs(result.hidden_states[layer] - expected.hidden_states[layer][0].numpy()).max() < 1e-4, layer
    assert np.abs(expected.logits.numpy()).max() > 1


@pytest.mark.parametrize(("name", "gate"), [("qwen3", "silu_mul"), ("gemma3", "gelu_tanh_mul")])
def test_norms_gates_and_rotations_are_called_through_ops(name, gate, tiny_model, runner):
    """Each is replaced in turn by one that gives NaN, and described under its backend's name."""
    tiny = tiny_model(name)
    for op in ("rms_norm", "rope", gate):
        registry = reference_registry()
        registry.add(Kernel(op, "broken", lambda x, *_: torch.full_like(x.float(), torch.nan), priority=1))
        model = TorchModel(tiny.config, tiny.weights, ops=Ops(registry=registry))
        assert np.isnan(runner(model).step({0: _tokens(3)}).logits).all(), op
        described = model.describe()["kernels"]
        assert [part for part, backend in described.items() if backend == "broken"] == [op]


def test_an_empty_batch_and_unwanted_logits_give_no_rows(tiny_model, runner):
    model = TorchModel(tiny_model("llama").config, tiny_model("llama").weights)
    empty = np.zeros(0, np.int32)
    no_tokens = ForwardBatch(empty, empty, empty, np.zeros((0, 1), np.int32), empty)
    assert model.forward(no_tokens, runner(model).slabs).logits.shape == (0, 160)
    one = np.zeros(1, np.int32)
    result = model.forward(ForwardBatch(one, one, one, np.zeros((1, 1), np.int32), empty), runner(model).slabs)
    assert result.logits.shape == (0, 160)
    assert result.hidden_states is None


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tiny_model):
    tiny = tiny_model("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = tiny.weights.tensors | {name: torch.zeros(3, 5)}
    with pytest.raises(ModelFileError, match=rf"{name} has shape \(3, 5\); the configuration needs \(96, 136\)"):
        TorchModel(tiny.config, type(tiny.weights)(tensors))


def test_interleaved_pairs_are_the_same_model(tiny_model, runner):
    """llama.cpp stores q and k rows in the other order; the rotation must follow."""
    tiny = tiny_model("qwen3")
    config, tensors = tiny.config, dict(tiny.weights.tensors)
    for name, tensor in tensors.items():
        if ".q_" in name or ".k_" in name:
            halves = tensor.reshape(-1, 2, config.head_dim // 2, *tensor.shape[1:])
            tensors[name] = halves.transpose(1, 2).reshape(tensor.shape)
    interleaved = dataclasses.replace(config, rope_interleaved=True)
    expected = runner(TorchModel(config, tiny.weights)).step({0: _tokens(40)}).logits
    result = runner(TorchModel(interleaved, type(tiny.weights)(tensors))).step({0: _tokens(40)}).logits
    np.testing.assert_allclose(result, expected, atol=1e-5)
