"""How byte-level vocabularies cut a text into words before merging, by the name that GGUF files give to it.

The cut is part of the model: a vocabulary run with another's gives ids that the model never saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    """Letters with one leading mark, groups of `digits`, runs of marks with their line ends, white space."""
    pattern = "|".join([
        _CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?\p{L}+", digits, r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)",
        r"\s+",
    ])
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


@dataclass(frozen=True, slots=True)
class ByteLevelRules:
    """One family's rules around its merges."""

    pre_tokenizer: Callable[[], pre_tokenizers.PreTokenizer]
    normalizer: Callable[[], normalizers.Normalizer] | None = None
    ignores_merges: bool = False
    """A word that is a token is that token, whatever the merges would make of it."""
    adds_bos: bool = False
    """Where the file does not say."""


_GPT2 = ByteLevelRules(_gpt2)
_LLAMA3 = ByteLevelRules(lambda: _words(r"\p{N}{1,3}"), ignores_merges=True, adds_bos=True)
_QWEN2 = ByteLevelRules(lambda: _words(r"\p{N}"), normalizer=normalizers.NFC)

BYTE_LEVEL_RULES = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": ByteLevelRules(_smollm),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}
"""By the value of `tokenizer.ggml.pre`."""
