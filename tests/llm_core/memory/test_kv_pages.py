"""Pages and slabs: counts, where pages are taken from, and memory that really goes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.kv_pages import KVPages, OutOfPages
from braid.llm_core.memory.residency import resident_bytes

PAGE = 4096


def make_pages(num_slabs: int = 4, *, pages_per_slab: int = 4) -> KVPages:
    slab_bytes = pages_per_slab * PAGE
    return KVPages(Arena(num_slabs * slab_bytes), page_bytes=PAGE, slab_bytes=slab_bytes)


def leased(pages: KVPages) -> int:
    return pages.arena.usage().leased_bytes


def test_slab_is_rounded_down_to_whole_pages_and_holds_at_least_one() -> None:
    arena = Arena(1 << 20)
    assert KVPages(arena, page_bytes=300, slab_bytes=1000).pages_per_slab == 3
    assert KVPages(arena, page_bytes=300, slab_bytes=1000).slab_bytes == 900
    assert KVPages(arena, page_bytes=3000, slab_bytes=1000).pages_per_slab == 1


def test_slabs_are_leased_one_by_one_as_pages_are_needed() -> None:
    pages = make_pages()
    assert (pages.num_slabs, leased(pages)) == (0, 0)
    pages.allocate(4)
    assert (pages.num_slabs, leased(pages)) == (1, 4 * PAGE)
    pages.allocate(1)
    assert (pages.num_slabs, pages.used_pages, pages.free_pages) == (2, 5, 3)
    assert leased(pages) == 2 * 4 * PAGE


def test_pages_of_one_allocation_are_distinct_and_have_one_reference() -> None:
    pages = make_pages()
    taken = pages.allocate(6) + pages.allocate(5)
    assert len(set(taken)) == 11
    assert all(pages.ref_count(page) == 1 for page in taken)
    assert pages.allocate(0) == []


def test_allocation_is_all_or_nothing_and_leaves_no_slab_behind() -> None:
    pages = make_pages(num_slabs=2)
    held = pages.allocate(3)
    assert pages.can_allocate(5)
    assert not pages.can_allocate(6)
    with pytest.raises(OutOfPages, match=f"6 KV pages needs {6 * PAGE:,} bytes and {5 * PAGE:,} are free now"):
        pages.allocate(6)
    assert (pages.num_slabs, pages.used_pages) == (1, 3)
    pages.release(held)


def test_failed_allocation_of_a_slab_leaves_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    pages = make_pages()
    monkeypatch.setattr("braid.llm_core.memory.kv_pages.new_slab", fail)
    with pytest.raises(MemoryError):
        pages.allocate(1)
    assert leased(pages) == 0
    assert pages.num_slabs == 0


class IdleComponent:
    """A reclaimer that gives one slab's bytes at most, whatever it promises."""

    name = "idle component"

    def __init__(self, pages: KVPages, *, promises: int) -> None:
        self.lease = pages.arena.lease(self.name, pages.slab_bytes, kind="weights")
        self.promises = promises
        pages.arena.add_reclaimer(self, order=10)

    def reclaimable_bytes(self) -> int:
        return self.promises

    def reclaim(self, num_bytes: int) -> int:
        given = self.lease.num_bytes
        self.lease.release()
        return given


def test_spare_slab_is_not_traded_for_a_new_one_while_growing() -> None:
    pages = make_pages(num_slabs=2)
    pages.release(pages.allocate(1))
    IdleComponent(pages, promises=pages.slab_bytes)
    assert not pages.can_allocate(9)
    assert len(pages.allocate(8)) == 8


def test_broken_promise_of_a_reclaimer_is_out_of_pages_and_keeps_one_slab() -> None:
    pages = make_pages(num_slabs=3)
    IdleComponent(pages, promises=2 * pages.slab_bytes)
    with pytest.raises(OutOfPages):
        pages.allocate(16)
    assert (pages.num_slabs, pages.used_pages) == (1, 0)


def test_max_pages_is_what_the_budget_less_permanent_leases_could_hold() -> None:
    pages = make_pages(num_slabs=4)
    other = pages.arena.lease("video", 3 * 4 * PAGE, kind="latents")
    assert pages.max_pages == 16
    pages.arena.lease("model", 1, kind="weights", permanent=True)
    assert pages.max_pages == 12
    other.release()


def test_shared_page_is_free_only_after_its_last_release() -> None:
    pages = make_pages()
    (page,) = pages.allocate(1)
    pages.retain([page, page])
    assert pages.ref_count(page) == 3
    pages.release([page])
    pages.release([page])
    assert (pages.ref_count(page), pages.used_pages) == (1, 1)
    pages.release([page])
    assert (pages.ref_count(page), pages.used_pages) == (0, 0)


def test_fullest_slab_is_used_first_so_that_others_can_empty() -> None:
    pages = make_pages()
    first, second = pages.allocate(4), pages.allocate(4)
    pages.release(first[:3])
    pages.release(second[:1])
    assert pages.allocate(1)[0] in second
    assert pages.allocate(1)[0] in first


def test_one_empty_slab_is_kept_and_further_ones_are_given_back() -> None:
    pages = make_pages()
    taken = pages.allocate(12)
    pages.release(taken)
    assert (pages.num_slabs, leased(pages), pages.free_pages) == (1, 4 * PAGE, 4)


