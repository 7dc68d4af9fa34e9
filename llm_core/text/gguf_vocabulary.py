"""The vocabulary in a GGUF file's metadata: `tokenizer.ggml.*`.

It knows two kinds: `gpt2`, byte-level BPE with explicit merges, and `llama`, SentencePiece BPE with scores. The arrays
come from a file that anybody may have written, so each claim they make about each other is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.text.bpe_backend import (
    TokenType,
    add_marks,
    byte_level_backend,
    sentencepiece_backend,
    sentencepiece_token_bytes,
)
from braid.llm_core.text.pre_tokenizers import BYTE_LEVEL_RULES, ByteLevelRules
from braid.llm_core.text.vocabulary import Vocabulary, byte_level_bytes

KINDS = ("gpt2", "llama")

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
"""Control tokens that end a generation by their name. Files often declare only one of the two or three that their
model writes: Llama 3's `<|eot_id|>` beside `<|end_of_text|>`, Gemma's `<end_of_turn>` beside `<eos>`."""


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Build a vocabulary. Raises ModelFileError (broken values) or UnsupportedModel (sound, but not ours)."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise ModelFileError("the file has no tokenizer.ggml.model: it holds no tokenizer")
    if kind == "gpt2":
        return _byte_level(metadata)
    if kind == "llama":
        return _sentencepiece(metadata)
    raise UnsupportedModel(f"tokenizer.ggml.model={kind!r} is not supported; supported are {', '.join(KINDS)}")


def _byte_level(metadata: Mapping[str, Any]) -> Vocabulary:
    rules = _byte_level_rules(metadata)
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    backend = byte_level_backend(tokens, _merges(metadata), rules)
    spelled = (TokenType.NORMAL, TokenType.UNUSED)
    token_bytes = tuple(
        byte_level_bytes(token) if kind in spelled else token.encode()
        for token, kind in zip(tokens, types, strict=True)
    )
    return _vocabulary(metadata, backend, tokens, types, token_bytes, adds_bos=rules.adds_bos)


def _byte_level_rules(metadata: Mapping[str, Any]) -> ByteLevelRules:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in BYTE_LEVEL_RULES:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre={name!r} is not supported; supported are {', '.join(BYTE_LEVEL_RULES)}"
        )
    return BYTE_LEVEL_RULES[name]


def _sentencepiece(metadata: Mapping[str, Any]) -> Vocabulary:
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    scores = _array(metadata, "scores", (float, int), length=len(tokens))
    adds_space = _flag(metadata, "add_space_prefix", default=True)
    backend = sentencepiece_backend(tokens, types, scores, adds_space=adds_space)
    token_bytes = sentencepiece_token_bytes(tokens, types)
    return _vocabulary(metadata, backend, tokens, types, token_bytes, adds_bos=True, strips_leading_space=adds_space)


def _vocabulary(
    metadata: Mapping[str, Any],
    backend: tokenizers.Tokenizer,
    tokens: list[str],
    types: list[int],
    token_bytes: tuple[bytes, ...],
    *,
    adds_bos: bool,
    strips_leading_space: bool = False,
) -> Vocabulary:
    bos = _token_id(metadata, "bos_token_id", len(tokens))
    eos = _token_id(metadata, "eos_token_id", len(tokens))
    eos_ids = _eos_ids(metadata, tokens, types, eos)
    special_ids = frozenset(
        {i for i, kind in enumerate(types) if kind in (TokenType.CONTROL, TokenType.UNKNOWN)}
        | set(eos_ids) | ({bos} if bos is not None else set())
    )
    add_marks(backend, tokens, special_ids, [i for i, kind in enumerate(types) if kind == TokenType.USER_DEFINED])
    adds_bos = _flag(metadata, "add_bos_token", default=adds_bos) and bos is not None
    adds_eos = _flag(metadata, "add_eos_token", default=False) and eos is not None
    return Vocabulary(
        backend=backend,
        token_bytes=token_bytes,
        special_ids=special_ids,
        bos_token_id=bos,
        eos_token_ids=eos_ids,
        prefix_ids=(bos,) if adds_bos and bos is not None else (),
        suffix_ids=(eos,) if adds_eos and eos is not None else (),
        strips_leading_space=strips_leading_space,
    )


def _eos_ids(metadata: Mapping[str, Any], tokens: list[str], types: list[int], eos: int | None) -> tuple[int, ...]:
    declared = [eos, *(_token_id(metadata, f"{name}_token_id", len(tokens)) for name in ("eot", "eom"))]
    by_name = [i for i, kind in enumerate(types) if kind == TokenType.CONTROL and tokens[i] in END_OF_TURN]
    return tuple(dict.fromkeys(i for i in [*declared, *by_name] if i is not None))


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _array(metadata, "tokens", (str,))
    if not tokens:
        raise ModelFileError("tokenizer.ggml.tokens is empty")
    return tokens


def _types(metadata: Mapping[str, Any], num_tokens: int) -> list[int]:
    if "tokenizer.ggml.token_type" not in metadata:
        return [TokenType.NORMAL] * num_tokens
    return _array(metadata, "token_type", (int,), length=num_tokens)


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_array(metadata, "merges", (str,))):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise ModelFileError(f"tokenizer.ggml.merges[{number}]={line!r} must be two tokens with one space between")
        merges.append((left, right))
    return merges


def _array(metadata: Mapping[str, Any], name: str, types: tuple[type, ...], length: int | None = None) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise ModelFileError(f"the file has no {key}")
    values = metadata[key]
    if not isinstance(values, list | tuple) or not set(map(type, values)) <= set(types):
        raise ModelFileError(f"{key} must be an array of {types[0].__name__}")
    if length is not None and len(values) != length:
        raise ModelFileError(f"{key} has {len(values)} entries for {length} tokens")
    return list(values)


def _token_id(metadata: Mapping[str, Any], name: str, num_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < num_tokens:
        raise ModelFileError(f"tokenizer.ggml.{name}={value!r} must be a token id, 0 to {num_tokens - 1}")
    return value


def _flag(metadata: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if value not in (True, False):
        raise ModelFileError(f"tokenizer.ggml.{name}={value!r} must be true or false")
    return bool(value)
