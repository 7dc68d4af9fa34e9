from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.llm_core.text.detokenizer import IncrementalDetokenizer
from braid.llm_core.text.tokenizer import Tokenizer

MULTILINGUAL = st.text(
    # SmolLM2 has no tokens for the bytes of some control characters and of what lies beyond U+3FFFF.
    st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x3FFFF)
    | st.sampled_from("né漢字한글ñ🙂👩‍👩‍👧שלום  \n\t\u0301\U0001f3fd")
)


def detokenize(tokenizer: Tokenizer, prompt: list[int], ids: list[int], *, skip: bool) -> tuple[str, str]:
    """The pushed text, and the flushed."""
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return "".join(detokenizer.push(i) for i in ids), detokenizer.flush()


@settings(deadline=None, max_examples=400)
@given(ids=st.lists(st.integers(0, 49_151), max_size=20), skip=st.booleans())
def test_random_tokens_come_out_as_decode_gives_them(smollm2: Tokenizer, ids: list[int], skip: bool) -> None:
    pushed, flushed = detokenize(smollm2, [], ids, skip=skip)
    assert pushed + flushed == smollm2.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=400)
@given(data=st.binary(max_size=24), cut=st.integers(0, 24))
def test_random_bytes_come_out_as_decode_gives_them(smollm2: Tokenizer, data: bytes, cut: int) -> None:
    by_byte = {smollm2.token_bytes(i): i for i in reversed(range(smollm2.vocab_size))}
    ids = [by_byte[bytes([byte])] for byte in data if bytes([byte]) in by_byte]
    pushed, flushed = detokenize(smollm2, ids[:cut], ids[cut:], skip=False)
    whole, prompt = smollm2.decode(ids, skip_special_tokens=False), smollm2.decode(ids[:cut], skip_special_tokens=False)
    if not prompt.endswith("�"):
        assert prompt + pushed + flushed == whole
    assert whole.endswith(pushed + flushed)


@settings(deadline=None, max_examples=200)
@given(text=MULTILINGUAL, cut=st.integers(0, 40))
def test_a_completion_is_what_the_prompt_leaves(smollm2: Tokenizer, text: str, cut: int) -> None:
    ids = smollm2.encode(text, add_special_tokens=False, parse_special=False)
    pushed, flushed = detokenize(smollm2, ids[:cut], ids[cut:], skip=True)
    assert flushed == ""
    assert text.endswith(pushed)
    prompt = smollm2.decode(ids[:cut], skip_special_tokens=True)
    if not prompt.endswith("\ufffd"):
        assert prompt + pushed == text


def test_a_character_of_several_tokens_comes_whole(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🦜", add_special_tokens=False)
    assert len(ids) > 1
    detokenizer = IncrementalDetokenizer(smollm2, [], skip_special_tokens=True)
    assert [detokenizer.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🦜"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_is_flushed_as_one_mark(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🦜", add_special_tokens=False)[:-1]
    assert detokenize(smollm2, [], ids, skip=True) == ("", "�")


def test_a_token_beyond_the_vocabulary_has_no_text(smollm2: Tokenizer) -> None:
    assert detokenize(smollm2, [60_000], [60_000, 19556], skip=True) == (smollm2.token_text(19556), "")


def test_special_tokens_are_left_out_when_asked(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("<|im_start|>user", add_special_tokens=False)
    assert detokenize(smollm2, [], ids, skip=True)[0] == "user"
    assert detokenize(smollm2, [], ids, skip=False)[0] == "<|im_start|>user"


@pytest.mark.parametrize("prompt_length", [0, 100_000])
def test_a_plain_token_takes_microseconds_whatever_the_prompt(smollm2: Tokenizer, prompt_length: int) -> None:
    ids = smollm2.encode("The sea is wide and the ship is small. " * 100, add_special_tokens=False)
    best_us = float("inf")
    for _ in range(5):
        start = time.thread_time()
        detokenizer = IncrementalDetokenizer(smollm2, [ids[0]] * prompt_length, skip_special_tokens=True)
        for i in ids:
            detokenizer.push(i)
        best_us = min(best_us, (time.thread_time() - start) / len(ids) * 1e6)
    assert best_us < 3
