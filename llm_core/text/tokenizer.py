"""Text to token ids and back. It does not know chat: `chat_template` writes a conversation as one text first."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from braid.errors import InvalidRequest
from braid.llm_core.text.folder_vocabulary import read_folder_vocabulary
from braid.llm_core.text.gguf_vocabulary import read_gguf_vocabulary
from braid.llm_core.text.vocabulary import Vocabulary


class Tokenizer:
    """The tokenizer of one checkpoint; safe to use from several threads.

    Decoding joins the exact bytes of the tokens and reads them as UTF-8: each maximal broken piece becomes one U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._backend = vocabulary.backend
        self._backend_lock = threading.Lock()
        self._printed_bytes = tuple(
            b"" if i in vocabulary.special_ids else data for i, data in enumerate(vocabulary.token_bytes)
        )

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id. A model may have more rows than that; they have no text."""
        return len(self._vocabulary.token_bytes)

    @property
    def bos_token_id(self) -> int | None:
        return self._vocabulary.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._vocabulary.eos_token_ids

    @property
    def special_ids(self) -> frozenset[int]:
        return self._vocabulary.special_ids

    @property
    def adds_bos(self) -> bool:
        """Whether `encode(..., add_special_tokens=True)` starts with the BOS token."""
        return self.bos_token_id is not None and self._vocabulary.prefix_ids[:1] == (self.bos_token_id,)

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops a space at the very start of a text, because encoding put one there."""
        return self._vocabulary.strips_leading_space

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool = True) -> list[int]:
        """Turn text into token ids.

        Args:
            add_special_tokens: put BOS in front (and EOS behind) if the model was trained so. Not for the output of a
                chat template, which writes its own.
            parse_special: read `<|im_end|>` in the text as that token. True is what `transformers` does, for plain
                prompts as for templates, and templates need it: so a user's message can write such tokens too. False
                reads them as plain characters, for callers that must take a text literally.
        """
        with self._backend_lock:
            self._backend.encode_special_tokens = not parse_special  # a switch of the backend, not of one call
            try:
                ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            except (TypeError, UnicodeEncodeError) as error:
                raise _not_unicode(text) from error
        if add_special_tokens:
            return [*self._vocabulary.prefix_ids, *ids, *self._vocabulary.suffix_ids]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Turn token ids into text; broken UTF-8 becomes U+FFFD."""
        table = self.byte_table(skip_special_tokens=skip_special_tokens)
        data = b"".join([table[i] if i < len(table) else b"" for i in ids])
        if self.strips_leading_space and data.startswith(b" "):
            data = data[1:]
        return data.decode(errors="replace")

    def byte_table(self, *, skip_special_tokens: bool) -> tuple[bytes, ...]:
        """What each token id adds to a text, in bytes; nothing for special tokens if they are skipped."""
        return self._printed_bytes if skip_special_tokens else self._vocabulary.token_bytes

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token, with its leading space; a special token's are its name's."""
        table = self._vocabulary.token_bytes
        return table[token_id] if 0 <= token_id < len(table) else b""

    def token_text(self, token_id: int) -> str:
        """A token for people's eyes: its bytes as text, U+FFFD for what is not UTF-8 alone."""
        return self.token_bytes(token_id).decode(errors="replace")


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in a GGUF file's `tokenizer.ggml.*` values.

    Raises:
        ModelFileError: values are missing or contradict each other.
        UnsupportedModel: a kind of tokenizer, or a pre-tokenizer, that is not one of ours.
    """
    return Tokenizer(read_gguf_vocabulary(metadata))


def from_folder(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or tokenizer.model with the sentencepiece package.

    Raises: as `from_gguf`.
    """
    return Tokenizer(read_folder_vocabulary(path))


def _not_unicode(text: str) -> InvalidRequest:
    at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), 0)
    return InvalidRequest(f"the text has half a surrogate pair ({text[at : at + 1]!a}) at position {at}; "
                          "it must be valid Unicode")
