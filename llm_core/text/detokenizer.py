"""Token ids to text, one id at a time, without ever cutting a character in two."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from braid.llm_core.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Gives out a completion's text as its tokens come.

    What all `push`es and `flush` give, joined, is what `Tokenizer.decode` makes of prompt and completion together, less
    the prompt's part. A prompt that ends inside a character leaves that character to the completion.
    """

    __slots__ = ("_at_start", "_pending", "_table")

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._table = tokenizer.byte_table(skip_special_tokens=skip_special_tokens)
        tail = self._last_bytes(prompt_token_ids)
        self._at_start = tokenizer.strips_leading_space and not tail
        self._pending = tail[codecs.utf_8_decode(tail, "replace", False)[1] :]

    def push(self, token_id: int) -> str:
        """The text that is certain once this token is known; empty while a character is incomplete."""
        try:
            data = self._table[token_id]
        except IndexError:  # a row of the model's embedding beyond its vocabulary: no text
            return ""
        if self._pending:
            data = self._pending + data
        elif self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[num_used:]
        return text

    def flush(self) -> str:
        """What is still held back, as it will never be completed: U+FFFD for an unfinished character."""
        text = self._pending.decode(errors="replace")
        self._pending = b""
        return text

    def _last_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The last three bytes or more: as far as an unfinished character can reach back."""
        tail = b""
        for token_id in reversed(token_ids):
            tail = (self._table[token_id] if token_id < len(self._table) else b"") + tail
            if len(tail) >= 3:
                break
        return tail
