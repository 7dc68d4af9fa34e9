"""TorchModel on a GPU: transformers' numbers in float32, close ones in bfloat16, and the same bits in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from braid.llm_core.models.torch_model import TorchModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
NAMES = ("llama-untied-llama3", "mistral", "qwen2", "qwen3", "gemma3")
LENGTH = 150
DTYPES = (torch.float32, torch.bfloat16)


def _tokens(seed):
    return np.random.default_rng(seed).integers(0, 160, LENGTH).tolist()


def _model(tiny, dtype):
    return TorchModel(tiny.config, tiny.weights, device="cuda", dtype=dtype)


def _layers(model):
    return tuple(range(model.config.num_layers + 1))


@pytest.mark.parametrize("name", NAMES)
def test_float32_has_the_logits_and_hidden_states_of_transformers(name, tiny_model, runner):
    tiny = tiny_model(name)
    with torch.no_grad():
        expected = tiny.reference(torch.tensor([_tokens(0)]), output_hidden_states=True)
    model = _model(tiny, torch.float32)
    result = runner(model, device="cuda").step({0: _tokens(0)}, layers=_layers(model))
    assert result.logits.is_cuda
    assert (result.logits.cpu() - expected.logits[0]).abs().max() < 1e-4
    for layer, hidden in enumerate(result.hidden_states.cpu()):
        assert (hidden - expected.hidden_states[layer][0]).abs().max() < 1e-4, layer


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_the_default_and_close_to_float32(name, tiny_model, runner):
    tiny = tiny_model(name)
    model = _model(tiny, None)
    assert model.dtype == torch.bfloat16
    logits = runner(model, device="cuda").step({0: _tokens(0)}).logits.cpu()
    with torch.no_grad():
        expected = tiny.reference(torch.tensor([_tokens(0)])).logits[0]
    error = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.median() < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_company_change_no_bit(name, dtype, tiny_model, runner):
    model = _model(tiny_model(name), dtype)
    whole = runner(model, device="cuda").step({0: _tokens(0)}, layers=_layers(model))
    logits, hidden = whole.logits.clone(), whole.hidden_states.clone()
    shared = runner(model, seed=2, device="cuda")
    start = 0
    for count, others in ((1, 3), (40, 100), (1, 1), (17, 1), (64, 20), (1, 0), (26, 10)):
        company = {1: _tokens(1)[:others], 2: [7]} if others else {}
        result = shared.step({0: _tokens(0)[start : start + count], **company}, layers=_layers(model))
        assert torch.equal(result.logits[:count], logits[start : start + count])
        assert torch.equal(result.hidden_states[:, :count], hidden[:, start : start + count])
        start += count
    assert start == LENGTH
