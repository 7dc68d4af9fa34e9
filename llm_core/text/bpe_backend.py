"""Backends of the `tokenizers` library from plain arrays: tokens, their types, and merges or scores."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, normalizers

from braid.errors import ModelFileError
from braid.llm_core.text.pre_tokenizers import ByteLevelRules
from braid.llm_core.text.sentencepiece_merges import merges_from_scores
from braid.llm_core.text.vocabulary import BYTE_TOKEN, SPIECE_SPACE, sentencepiece_bytes


class TokenType(enum.IntEnum):
    """What a token is for. GGUF and SentencePiece count them alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def byte_level_backend(
    tokens: Sequence[str], merges: list[tuple[str, str]], rules: ByteLevelRules
) -> tokenizers.Tokenizer:
    """A backend for byte-level BPE. Raises ModelFileError, as `sentencepiece_backend`."""
    backend = _backend(tokens, merges, ignore_merges=rules.ignores_merges)
    backend.pre_tokenizer = rules.pre_tokenizer()
    if rules.normalizer is not None:
        backend.normalizer = rules.normalizer()
    return backend


def sentencepiece_backend(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], *, adds_space: bool
) -> tokenizers.Tokenizer:
    """A backend that merges as SentencePiece's BPE does: by score, and characters it lacks as bytes."""
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    pieces = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    mergeable = [i for i, kind in enumerate(types) if kind in pieces]
    merges = merges_from_scores(tokens, scores, mergeable)
    backend = _backend(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_has_all_bytes(tokens))
    space = normalizers.Replace(" ", SPIECE_SPACE)
    prefix = [normalizers.Prepend(SPIECE_SPACE)] if adds_space else []
    backend.normalizer = normalizers.Sequence([*prefix, space])
    return backend


def _has_all_bytes(tokens: Sequence[str]) -> bool:
    return sum(BYTE_TOKEN.fullmatch(token) is not None for token in tokens) == 256


def _backend(
    tokens: Sequence[str], merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    """BPE over checked tokens and merges. Raises ModelFileError for tokens named twice or merges of no token."""
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise ModelFileError(f"tokenizer.ggml.tokens holds {twice!r} twice; each token must have one id")
    for number, (left, right) in enumerate(merges):
        if left not in ids or right not in ids or left + right not in ids:
            unknown = next(token for token in (left, right, left + right) if token not in ids)
            raise ModelFileError(f"merge {number} joins {left!r} and {right!r}, but {unknown!r} is not a token")
    return tokenizers.Tokenizer(models.BPE(ids, merges, **options))


def add_marks(
    backend: tokenizers.Tokenizer, tokens: Sequence[str], special_ids: frozenset[int], user_defined: Sequence[int]
) -> None:
    """Make the backend find these tokens in a text before it cuts it into words."""
    backend.add_special_tokens(
        [AddedToken(tokens[i], special=True, normalized=False) for i in sorted(special_ids) if tokens[i]]
    )
    backend.add_tokens(
        [AddedToken(tokens[i], special=False, normalized=False) for i in user_defined
         if i not in special_ids and tokens[i]]
    )


def sentencepiece_token_bytes(tokens: Sequence[str], types: Sequence[int]) -> tuple[bytes, ...]:
    """The bytes of each token; marks (control, unknown) stand for their names."""
    marks = (TokenType.CONTROL, TokenType.UNKNOWN)
    return tuple(
        token.encode() if kind in marks else sentencepiece_bytes(token)
        for token, kind in zip(tokens, types, strict=True)
    )
