from __future__ import annotations

from typing import Any

import pytest
import torch

from braid.diffusion.models.ltx2.text_encoder import TextEncoderSpec
from braid.diffusion.operations import (
    EncodePrompt,
    EncodeText,
    ProjectText,
    PromptEmbeds,
    RewritePrompt,
    TextHiddenStates,
)
from braid.diffusion.prompts import (
    MIN_REWRITTEN_TOKENS,
    LanguageModelFacts,
    PromptCache,
    cleaned,
    encode_prompt,
    encode_text,
    prompt_token_ids,
    rewrite_prompt,
    rewriting_token_ids,
)
from braid.errors import ContextLengthExceeded
from braid.llm_core.engine.messages import TextDelta
from braid.llm_core.memory.arena import Arena


class Letters:
    """A tokenizer: a letter is its code point; it may put its first token in front itself."""

    bos_token_id: int | None = 1

    def __init__(self, *, adds_bos: bool = True, does_it: bool = False) -> None:
        self.adds_bos = adds_bos
        self.does_it = does_it

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool = True) -> list[int]:
        return [1] * (self.does_it and add_special_tokens) + [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("tokenizer", "ids"),
    [
        (Letters(), (1, 97, 98)),
        (Letters(does_it=True), (1, 97, 98)),  # never two
        (Letters(adds_bos=False), (97, 98)),
    ],
)
def test_a_prompt_is_stripped_and_begins_with_one_first_token(tokenizer: Any, ids: tuple[int, ...]) -> None:
    assert prompt_token_ids("  ab\n", tokenizer, 8) == ids


def test_a_long_prompt_is_cut_at_its_end() -> None:
    tokenizer: Any = Letters()
    assert prompt_token_ids("abcdef", tokenizer, 4) == (1, 97, 98, 99)


def test_the_language_model_is_asked_for_what_the_checkpoint_names() -> None:
    tokenizer: Any = Letters()
    delegate = encode_text(TextEncoderSpec("toy", 4, (0, 2), max_length=8), tokenizer)
    params = delegate.params(EncodeText("ab"), "id")
    assert (params.prompt_token_ids, params.layers, params.length, params.padding_side) == (
        ((1, 97, 98),), (0, 2), 8, "left",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "clean"),
    [
        ("\u201cA fox\u201d \u2014 it\u2019s red\u2026", 'A fox" - it\'s red...'),
        ("1. ** A\u00a0fox", "A fox"),
        ("\u72d0\u72f8 runs ", "\u72d0\u72f8 runs"),
        ("  ", ""),
    ],
)
def test_an_answer_is_cleaned_of_what_is_no_prompt(said: str, clean: str) -> None:
    assert cleaned(said) == clean


def test_a_rewritten_prompt_is_the_whole_answer() -> None:
    tokenizer: Any = Letters()
    delegate = rewrite_prompt(LanguageModelFacts(tokenizer, None, 2_000))
    params = delegate.params(RewritePrompt("a fox", -3), "id")
    assert (params.seed, params.max_new_tokens, params.sampling.temperature) == (3, 512, 0.7)
    assert bytes(params.prompt_token_ids).endswith(b"user prompt: a fox\n")
    assert delegate.result([TextDelta("id", 0, "- A "), TextDelta("id", 0, "fox")]) == "A fox"


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_with_the_numbers() -> None:
    tokenizer: Any = Letters()
    language = LanguageModelFacts(tokenizer, None, 1_000)
    longest = "a" * (1_000 - MIN_REWRITTEN_TOKENS - len(rewriting_token_ids("", language)))
    delegate = rewrite_prompt(language)
    assert delegate.params(RewritePrompt(longest, 1), "id").max_new_tokens == MIN_REWRITTEN_TOKENS
    with pytest.raises(ContextLengthExceeded, match=r"is 801 tokens.* context is 1000; shorten the prompt by 1 token"):
        delegate.params(RewritePrompt(longest + "a", 1), "id")


def embeds(value: float) -> PromptEmbeds:
    return PromptEmbeds(torch.full((1, 4, 8), value), None)


def test_a_prompt_is_encoded_once_while_there_is_room() -> None:
    arena = Arena(1_000)
    cache = PromptCache(arena)
    text = TextHiddenStates(torch.zeros(1), torch.zeros(1))
    encoding = encode_prompt(EncodePrompt("a"), cache)
    assert next(encoding) == EncodeText("a")
    assert isinstance(encoding.send(text), ProjectText)
    with pytest.raises(StopIteration) as stop:
        encoding.send(embeds(1.0))
    with pytest.raises(StopIteration) as again:
        next(encode_prompt(EncodePrompt("a"), cache))
    assert again.value.value is stop.value.value
    assert arena.usage().by_kind == {"prompt embeds": 128}
    cache.close()
    assert arena.usage().by_kind == {}


def test_prompt_embeds_yield_to_whoever_needs_the_memory_the_oldest_first() -> None:
    arena = Arena(400)
    cache = PromptCache(arena)
    for name in "abcd":  # the fourth finds no room, and asks nobody for it
        cache.keep(name, embeds(1.0))
    assert [cache.find(name) is not None for name in "abcd"] == [True, True, True, False]
    cache.find("a")
    arena.lease("a film", 200, kind="workspace")
    assert [cache.find(name) is not None for name in "abc"] == [True, False, False]
