"""Encoding: prompts to hidden states, on the same weights and in the same forward calls as chat.

This is what conditions images and videos: all or some layers, padded to the side and length that the caller asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from braid.errors import BraidError
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import Encoded, Started
from braid.llm_core.engine.sampling import SampledToken
from braid.llm_core.models.config import ModelConfig
from braid.llm_core.sequence import Sequence

DONE_TARGET_S = {RequestClass.INTERACTIVE: 0.5, RequestClass.STANDARD: 5.0, RequestClass.BATCH: 60.0}


@dataclass(frozen=True, slots=True)
class EncodeParams:
    """A checked request for hidden states.

    `length` is that of the padded result, at least that of the longest prompt.
    """

    prompt_token_ids: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    length: int
    padding_side: str

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.prompt_token_ids))

    def num_bytes(self, config: ModelConfig) -> int:
        """Bytes of the result."""
        return len(self.prompt_token_ids) * self.length * config.hidden_size * len(self.layers) * 4


class EncodedPrompt:
    """One prompt on its way; writes its rows straight into the padded result."""

    sampling = None
    use_prefix_cache = False  # cached positions have no hidden states

    def __init__(self, index: int, token_ids: tuple[int, ...], layers: tuple[int, ...], out: torch.Tensor) -> None:
        """Args:
        out: (num_tokens, hidden_size, num_layers), the prompt's unpadded part of the result.
        """
        self.index = index
        self.sequence = Sequence(list(token_ids))
        self.hidden_layers = layers
        self.is_done = not token_ids
        self._out = out

    def accept_hidden(self, hidden_states: Any) -> None:
        rows = torch.as_tensor(hidden_states).detach()
        first = self.sequence.num_computed - rows.shape[1]  # a preempted prompt writes the same rows again
        self._out[first : first + rows.shape[1]].copy_(rows.permute(1, 2, 0))
        self.is_done = self.sequence.num_pending == 0

    def accept_token(self, token: SampledToken, now: float) -> None:
        raise AssertionError("an encoding samples no tokens")


class EncodingJob:
    """A request for hidden states. An empty prompt is all padding."""

    def __init__(self, request: Request, number: int, config: ModelConfig) -> None:
        params = request.params
        assert isinstance(params, EncodeParams)
        self.request = request
        self.number = number
        self._params = params
        shape = (len(params.prompt_token_ids), params.length, config.hidden_size, len(params.layers))
        self._hidden_states = torch.zeros(shape, dtype=torch.float32)
        self._mask: npt.NDArray[np.int64] = np.zeros(shape[:2], dtype=np.int64)
        self._prompts = [self._prompt(i, ids) for i, ids in enumerate(params.prompt_token_ids)]
        self._has_begun = False

    def _prompt(self, i: int, token_ids: tuple[int, ...]) -> EncodedPrompt:
        first = self._params.length - len(token_ids) if self._params.padding_side == "left" else 0
        rows = slice(first, first + len(token_ids))
        self._mask[i, rows] = 1
        return EncodedPrompt(i, token_ids, self._params.layers, self._hidden_states[i, rows])

    @property
    def tasks(self) -> list[EncodedPrompt]:
        return [prompt for prompt in self._prompts if not prompt.is_done]

    @property
    def is_done(self) -> bool:
        return all(prompt.is_done for prompt in self._prompts)

    def deadline(self) -> float:
        if self.request.deadline is not None:
            return self.request.deadline
        return self.request.arrival + DONE_TARGET_S[self.request.request_class]

    def begin(self, now: float, num_cached_tokens: int) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        num_tokens = sum(map(len, self._params.prompt_token_ids))
        self.request.trace.phase("encode", {"prompt_tokens": num_tokens})
        self.request.sink(Started(self.request.id, num_tokens, num_cached_tokens))

    def finish(self, now: float) -> None:
        self.request.trace.end()
        mask = torch.from_numpy(self._mask)
        self.request.sink(Encoded(self.request.id, self._hidden_states, mask))

    def fail(self, error: BraidError) -> None:
        self.request.sink(failed(self.request.id, error))
