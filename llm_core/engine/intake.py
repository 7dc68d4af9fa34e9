"""From what a face sends to what a workload runs: tokenising and every check, before any work is taken on."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from braid.errors import CannotFit, ContextLengthExceeded, InvalidRequest, MissingField, Unsupported
from braid.llm_core.decode import GenerateParams
from braid.llm_core.encode import EncodeParams
from braid.llm_core.engine import sampling
from braid.llm_core.engine.messages import EncodeRequest, GenerateRequest
from braid.llm_core.memory.kv_pages import KVPages
from braid.llm_core.models.config import ModelConfig
from braid.llm_core.text.chat_template import ChatTemplate
from braid.llm_core.text.tokenizer import Tokenizer

MAX_ENCODE_PROMPTS = 256


@dataclass(frozen=True, slots=True)
class Intake:
    """What it takes to judge a request for one language model."""

    config: ModelConfig
    context_length: int
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    pages: KVPages

    def generate(self, request: GenerateRequest) -> GenerateParams:
        """Check and tokenise a request for text.

        Raises:
            InvalidRequest, ContextLengthExceeded, CannotFit: with the field and the numbers.
        """
        sampling.check(request.sampling, vocab_size=self.config.vocab_size, context_length=self.context_length)
        token_ids = self._prompt_token_ids(request)
        seed = request.sampling.seed
        return GenerateParams(
            prompt_token_ids=tuple(token_ids),
            sampling=request.sampling,
            seed=secrets.randbits(63) if seed is None else seed,
            max_new_tokens=self._max_new_tokens(len(token_ids), request.sampling.max_tokens),
            use_prefix_cache=request.use_prefix_cache,
            echo_text=self.tokenizer.decode(token_ids, skip_special_tokens=False) if request.echo else "",
        )

    def _prompt_token_ids(self, request: GenerateRequest) -> list[int]:
        given = [name for name in ("messages", "prompt", "prompt_token_ids") if getattr(request, name) is not None]
        if len(given) != 1:
            raise MissingField(f"exactly one of messages, prompt and prompt_token_ids is needed, got {given or 'none'}")
        if request.messages is not None:
            text = self._template().render(request.messages)
            return self._checked(self.tokenizer.encode(text, add_special_tokens=False, parse_special=True), "messages")
        if request.prompt is not None:
            return self._checked(self._encode_text(request.prompt), "prompt")
        return self._checked(list(request.prompt_token_ids or ()), "prompt")

    def _encode_text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=True, parse_special=True)

    def _template(self) -> ChatTemplate:
        if self.chat_template is None:
            raise Unsupported("this model has no chat template; use /v1/completions", param="messages")
        return self.chat_template

    def _checked(self, token_ids: list[int], param: str) -> list[int]:
        if not token_ids:
            raise InvalidRequest(f"{param} is empty; at least one token is needed", param=param)
        for token_id in token_ids:
            if not 0 <= token_id < self.config.vocab_size:
                raise InvalidRequest(f"token id {token_id} must be from 0 to {self.config.vocab_size - 1}", param=param)
        if len(token_ids) >= self.context_length:
            raise ContextLengthExceeded(
                f"{param} has {len(token_ids)} tokens and the context is {self.context_length}, of which at least one "
                "is for the answer",
                param=param,
            )
        return token_ids

    def _max_new_tokens(self, num_prompt: int, max_tokens: int | None) -> int:
        room = self.context_length - num_prompt
        if max_tokens is not None and max_tokens > room:
            raise ContextLengthExceeded(
                f"{num_prompt} prompt tokens and max_tokens={max_tokens} exceed the context of {self.context_length}; "
                f"max_tokens can be at most {room}",
                param="max_tokens",
            )
        fits = self.pages.max_pages * self.pages.page_tokens - num_prompt
        if fits < (max_tokens or 1):
            raise CannotFit(
                f"a sequence of {num_prompt + (max_tokens or 1)} tokens",
                needed_bytes=-(-(num_prompt + (max_tokens or 1)) // self.pages.page_tokens) * self.pages.page_bytes,
                budget_bytes=self.pages.max_pages * self.pages.page_bytes,
                param="max_tokens" if max_tokens else None,
            )
        return min(room, fits) if max_tokens is None else max_tokens

    def encode(self, request: EncodeRequest) -> EncodeParams:
        """Check and tokenise a request for hidden states; whether they fit is seen when it is admitted.

        Raises:
            InvalidRequest, ContextLengthExceeded: with the field and the numbers.
        """
        if request.padding_side not in ("left", "right"):
            raise InvalidRequest(f"padding_side={request.padding_side!r} must be left or right", param="padding_side")
        prompts = self._encode_prompts(request)
        length = max((*map(len, prompts), 1)) if request.max_length is None else request.max_length
        if not 1 <= length <= self.context_length:
            raise ContextLengthExceeded(
                f"max_length={length} must be from 1 to the context of {self.context_length}", param="max_length"
            )
        return EncodeParams(
            tuple(tuple(ids[:length]) for ids in prompts), self._layers(request), length, request.padding_side
        )

    def _encode_prompts(self, request: EncodeRequest) -> list[list[int]]:
        if (request.prompts is None) == (request.prompt_token_ids is None):
            raise MissingField("exactly one of prompts and prompt_token_ids is needed", param="prompts")
        num_prompts = len(request.prompts or request.prompt_token_ids or ())
        if not 1 <= num_prompts <= MAX_ENCODE_PROMPTS:
            raise InvalidRequest(f"{num_prompts} prompts: from 1 to {MAX_ENCODE_PROMPTS} are allowed", param="prompts")
        if request.prompts is not None:
            return [self._encode_text(prompt) for prompt in request.prompts]
        token_ids = request.prompt_token_ids or []
        for ids in token_ids:
            for token_id in ids:
                if not 0 <= token_id < self.config.vocab_size:
                    raise InvalidRequest(
                        f"token id {token_id} must be from 0 to {self.config.vocab_size - 1}", param="prompt_token_ids"
                    )
        return token_ids

    def _layers(self, request: EncodeRequest) -> tuple[int, ...]:
        last = self.config.num_layers
        layers = tuple(range(last + 1)) if request.layers is None else request.layers
        if not layers:
            raise InvalidRequest("layers is empty; None means all", param="layers")
        for layer in layers:
            if not 0 <= layer <= last:
                raise InvalidRequest(f"layer {layer} must be from 0 (embeddings) to {last} (end)", param="layers")
        return layers

