"""Tokenizers from GGUF: against `transformers` on the embedded model's vocabulary, against SentencePiece on a small one
trained here, and broken files."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from braid.errors import InvalidRequest, ModelFileError, UnsupportedModel
from braid.llm_core.text.tokenizer import Tokenizer, from_gguf

TEXTS = [
    "The capital of France is Paris.",
    "don't I'LL we've 'S it's",
    "1234567890 3.14159 a1b2 ١٢٣ ½ ² Ⅷ 一二三",
    "a  b   c\t\td\n\n\ne \n f\u00a0g\u3000h\u2028i",
    "   leading and trailing   ",
    "Привет, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี 漢字かな 한글",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 é 🙂🙂",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "for (int i = 0; i < n; ++i) { s += x[i] << 3; }",
    "",
]
MIXED = st.text(
    st.characters(codec="utf-8") | st.sampled_from("abcT 's019  \n\n\t\r.,<|>_é漢🙂\u0301٣½")
)


@pytest.fixture(scope="module")
def reference(smollm2_metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """What `transformers` makes of the same arrays with the pre-tokenizer of SmolLM2's own tokenizer.json."""
    tokens = smollm2_metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in smollm2_metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    types = smollm2_metadata["tokenizer.ggml.token_type"]
    marks = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in marks])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_get_the_ids_that_transformers_gives(
    smollm2: Tokenizer, reference: PreTrainedTokenizerFast, text: str
) -> None:
    ids = smollm2.encode(text, add_special_tokens=False)
    assert ids == reference.encode(text, add_special_tokens=False)
    for skip in (False, True):
        assert smollm2.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=500)
@given(text=MIXED)
def test_random_text_gets_the_ids_that_transformers_gives(
    smollm2: Tokenizer, reference: PreTrainedTokenizerFast, text: str
) -> None:
    assert smollm2.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False)


@settings(deadline=None, max_examples=500)
@given(ids=st.lists(st.integers(0, 49_151), max_size=12), skip=st.booleans())
def test_random_ids_decode_as_in_transformers(
    smollm2: Tokenizer, reference: PreTrainedTokenizerFast, ids: list[int], skip: bool
) -> None:
    assert smollm2.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


