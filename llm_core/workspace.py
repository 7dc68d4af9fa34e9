"""The bytes that a step needs beside weights and pages: predicted by the model, leased before the step runs, and
corrected by what steps were measured to take.

One standing lease, for models keep their buffers from step to step, and a lease a step would cost more than it tells.
It is large enough for a whole step from the start, where that is a small part of the budget. It grows for hidden
states, but only out of what no promise to a request needs; otherwise steps stay smaller.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache

from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.batching import BatchLimits
from braid.llm_core.memory.arena import Arena
from braid.llm_core.models.model import LanguageModel

PART_FROM_THE_START = 1 / 8
"""Of what the weights leave: a workspace up to this is leased at once; beyond, steps have fewer tokens."""

_log = logging.getLogger(__name__)

CanSpare = Callable[[int], bool]
"""Whether the budget can do without so many bytes."""


class StepWorkspace:
    """The workspace of one model's steps.

    Args:
        limits: the smallest workspace has room for a token of every sequence and the least chunk of one more, with all
            hidden states.
    Raises:
        CannotFit: not even that fits beside the weights.
    """

    def __init__(self, model: LanguageModel, arena: Arena, limits: BatchLimits) -> None:
        self._limits = limits
        self._hidden_row_bytes = 4 * model.config.hidden_size
        self._model_bytes = lru_cache(maxsize=1024)(model.workspace_bytes)  # a call is 6 us, and decode repeats its own
        self._excess = 1.0
        """What steps took at most, over what their model had predicted."""
        self._room: dict[int, int] = {}
        """Number of hidden layers -> prefill tokens that the lease is known to have room for."""
        least = self._largest(limits.min_chunk_tokens, model.config.num_layers + 1)
        num_prefill = limits.max_step_tokens
        while num_prefill > 1 and self._largest(num_prefill, 0) > arena.lasting_bytes * PART_FROM_THE_START:
            num_prefill //= 2
        num_bytes = max(least, self._largest(num_prefill, 0))
        self._lease = arena.lease("steps of the language model", num_bytes, kind="workspace", permanent=True)

    def predict(self, num_tokens: int, num_logits: int, *, num_hidden: int = 0, num_layers: int = 0) -> int:
        """Peak bytes of a step.

        Args:
            num_hidden: tokens whose hidden states are wanted, of `num_layers` layers.
        """
        num_bytes = self._model_bytes(num_tokens, num_logits) + num_hidden * num_layers * self._hidden_row_bytes
        return num_bytes if self._excess == 1 else math.ceil(num_bytes * self._excess)

    def learn(self, predicted_bytes: int, measured_bytes: int) -> None:
        """Take a measured peak into account: what a step took beyond its prediction is expected of all from now on.

        A prediction is an upper bound, so a step that took less teaches nothing.
        """
        if measured_bytes <= predicted_bytes:
            return
        self._excess *= measured_bytes / predicted_bytes
        self._room.clear()
        _log.warning("a step took %d bytes and %d were predicted: leasing more", measured_bytes, predicted_bytes)
        least = self._largest(self._limits.min_chunk_tokens, 0)
        if not self._has_room(max(least, measured_bytes), lambda growth: True):
            _log.warning("the budget has no room for %d bytes of workspace: steps may run short", least)

    def prefill_within(self, num_tokens: int, num_layers: int, can_spare: CanSpare) -> int:
        """How many of `num_tokens` one step may compute beside a token of every other sequence.

        Grows the lease for them if it can be spared; else as many as it has room for, at least `min_chunk_tokens`.

        Args:
            num_layers: whose hidden states are wanted of those tokens.
        """
        while num_tokens > max(self._room.get(num_layers, 0), self._limits.min_chunk_tokens):
            if self._has_room(self._largest(num_tokens, num_layers), can_spare):
                self._room[num_layers] = num_tokens
            else:
                num_tokens = max(num_tokens // 2, self._limits.min_chunk_tokens)
        return num_tokens

    def close(self) -> None:
        """Give the lease back; no step may follow."""
        self._lease.release()

    def _largest(self, num_prefill: int, num_layers: int) -> int:
        num_rows = self._limits.max_sequences
        return self.predict(num_rows + num_prefill, num_rows, num_hidden=num_prefill, num_layers=num_layers)

    def _has_room(self, num_bytes: int, can_spare: CanSpare) -> bool:
        """Whether the lease has so many bytes, grown for them if need be."""
        growth = num_bytes - self._lease.num_bytes
        if growth <= 0:
            return True
        if not can_spare(growth):
            return False
        try:
            self._lease.resize(num_bytes)
        except (MemoryPressure, CannotFit):
            return False
        return True
