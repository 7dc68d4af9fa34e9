"""How much a chat template may cost, and what its operations would cost.

Sizes are estimated in characters before anything is built, never below the truth for what Jinja lets a template do with
strings, lists and numbers. Anything else is stopped by the time limit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

MAX_CPU_S = 1.0
"""Of the rendering thread. A conversation of 5,000 messages takes a tenth of it."""
MAX_TEXT = 16_000_000
"""Characters of one string: beyond any context."""
MAX_TOTAL = 512_000_000
"""Characters of all strings ever built in one rendering."""
ELEMENT_SIZE = 16
"""What one element of a list or object counts as, besides its text."""


class TemplateTooCostlyError(Exception):
    """A template used up its budget of time or of text."""


class RenderBudget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + MAX_CPU_S
        self._total = 0

    def tick(self) -> None:
        """Before each loop step and call. Raises TemplateTooCostlyError when time is up."""
        if time.thread_time() > self._deadline:
            raise TemplateTooCostlyError(f"it ran for more than {MAX_CPU_S:g} s")

    def grow(self, num_characters: int) -> None:
        """Before something of this size is built. Raises TemplateTooCostlyError if it is too long."""
        self.tick()
        self._total += num_characters
        if num_characters > MAX_TEXT or self._total > MAX_TOTAL:
            raise TemplateTooCostlyError(f"it builds texts of more than {MAX_TEXT:,} characters")


def operation_size(operator: str, left: Any, right: Any) -> int:
    """An upper bound for the length of `left operator right`."""
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
    if operator == "+":
        return _length(left) + _length(right)
    if operator == "*":
        return max(_length(left) * _count(right), _length(right) * _count(left))
    if operator == "%" and isinstance(left, str):
        return _format_size(left, right if isinstance(right, tuple) else (right,))
    return 0


def call_size(name: str, subject: Any, args: Sequence[Any]) -> int:
    """An upper bound for the length of `subject|name(args)`, which is that of `subject.name(args)` too."""
    length, texts = _length(subject), [_length(arg) for arg in args]
    widest = max((_count(arg) for arg in args), default=0)
    if name in ("center", "ljust", "rjust", "zfill", "batch", "slice"):
        return length + widest
    if name in ("indent", "expandtabs", "wordwrap", "translate"):
        elements = [_length(value) for arg in args if isinstance(arg, Mapping) for value in arg.values()]
        return (length + 1) * max(widest, 8, *texts, *elements)
    if name == "replace":
        return length + (_occurrences(subject, args[0]) if args else 0) * max(texts[1:], default=0)
    if name == "join":
        return max(expanded_size(subject), length) + max(_elements(subject), 1) * max(texts, default=0)
    if name in ("format", "format_map"):
        return _format_size(subject, args)
    return expanded_size(subject)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | Mapping) else 0


def _elements(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | Mapping) else 0


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _occurrences(text: Any, part: Any) -> int:
    if isinstance(text, str) and isinstance(part, str):
        return text.count(part)
    return expanded_size(text)


def _format_size(form: Any, args: Sequence[Any]) -> int:
    """Each mark may repeat the longest argument, or pad to the largest number that is written or given."""
    text = str(form)
    digits = "".join(character if character.isdecimal() else " " for character in text).split()
    widths = [int(number[:12]) for number in digits] + [_count(arg) for arg in args]
    longest = max((expanded_size(arg) for arg in args), default=0)
    return len(text) + (text.count("%") + text.count("{")) * (longest + max(widths, default=0))


def expanded_size(value: Any) -> int:
    """The length of a value written out. A list that holds another twice writes it twice, so the walk is bounded."""
    total = 0
    waiting = [value]
    while waiting and total <= MAX_TEXT:
        item = waiting.pop()
        total += ELEMENT_SIZE + (len(item) if isinstance(item, str | bytes) else 0)
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
    return total
