"""What the language workload runs: jobs made of sequences. Chat completions and encodings are the two kinds.

The workload owns memory and order; a job owns the meaning of what comes out (`decode.py`, `encode.py`).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any, Protocol

from braid.errors import BraidError
from braid.llm_core.core import Request
from braid.llm_core.engine.sampling import SampledToken, SamplingState
from braid.llm_core.sequence import Sequence


class SequenceTask(Protocol):
    """One sequence of a job."""

    @property
    def index(self) -> int:
        """Its place in the job; later ones yield memory first."""
        ...

    @property
    def sequence(self) -> Sequence: ...

    @property
    def sampling(self) -> SamplingState | None:
        """How to sample the next token, or None where no logits are wanted."""
        ...

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Layers whose hidden states are wanted of every token; empty for none."""
        ...

    @property
    def use_prefix_cache(self) -> bool: ...

    @property
    def is_done(self) -> bool: ...

    def accept_token(self, token: SampledToken, now: float) -> None:
        """Take the sampled token: append it to the sequence, emit its text, or set `is_done`."""
        ...

    def accept_hidden(self, hidden_states: Any) -> None:
        """Take (len(hidden_layers), n, hidden_size) of the n positions just computed; they must be copied."""
        ...


class Job(Protocol):
    """One request of the language workload."""

    @property
    def request(self) -> Request: ...

    @property
    def number(self) -> int:
        """Arrival order, which breaks ties and decides who is preempted: the latest first."""
        ...

    @property
    def tasks(self) -> Seq[SequenceTask]:
        """The sequences that are not done and may run now."""
        ...

    @property
    def is_done(self) -> bool: ...

    def deadline(self) -> float:
        """Clock time at which the next step of this job should have ended."""
        ...

    def begin(self, now: float, num_cached_tokens: int) -> None:
        """The first step of the job is about to run."""
        ...

    def finish(self, now: float) -> None:
        """Emit the last event. Called once, after `is_done`."""
        ...

    def fail(self, error: BraidError) -> None:
        """Emit `Failed` as the last event."""
        ...
