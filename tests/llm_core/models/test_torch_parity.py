"""TorchModel computes what transformers computes, for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
