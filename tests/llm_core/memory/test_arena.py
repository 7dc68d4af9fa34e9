"""The ledger: what fits, what is reclaimed in which order, and what a refusal says."""

from __future__ import annotations

import threading

import pytest

from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.memory.arena import Arena, Lease


class Hoard:
    """A reclaimer that holds one lease and writes down when it was asked."""

    def __init__(self, arena: Arena, name: str, num_bytes: int, asked: list[tuple[str, int]], *, order: int) -> None:
        self.name = name
        self.lease = arena.lease(name, num_bytes, kind="cache")
        self.asked = asked
        arena.add_reclaimer(self, order=order)

    def reclaimable_bytes(self) -> int:
        return self.lease.num_bytes

    def reclaim(self, num_bytes: int) -> int:
        self.asked.append((self.name, num_bytes))
        given = min(num_bytes, self.lease.num_bytes)
        self.lease.resize(self.lease.num_bytes - given)
        return given


def test_usage_counts_by_owner_and_kind_and_keeps_the_high_water_mark() -> None:
    arena = Arena(100)
    first = arena.lease("chat", 30, kind="kv")
    second = arena.lease("video", 50, kind="workspace")
    arena.lease("chat", 5, kind="workspace")
    second.resize(10)
    first.release()
    usage = arena.usage()
    assert (usage.budget_bytes, usage.leased_bytes, usage.high_water_bytes) == (100, 15, 85)
    assert usage.by_owner == {"chat": 5, "video": 10}
    assert usage.by_kind == {"workspace": 15}


def test_lease_is_released_once_and_by_its_context() -> None:
    arena = Arena(100)
    with arena.lease("step", 60, kind="workspace") as lease:
        assert arena.available_bytes == 40
    lease.release()
    assert arena.available_bytes == 100
    assert arena.usage().by_owner == {}


def test_what_can_never_fit_is_refused_at_once_with_both_numbers() -> None:
    arena = Arena(1_000)
    asked: list[tuple[str, int]] = []
    Hoard(arena, "cache", 100, asked, order=0)
    arena.lease("model", 400, kind="weights", permanent=True)
    assert arena.could_ever_fit(600)
    assert not arena.could_ever_fit(601)
    with pytest.raises(CannotFit, match=r"video \(latents\) needs 601 bytes .* room for 600") as caught:
        arena.lease("video", 601, kind="latents")
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (601, 600)
    assert asked == []


def test_what_does_not_fit_now_is_refused_with_what_is_free() -> None:
    arena = Arena(1_000)
    holder = arena.lease("chat", 700, kind="kv")
    assert not arena.can_lease(301)
    with pytest.raises(MemoryPressure, match="needs 301 bytes and 300 are free now") as caught:
        arena.lease("video", 301, kind="latents")
    assert (caught.value.needed_bytes, caught.value.available_bytes, caught.value.status) == (301, 300, 503)
    assert arena.usage().by_owner == {"chat": 700}
    holder.release()
    assert arena.lease("video", 301, kind="latents").num_bytes == 301


def test_reclaimers_are_asked_in_their_order_and_only_for_what_is_missing() -> None:
    arena = Arena(100)
    asked: list[tuple[str, int]] = []
    Hoard(arena, "components", 30, asked, order=10)
    Hoard(arena, "prefixes", 30, asked, order=0)
    Hoard(arena, "spare", 10, asked, order=-1)
    arena.lease("video", 20, kind="latents")
    assert arena.can_lease(80)
    assert not arena.can_lease(81)
    arena.lease("video", 55, kind="latents")
    assert asked == [("spare", 45), ("prefixes", 35), ("components", 5)]
    assert arena.available_bytes == 0
    assert arena.reclaimable_bytes(above_order=0) == 25


def test_reclaimers_that_are_not_needed_are_left_alone() -> None:
    arena = Arena(100)
    asked: list[tuple[str, int]] = []
    Hoard(arena, "prefixes", 50, asked, order=0)
    late = Hoard(arena, "components", 50, asked, order=10)
    arena.lease("video", 50, kind="latents")
    assert asked == [("prefixes", 50)]
    arena.remove_reclaimer(late)
    with pytest.raises(MemoryPressure):
        arena.lease("video", 1, kind="latents")


