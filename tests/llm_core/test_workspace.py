"""The workspace lease: grows with the steps, and never into what a text was promised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from braid.errors import CannotFit
from braid.llm_core.batching import BatchLimits
from braid.llm_core.memory.arena import Arena
from braid.llm_core.workspace import StepWorkspace

LIMITS = BatchLimits(max_sequences=4, max_step_tokens=64, min_chunk_tokens=8)
CONFIG = SimpleNamespace(hidden_size=16, num_layers=2)


class TenBytesAToken:
    """A model whose steps need 10 bytes a token and 100 a row of logits."""

    config = CONFIG

    def workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        return 10 * num_tokens + 100 * num_logits


LEAST = 10 * (4 + 8) + 100 * 4 + 8 * 3 * 16 * 4


def workspace(budget: int) -> tuple[StepWorkspace, Arena]:
    arena = Arena(budget)
    return StepWorkspace(TenBytesAToken(), arena, LIMITS), arena  # type: ignore[arg-type]


def always(num_bytes: int) -> bool:
    return True


def test_the_smallest_workspace_is_leased_at_once_and_for_good() -> None:
    _, arena = workspace(10_000)
    assert arena.usage().by_kind == {"workspace": LEAST}
    assert arena.lasting_bytes == 10_000 - LEAST


@pytest.mark.parametrize(("budget", "leased"), [(100_000, 10 * 644 + 400), (40_000, 10 * 324 + 400)])
def test_a_whole_step_has_room_from_the_start_where_that_is_a_small_part(budget: int, leased: int) -> None:
    arena = Arena(budget)
    StepWorkspace(TenBytesAToken(), arena, BatchLimits(4, 640, 8))  # type: ignore[arg-type]
    assert arena.usage().leased_bytes == leased


def test_a_budget_below_the_smallest_workspace_is_refused() -> None:
    with pytest.raises(CannotFit):
        workspace(LEAST - 1)


def test_it_grows_for_the_largest_step_and_does_not_shrink() -> None:
    one, arena = workspace(100_000)
    assert one.prefill_within(60, 3, always) == 60
    grown = 10 * 64 + 400 + 60 * 3 * 64
    assert arena.usage().leased_bytes == grown
    assert one.prefill_within(20, 0, always) == 20
    assert arena.usage().leased_bytes == grown


def test_hidden_states_count() -> None:
    one, _ = workspace(10_000)
    assert one.predict(5, 1, num_hidden=5, num_layers=2) == 150 + 5 * 2 * 64


@pytest.mark.parametrize("num_layers", [0, 3])
def test_where_nothing_can_be_spared_steps_stay_as_small_as_the_lease(num_layers: int) -> None:
    one, arena = workspace(100_000)
    num_tokens = one.prefill_within(60, num_layers, lambda num_bytes: False)
    assert num_tokens == (60 if num_layers == 0 else LIMITS.min_chunk_tokens)
    assert arena.usage().leased_bytes == LEAST


def test_memory_that_others_hold_now_makes_steps_smaller_until_they_let_go() -> None:
    one, arena = workspace(20_000)
    video = arena.lease("a video", arena.available_bytes, kind="latents")
    assert one.prefill_within(60, 3, always) == LIMITS.min_chunk_tokens
    video.release()
    assert one.prefill_within(60, 3, always) == 60


def test_the_model_is_asked_once_for_each_kind_of_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    model = TenBytesAToken()
    monkeypatch.setattr(model, "workspace_bytes", lambda *call: calls.append(call) or 10)
    one = StepWorkspace(model, Arena(100_000), LIMITS)  # type: ignore[arg-type]
    for _ in range(3):
        one.predict(8, 8)
        one.prefill_within(20, 0, always)
    assert len(calls) == len(set(calls))


def test_a_step_that_took_more_than_predicted_makes_all_predictions_and_the_lease_larger() -> None:
    one, arena = workspace(100_000)
    one.learn(one.predict(8, 1), one.predict(8, 1) - 5)
    assert one.predict(8, 1) == 180
    assert one.prefill_within(60, 0, always) == 60
    one.learn(180, 360)
    assert one.predict(8, 1) == 360
    one.learn(360, 540)
    assert one.predict(8, 1) == 540
    assert one.predict(8, 1, num_hidden=1, num_layers=1) == 3 * (180 + 64)
    assert one.prefill_within(60, 0, always) == 60
    assert arena.usage().by_kind == {"workspace": 3 * (10 * 64 + 400)}


def test_a_step_beyond_the_budget_is_told_and_later_ones_stay_as_small_as_they_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, arena = workspace(2 * LEAST)
    one.learn(180, 180 * 100)
    assert arena.usage().leased_bytes == LEAST
    assert "no room for" in caplog.text
    assert one.prefill_within(60, 0, always) == LIMITS.min_chunk_tokens