def test_spare_slab_goes_when_another_needs_its_bytes() -> None:
    pages = make_pages(num_slabs=2)
    pages.release(pages.allocate(1))
    assert pages.arena.can_lease(8 * PAGE)
    pages.arena.lease("video", 8 * PAGE, kind="latents")
    assert (pages.num_slabs, pages.free_pages) == (0, 0)
    assert not pages.can_allocate(1)


def test_given_back_slab_leaves_a_hole_whose_index_is_used_again() -> None:
    pages = make_pages()
    first, second, third = pages.allocate(4), pages.allocate(4), pages.allocate(4)
    pages.release(third)
    pages.release(first)
    assert [slab is None for slab in pages.slabs()] == [True, False, False]
    assert pages.addresses()[0] == 0
    assert [int(a) for a in pages.addresses()[1:]] == [s.data_ptr() for s in pages.slabs()[1:] if s is not None]
    assert pages.allocate(4) != first
    assert sorted(pages.allocate(4)) == sorted(first)
    assert len(pages.slabs()) == 3
    pages.release(second)


def test_addresses_are_the_same_array_until_slabs_change() -> None:
    pages = make_pages()
    taken = pages.allocate(4)
    before = pages.addresses()
    assert before.dtype == np.int64
    pages.release(taken[:2])
    pages.allocate(1)
    assert pages.addresses() is before
    pages.allocate(4)
    assert pages.addresses() is not before
    assert len(pages.addresses()) == 2


def test_slab_is_zeroed_uint8_of_pages_at_its_address() -> None:
    pages = make_pages()
    taken = pages.allocate(2)
    slab = pages.slabs()[0]
    assert slab is not None
    assert (slab.shape, slab.dtype) == ((4, PAGE), torch.uint8)
    assert int(slab.sum()) == 0
    slab[taken[1]] = 7
    assert int(slab.view(-1)[PAGE * taken[1]]) == 7


@pytest.mark.skipif(resident_bytes() == 0, reason="needs /proc")
def test_resident_memory_falls_when_slabs_are_given_back() -> None:
    slab_bytes = 16 << 20
    pages = KVPages(Arena(8 * slab_bytes), page_bytes=1 << 20, slab_bytes=slab_bytes)
    taken = pages.allocate(6 * 16)
    before = resident_bytes()
    for slab in pages.slabs():
        assert slab is not None
        slab.fill_(1)
    full = resident_bytes()
    assert full - before > 0.9 * 6 * slab_bytes
    del slab
    pages.release(taken)
    assert full - resident_bytes() > 0.9 * 5 * slab_bytes
    pages.give_back_spare()
    assert full - resident_bytes() > 0.9 * 6 * slab_bytes


@pytest.mark.skipif(resident_bytes() == 0, reason="needs /proc")
def test_resident_memory_falls_even_if_somebody_keeps_a_view_of_a_slab() -> None:
    slab_bytes = 32 << 20
    pages = KVPages(Arena(slab_bytes), page_bytes=1 << 20, slab_bytes=slab_bytes)
    taken = pages.allocate(32)
    view = pages.slabs()[0]
    assert view is not None
    view.fill_(1)
    full = resident_bytes()
    pages.release(taken)
    pages.give_back_spare()
    assert full - resident_bytes() > 0.9 * slab_bytes
    assert int(view[0, 0]) == 0


def test_close_gives_everything_back_and_refuses_while_pages_are_in_use() -> None:
    pages = make_pages()
    taken = pages.allocate(1)
    with pytest.raises(ValueError, match="1 KV pages are still in use"):
        pages.close()
    pages.release(taken)
    pages.close()
    assert (leased(pages), pages.num_slabs) == (0, 0)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda pages, _: pages.allocate(-1), "num_pages=-1 must not be negative"),
        (lambda pages, _: pages.retain([99]), r"cannot retain page 99: it is outside 0\.\.3"),
        (lambda pages, _: pages.release([-1]), r"cannot release page -1: it is outside 0\.\.3"),
        (lambda pages, page: pages.retain([page + 1]), "cannot retain page 1: it is free"),
        (lambda pages, page: pages.release([page, page]), "cannot release page 0: it is free"),
        (lambda pages, _: KVPages(pages.arena, page_bytes=0), "page_bytes=0 .* must be at least 1"),
        (lambda pages, _: KVPages(pages.arena, page_bytes=1, page_tokens=0), "page_tokens=0 must be at least 1"),
    ],
)
def test_misuse_is_a_clear_error_and_leaves_the_counts_right(misuse, message) -> None:  # type: ignore[no-untyped-def]
    pages = make_pages()
    (page,) = pages.allocate(1)
    with pytest.raises(ValueError, match=message):
        misuse(pages, page)
    assert pages.used_pages + pages.free_pages == pages.num_slabs * pages.pages_per_slab
    assert len(set(pages.allocate(4))) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_slab_on_a_gpu_is_given_back_to_the_driver() -> None:
    slab_bytes = 64 << 20
    pages = KVPages(Arena(4 * slab_bytes), page_bytes=1 << 20, slab_bytes=slab_bytes, device="cuda")
    taken = pages.allocate(4 * 64)
    allocated, (free, _) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
    pages.release(taken)
    pages.give_back_spare()
    assert allocated - torch.cuda.memory_allocated() == 4 * slab_bytes
    # A slab may lie in a segment that tensors of other tests share; then that segment stays.
    assert torch.cuda.mem_get_info()[0] - free >= 3 * slab_bytes