def test_growing_a_lease_reclaims_and_a_refused_growth_changes_nothing() -> None:
    arena = Arena(100)
    asked: list[tuple[str, int]] = []
    Hoard(arena, "prefixes", 20, asked, order=0)
    arena.lease("other", 50, kind="kv")
    lease = arena.lease("video", 30, kind="latents")
    lease.resize(40)
    assert asked == [("prefixes", 10)]
    with pytest.raises(MemoryPressure, match="needs 20 bytes and 10 are free"):
        lease.resize(60)
    assert lease.num_bytes == 40
    with pytest.raises(CannotFit):
        lease.resize(101)


def test_permanent_lease_may_grow_into_all_that_other_permanent_ones_leave() -> None:
    arena = Arena(100)
    arena.lease("first", 30, kind="weights", permanent=True)
    second = arena.lease("second", 50, kind="weights", permanent=True)
    second.resize(70)
    with pytest.raises(CannotFit, match=r"needs 71 bytes .* room for 70"):
        second.resize(71)
    second.release()
    assert arena.lasting_bytes == 70


def test_evictable_leases_are_in_nobodys_way_but_are_shown() -> None:
    arena = Arena(100)
    mapped = arena.lease("model", 90, kind="mapped weights", evictable=True)
    arena.lease("chat", 100, kind="kv")
    usage = arena.usage()
    assert (usage.leased_bytes, usage.evictable_bytes) == (100, 90)
    assert usage.by_kind == {"mapped weights": 90, "kv": 100}
    with pytest.raises(CannotFit):
        arena.lease("huge", 101, kind="mapped weights", evictable=True)
    mapped.release()
    assert arena.usage().evictable_bytes == 0


def _released(arena: Arena) -> Lease:
    lease = arena.lease("x", 1, kind="kv")
    lease.release()
    return lease


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda _: Arena(0), "budget_bytes=0 must be at least 1"),
        (lambda arena: arena.lease("x", -1, kind="kv"), "num_bytes=-1 .* must not be negative"),
        (lambda arena: arena.lease("x", 5, kind="kv").resize(-5), "num_bytes=-5 .* must not be negative"),
        (lambda arena: _released(arena).resize(3), "was released and cannot be resized"),
    ],
)
def test_misuse_is_a_clear_error_and_leaves_the_ledger_right(misuse, message) -> None:  # type: ignore[no-untyped-def]
    arena = Arena(10)
    with pytest.raises(ValueError, match=message):
        misuse(arena)
    assert arena.usage().leased_bytes in (0, 5)


def test_leases_from_many_threads_never_exceed_the_budget() -> None:
    arena = Arena(10)
    refused = []

    def work() -> None:
        for _ in range(500):
            try:
                with arena.lease("thread", 4, kind="workspace"):
                    assert arena.usage().leased_bytes <= 10
            except MemoryPressure as error:
                refused.append(error.available_bytes)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert arena.usage().leased_bytes == 0
    assert arena.usage().high_water_bytes <= 8
    assert all(available < 4 for available in refused)


def test_what_is_kept_leaves_room_for_the_largest_need_of_anybody() -> None:
    arena = Arena(1_000)
    film = arena.keep("a film", 300, largest_bytes=400, kind="latents")
    with pytest.raises(MemoryPressure, match=r"needs 301 bytes and 300 are free"):
        arena.keep("another", 301, largest_bytes=0, kind="latents")
    with pytest.raises(MemoryPressure):
        arena.keep("a chat", 0, largest_bytes=701, kind="results")
    with pytest.raises(CannotFit, match=r"1,001 bytes"):
        arena.keep("a chat", 500, largest_bytes=501, kind="results")
    chat = arena.keep("a chat", 0, largest_bytes=700, kind="results")
    assert not arena.can_promise(1) and arena.usage().leased_bytes == 300
    chat.release()
    assert arena.can_promise(300) and not arena.can_promise(301)
    film.release()
    assert arena.can_promise(1_000)
