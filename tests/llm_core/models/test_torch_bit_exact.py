"""A token's logits and hidden states are the same bits alone or among others, in any chunking of its prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.llm_core.models.torch_model import TorchModel

NAMES = ("llama-untied-llama3", "mistral", "qwen2", "qwen3", "gemma3")
LENGTH = 140
NUM_SEQUENCES = 4


@pytest.fixture(scope="module")
def model(tiny_model):
    """Builds the TorchModel of a name, once."""
    built = {}

    def build(name, dtype=torch.float32):
        if (name, dtype) not in built:
            tiny = tiny_model(name)
            built[name, dtype] = TorchModel(tiny.config, tiny.weights, dtype=dtype)
        return built[name, dtype]

    return build


def _texts():
    return np.random.default_rng(3).integers(0, 160, (NUM_SEQUENCES, LENGTH)).tolist()


def _one_by_one(model, runner):
    """Each token of each sequence alone, in calls of one token."""
    rows = {}
    for sequence, text in enumerate(_texts()):
        alone = runner(model)
        for position, token in enumerate(text):
            result = alone.step({0: [token]}, layers=_layers(model))
            rows[sequence, position] = _bits(result, 0)
    return rows


def _layers(model):
    return tuple(range(model.config.num_layers + 1))


def _bits(result, row):
    return result.logits[row].tobytes(), result.hidden_states[:, row].tobytes()


@pytest.fixture(scope="module")
def expected(model, runner):
    """The bits of every token when it is computed alone, by model and dtype."""
    known = {}

    def find(name, dtype=torch.float32):
        if (name, dtype) not in known:
            known[name, dtype] = _one_by_one(model(name, dtype), runner)
        return known[name, dtype]

    return find


def _run(model, runner, calls, seed):
    """Feed the sequences through `calls`, each a number of tokens for every sequence; yields every token's bits."""
    texts, done = _texts(), [0] * NUM_SEQUENCES
    shared = runner(model, seed=seed)
    for counts in calls:
        counts = [min(count, LENGTH - at) for count, at in zip(counts, done, strict=True)]
        chunks = {s: texts[s][done[s] : done[s] + count] for s, count in enumerate(counts) if count}
        if not chunks:
            continue
        result = shared.step(chunks, layers=_layers(model))
        row = 0
        for sequence, tokens in chunks.items():
            for _ in tokens:
                yield (sequence, done[sequence]), _bits(result, row)
                done[sequence] += 1
                row += 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    calls=st.lists(
        st.lists(st.one_of(st.integers(0, 3), st.integers(0, 100)), min_size=NUM_SEQUENCES, max_size=NUM_SEQUENCES),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 100),
)
def test_any_chunking_among_any_others_gives_the_same_bits(name, calls, seed, model, expected, runner):
    alone = expected(name)
    for key, bits in _run(model(name), runner, calls, seed):
        assert bits == alone[key], key


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_other_dtypes_give_the_same_bits(dtype, model, expected, runner):
    alone = expected("gemma3", dtype)
    for key, bits in _run(model("gemma3", dtype), runner, [(100, 1, 0, 7), (3, 1, 140, 50), (37, 99, 0, 1)], 1):
        assert bits == alone[key], key


def test_what_a_page_held_before_changes_nothing(model, expected, runner):
    """Pages start as NaN, and then hold another sequence's numbers."""
    model, alone = model("mistral"), expected("mistral")
    shared = runner(model)
    for sequence, text in enumerate(_texts()):
        result = shared.step({0: text[:90]}, layers=_layers(model))
        for row in (0, 31, 89):
            assert _bits(result, row) == alone[sequence, row]
        shared.release(0)
