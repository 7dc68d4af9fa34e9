"""Prompts: from text to what the transformer is conditioned on, by way of the language model in memory.

`EncodePrompt` is made of two operations: the language model's, which its own workload carries out, and the text
projection's. Their result is kept by prompt for as long as nobody else needs the memory.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from braid.diffusion.models.ltx2.text_encoder import TextEncoderSpec
from braid.diffusion.operations import (
    EncodePrompt,
    EncodeText,
    ProjectText,
    PromptEmbeds,
    RewritePrompt,
    TextHiddenStates,
)
from braid.errors import ContextLengthExceeded
from braid.llm_core.decode import GenerateParams
from braid.llm_core.encode import EncodeParams
from braid.llm_core.engine.messages import Encoded, Finished, SamplingParams, TextDelta
from braid.llm_core.memory.arena import Arena, Lease
from braid.llm_core.pipeline import Delegate
from braid.llm_core.text.chat_template import ChatTemplate
from braid.llm_core.text.tokenizer import Tokenizer

RECLAIM_ORDER = 5
"""After cached prefixes, before networks."""
MIN_REWRITTEN_TOKENS, MAX_REWRITTEN_TOKENS = 200, 512
"""Room for the paragraph that is asked for, and for one that became longer."""
REWRITE_TEMPERATURE = 0.7
SYSTEM_PROMPT = (
    "You write prompts for a model that makes short films with sound. You are given a user's idea. Answer with one "
    "paragraph of at most 150 words that describes the film as a viewer would see and hear it, in the order in which "
    "things happen: the subject and how it looks, what moves and how, the place and the light, the camera, the sounds "
    "and any words that are spoken, in quotes. Keep everything that the idea says, add only what fits it, write in the "
    "present tense and in the idea's language, and answer with the paragraph alone."
)
_PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
    "\u00a0": " ",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class LanguageModelFacts:
    """What is needed of the language model in memory to ask it something."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    context_length: int


def encode_text(spec: TextEncoderSpec, tokenizer: Tokenizer) -> Delegate:
    """`EncodeText`, carried out by the language workload.

    One prompt a request: so its bits do not depend on what it is encoded beside.
    """

    def params(operation: EncodeText, request_id: str) -> EncodeParams:
        ids = prompt_token_ids(operation.prompt, tokenizer, spec.max_length)
        return EncodeParams((ids,), spec.layers, spec.max_length, spec.padding_side)

    return Delegate(params, Encoded, lambda event: TextHiddenStates(event.hidden_states, event.attention_mask))


def prompt_token_ids(prompt: str, tokenizer: Tokenizer, max_length: int) -> tuple[int, ...]:
    """Stripped and cut to `max_length`, with one token in front that begins a text, if the tokenizer has such.

    Source: specs of LTX-2, section a.1: no end token, no chat template.
    """
    ids = tokenizer.encode(prompt.strip(), add_special_tokens=True, parse_special=False)
    begins = tokenizer.bos_token_id
    if begins is not None and tokenizer.adds_bos and ids[:1] != [begins]:
        ids = [begins, *ids]
    return tuple(ids[:max_length])


def rewrite_prompt(language: LanguageModelFacts) -> Delegate:
    """`RewritePrompt`, carried out by the language workload."""

    def params(operation: RewritePrompt, request_id: str) -> GenerateParams:
        ids = rewriting_token_ids(operation.prompt, language)
        num_tokens = min(MAX_REWRITTEN_TOKENS, language.context_length - len(ids))
        sampling = SamplingParams(temperature=REWRITE_TEMPERATURE, max_tokens=num_tokens)
        return GenerateParams(ids, sampling, abs(operation.seed), num_tokens)

    return Delegate(params, Finished, _rewritten, gathers=TextDelta)


def rewriting_token_ids(prompt: str, language: LanguageModelFacts) -> tuple[int, ...]:
    """What the language model is given to rewrite a prompt.

    Raises:
        ContextLengthExceeded: with an answer it is more than the model can have in mind.
    """
    ids = tuple(_chat_token_ids(prompt, language))
    excess = len(ids) + MIN_REWRITTEN_TOKENS - language.context_length
    if excess > 0:
        raise ContextLengthExceeded(
            f"enhance_prompt: the prompt with its instructions is {len(ids)} tokens, an answer up to "
            f"{MIN_REWRITTEN_TOKENS} more, and the language model's context is {language.context_length}; shorten the "
            f"prompt by {excess} tokens, or leave enhance_prompt out",
            param="prompt",
        )
    return ids


def _chat_token_ids(prompt: str, language: LanguageModelFacts) -> list[int]:
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": f"user prompt: {prompt}"}]
    if language.chat_template is None:
        text = f"{SYSTEM_PROMPT}\n\nuser prompt: {prompt}\n"
        return language.tokenizer.encode(text, add_special_tokens=True, parse_special=False)
    text = language.chat_template.render(messages)
    return language.tokenizer.encode(text, add_special_tokens=False, parse_special=True)


def _rewritten(deltas: list[TextDelta]) -> str:
    return cleaned("".join(delta.text for delta in deltas))


def cleaned(text: str) -> str:
    """Typographic characters as ASCII, and nothing before the first letter."""
    return re.sub(r"^[\W\d_]+", "", text.translate(_PLAIN)).strip()


class PromptCache:
    """Prompt embeds by prompt, the latest first; a reclaimer of the arena."""

    name = "prompt embeds"

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._kept: dict[str, tuple[PromptEmbeds, Lease]] = {}
        """The least recently used first."""
        arena.add_reclaimer(self, order=RECLAIM_ORDER)

    def find(self, prompt: str) -> PromptEmbeds | None:
        """What was kept, now the latest."""
        with self._arena.lock:
            kept = self._kept.pop(prompt, None)
            if kept is None:
                return None
            self._kept[prompt] = kept
            return kept[0]

    def keep(self, prompt: str, embeds: PromptEmbeds) -> None:
        """Keep, if there is room without asking anybody."""
        num_bytes = sum(tensor.nbytes for tensor in (embeds.video, embeds.audio) if tensor is not None)
        with self._arena.lock:
            if prompt not in self._kept and num_bytes <= self._arena.available_bytes:
                self._kept[prompt] = (embeds, self._arena.lease(self.name, num_bytes, kind="prompt embeds"))

    def reclaimable_bytes(self) -> int:
        return sum(lease.num_bytes for _, lease in self._kept.values())

    def reclaim(self, num_bytes: int) -> int:
        released = 0
        while self._kept and released < num_bytes:
            _, lease = self._kept.pop(next(iter(self._kept)))
            released += lease.num_bytes
            lease.release()
        return released

    def close(self) -> None:
        """Forget everything."""
        with self._arena.lock:
            self.reclaim(self.reclaimable_bytes() + 1)
            self._arena.remove_reclaimer(self)


def encode_prompt(operation: EncodePrompt, cache: PromptCache) -> Generator[Any, Any, PromptEmbeds]:
    """`EncodePrompt` as the operations that it is made of."""
    embeds = cache.find(operation.prompt)
    if embeds is None:
        text: TextHiddenStates = yield EncodeText(operation.prompt)
        embeds = yield ProjectText(operation.prompt, text)
        cache.keep(operation.prompt, embeds)
    return embeds