def test_the_embedded_models_marks_are_known(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49_152
    assert smollm2.bos_token_id == 1
    assert smollm2.eos_token_ids == (2, 0)
    assert smollm2.special_ids == frozenset(range(17))
    assert not smollm2.adds_bos
    assert smollm2.encode("hi", add_special_tokens=True) == smollm2.encode("hi", add_special_tokens=False)


def test_special_tokens_in_a_text_are_read_only_when_asked(smollm2: Tokenizer) -> None:
    text = "<|im_start|>x"
    parsed = smollm2.encode(text, add_special_tokens=False, parse_special=True)
    literal = smollm2.encode(text, add_special_tokens=False, parse_special=False)
    assert parsed[0] == 1
    assert not smollm2.special_ids & set(literal)
    assert smollm2.decode(literal, skip_special_tokens=True) == text


def test_threads_do_not_change_each_others_reading_of_special_tokens(smollm2: Tokenizer) -> None:
    wrong: list[list[int]] = []

    def encode(parse_special: bool) -> None:
        for _ in range(300):
            ids = smollm2.encode("<|im_start|>x", add_special_tokens=False, parse_special=parse_special)
            if (ids[0] == 1) != parse_special:
                wrong.append(ids)

    threads = [threading.Thread(target=encode, args=(parse,)) for parse in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_token_bytes_are_exact(smollm2: Tokenizer) -> None:
    (newline,) = smollm2.encode("\n", add_special_tokens=False)
    assert smollm2.token_bytes(newline) == b"\n"
    assert smollm2.token_bytes(2) == b"<|im_end|>"
    parrot = smollm2.encode("🦜", add_special_tokens=False)
    assert b"".join(map(smollm2.token_bytes, parrot)) == "🦜".encode()
    assert smollm2.token_text(parrot[0]) == "�"
    assert smollm2.token_bytes(60_000) == b""
    assert smollm2.token_bytes(-1) == b""


def test_half_a_surrogate_pair_is_refused_with_its_place(smollm2: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"'\\ud83e'.* at position 2"):
        smollm2.encode("ab\ud83ec", add_special_tokens=False)


def test_the_embedded_tokenizer_is_built_in_time(smollm2_metadata: dict[str, Any]) -> None:
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        from_gguf(smollm2_metadata)
        best = min(best, time.thread_time() - start)
    assert best < 0.4


def tiny_byte_level(**changes: Any) -> dict[str, Any]:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "a", "b", "Ġ", "ab", "Ġab", "1", "2", "12", "<tool>"],
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1, 1, 1, 4],
        "tokenizer.ggml.merges": ["a b", "Ġ ab", "1 2"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    metadata.update({f"tokenizer.ggml.{name}": value for name, value in changes.items()})
    return {name: value for name, value in metadata.items() if value is not None}


@pytest.mark.parametrize(
    ("pre", "ids"), [("gpt-2", [8, 5, 1]), ("smollm", [6, 7, 5, 1]), ("qwen2", [6, 7, 5, 1]), ("llama-bpe", [8, 5, 1])]
)
def test_pre_tokenizers_cut_digits_as_their_family_does(pre: str, ids: list[int]) -> None:
    assert from_gguf(tiny_byte_level(pre=pre)).encode("12 aba", add_special_tokens=False) == ids


def test_a_word_that_is_a_token_needs_no_merges_in_llama3() -> None:
    merges = ["a b"]
    assert from_gguf(tiny_byte_level(pre="llama-bpe", merges=merges)).encode(" ab", add_special_tokens=False) == [5]
    assert from_gguf(tiny_byte_level(pre="gpt-2", merges=merges)).encode(" ab", add_special_tokens=False) == [3, 4]


def test_user_defined_tokens_are_found_and_are_text() -> None:
    tokenizer = from_gguf(tiny_byte_level())
    for parse_special in (False, True):
        assert tokenizer.encode("a<tool>b", add_special_tokens=False, parse_special=parse_special) == [1, 9, 2]
    assert tokenizer.decode([1, 9, 2], skip_special_tokens=True) == "a<tool>b"


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    both = from_gguf(tiny_byte_level(add_bos_token=True, add_eos_token=True, eos_token_id=9))
    assert both.adds_bos
    assert both.encode("a", add_special_tokens=True) == [0, 1, 9]
    assert both.encode("a", add_special_tokens=False) == [1]
    assert from_gguf(tiny_byte_level(pre="llama-bpe")).adds_bos
    assert not from_gguf(tiny_byte_level(pre="llama-bpe", add_bos_token=False)).adds_bos
    assert not from_gguf(tiny_byte_level(pre="qwen2")).adds_bos


def test_all_ends_of_turn_end_a_generation() -> None:
    tokens = ["<|eot_id|>", "a", "<|eom_id|>", "<eos>", "<|im_end|>", "<end_of_turn>"]
    metadata = tiny_byte_level(
        tokens=tokens, token_type=[3, 1, 3, 3, 1, 3], merges=[], eos_token_id=3, eom_token_id=2, bos_token_id=None
    )
    assert from_gguf(metadata).eos_token_ids == (3, 2, 0, 5)  # token 4 only looks like one: it is ordinary text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "no tokenizer.ggml.model"),
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokens": []}, "tokens is empty"),
        ({"tokens": ["a", 3]}, "tokens must be an array of str"),
        ({"tokens": "abc"}, "tokens must be an array of str"),
        ({"tokens": ["a", "b", "a"], "token_type": None, "merges": []}, "'a' twice"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["a b", "b x"]}, "merge 1 joins 'b' and 'x', but 'x' is not a token"),
        ({"merges": ["b a"]}, "'ba' is not a token"),
        ({"merges": ["ab"]}, r"merges\[0\]='ab' must be two tokens"),
        ({"merges": ["a b c"]}, r"merges\[0\]='a b c' must be two tokens"),
        ({"token_type": [1, 1]}, "token_type has 2 entries for 10 tokens"),
        ({"bos_token_id": 10}, "bos_token_id=10 must be a token id, 0 to 9"),
        ({"eos_token_id": -1}, "eos_token_id=-1 must be a token id, 0 to 9"),
        ({"eot_token_id": "x"}, "eot_token_id='x' must be a token id"),
        ({"add_bos_token": "yes"}, "add_bos_token='yes' must be true or false"),
        ({"model": "llama", "scores": None}, "no tokenizer.ggml.scores"),
        ({"model": "llama", "scores": [0.0]}, "scores has 1 entries for 10 tokens"),
    ],
)
def test_broken_metadata_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_gguf(tiny_byte_level(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "tekken"}, "tokenizer.ggml.pre='tekken' is not supported; supported are default, gpt-2, smollm"),
        ({"model": "bert"}, "tokenizer.ggml.model='bert' is not supported; supported are gpt2, llama"),
    ],
)
def test_sound_files_of_other_kinds_are_refused_with_what_is_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        from_gguf(tiny_byte_level(**changes))
