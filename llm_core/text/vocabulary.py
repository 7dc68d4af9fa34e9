"""What a tokenizer is made of, however its file was written.

The readers (`gguf_vocabulary`, `folder_vocabulary`) build a `Vocabulary`; `Tokenizer` runs one. A token has two texts:
the way the file spells it (`Ġthe`, `▁the`, `<0x0A>`) and the exact bytes it stands for.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import tokenizers

SPIECE_SPACE = "▁"
"""How SentencePiece spells a space."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece spells a token that is one raw byte."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All that `Tokenizer` needs to know.

    `backend` splits text and merges; it adds no special tokens of its own: `prefix_ids` and `suffix_ids` do.
    """

    backend: tokenizers.Tokenizer
    token_bytes: tuple[bytes, ...]
    """By token id. Ids that the file leaves out have no bytes."""
    special_ids: frozenset[int]
    """Tokens that are marks and not text: left out by `skip_special_tokens`."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Any of them ends a generation."""
    prefix_ids: tuple[int, ...] = ()
    """Put in front of a text when special tokens are asked for."""
    suffix_ids: tuple[int, ...] = ()
    strips_leading_space: bool = False
    """Encoding puts a space in front of a text, so decoding takes one away."""


class _Alphabet(dict[int, int]):
    """A translation table whose unknown characters become one that latin-1 cannot encode."""

    def __missing__(self, codepoint: int) -> int:
        return 0xFFFF


@functools.cache
def _byte_alphabet() -> _Alphabet:
    """GPT-2's spelling of bytes: printable latin-1 characters stand for themselves, the others, in order, for
    U+0100 and on. Source: Radford et al. 2019, the byte-level vocabulary of GPT-2."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return _Alphabet({**{byte: byte for byte in printable}, **{0x100 + i: byte for i, byte in enumerate(others)}})


def byte_level_bytes(text: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; a token outside its alphabet is taken as it is written."""
    try:
        return text.translate(_byte_alphabet()).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def sentencepiece_bytes(text: str) -> bytes:
    """The bytes of a token of a SentencePiece vocabulary: `<0x0A>` is a byte, `▁` a space."""
    if match := BYTE_TOKEN.fullmatch(text):
        return bytes([int(match[1], 16)])
    return text.replace(SPIECE_SPACE, " ").encode()
