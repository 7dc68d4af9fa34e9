"""The radix tree: what is shared, what is evicted first, and what evicting really frees."""

from __future__ import annotations

import random
from typing import Any

import pytest

from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.kv_pages import KVPages, OutOfPages
from braid.llm_core.memory.prefix_cache import PrefixCache

PAGE = 64
TOKENS = 4


def make_cache(num_slabs: int = 8, *, pages_per_slab: int = 4) -> tuple[KVPages, PrefixCache]:
    slab_bytes = pages_per_slab * PAGE
    pages = KVPages(Arena(num_slabs * slab_bytes), page_bytes=PAGE, page_tokens=TOKENS, slab_bytes=slab_bytes)
    return pages, PrefixCache(pages, page_tokens=TOKENS)


def run_sequence(pages: KVPages, cache: PrefixCache, tokens: list[int], namespace: Any = ()) -> list[int]:
    """What a request does: match, allocate the rest, insert. Returns its pages, held."""
    held = cache.match(tokens, namespace=namespace)
    held += pages.allocate(len(tokens) // TOKENS - len(held))
    cache.insert(tokens, held, namespace=namespace)
    return held


def cache_sequence(pages: KVPages, cache: PrefixCache, tokens: list[int]) -> list[int]:
    """The same for a request that has ended. Returns the pages, no longer held."""
    held = run_sequence(pages, cache, tokens)
    pages.release(held)
    return held


def test_match_gives_the_longest_prefix_of_whole_pages_and_retains_it() -> None:
    pages, cache = make_cache()
    held = run_sequence(pages, cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert (len(held), cache.cached_pages) == (2, 2)
    assert cache.match([1, 2, 3, 4, 5, 6, 7, 8]) == held
    assert cache.match([1, 2, 3, 4, 5, 6, 7, 0, 9]) == held[:1]
    assert cache.match([1, 2, 3]) == []
    assert cache.match([0, 2, 3, 4]) == []
    assert [pages.ref_count(page) for page in held] == [4, 3]


def test_equal_tokens_after_different_prefixes_are_different_pages() -> None:
    pages, cache = make_cache()
    first = run_sequence(pages, cache, [1] * 4 + [9] * 4)
    second = run_sequence(pages, cache, [2] * 4 + [9] * 4)
    assert not set(first) & set(second)


def test_namespaces_never_share() -> None:
    pages, cache = make_cache()
    first = run_sequence(pages, cache, [1] * 8, namespace="adapter")
    assert cache.match([1] * 8) == []
    assert cache.match([1] * 8, namespace="adapter") == first
    pages.release(first)
    pages.release(first)
    assert cache.evict(9) == 2
    assert cache.match([1] * 8, namespace="adapter") == []
    assert cache._roots == {}, "a namespace without pages takes no memory"


def test_token_ids_past_31_bits_are_kept_apart() -> None:
    pages, cache = make_cache()
    run_sequence(pages, cache, [1 << 40] * 4)
    assert cache.match([0] * 4) == []
    assert len(cache.match([1 << 40] * 4)) == 1


def test_cached_prefix_keeps_its_page_and_only_the_rest_is_new() -> None:
    pages, cache = make_cache()
    first = run_sequence(pages, cache, [1] * 8)
    own = pages.allocate(3)
    assert cache.insert([1] * 8 + [2] * 4, own) == 1
    assert cache.match([1] * 8 + [2] * 4) == [*first, own[2]]
    assert [pages.ref_count(page) for page in own] == [1, 1, 3]
    assert cache.insert([1] * 8, own) == 0


def test_least_recently_used_leaf_goes_first_and_its_parent_only_after_it() -> None:
    pages, cache = make_cache()
    old = cache_sequence(pages, cache, [1] * 12)
    new = cache_sequence(pages, cache, [2] * 12)
    pages.release(cache.match([1] * 8))
    order = []
    for _ in range(6):
        assert cache.evict(1) == 1
        order.append(next(page for page in old + new if page not in order and not pages.ref_count(page)))
    assert order == [old[2], new[2], new[1], new[0], old[1], old[0]]
    assert cache.evict(1) == 0


def test_touched_leaf_is_evicted_last() -> None:
    pages, cache = make_cache()
    first, second = cache_sequence(pages, cache, [1] * 4), cache_sequence(pages, cache, [2] * 4)
    duplicate = pages.allocate(1)
    cache.insert([1] * 4, duplicate)
    cache.evict(1)
    assert (pages.ref_count(first[0]), pages.ref_count(second[0])) == (1, 0)
    assert cache.evict(9) == 1


def test_prefix_used_a_thousand_times_is_remembered_once() -> None:
    pages, cache = make_cache()
    cache_sequence(pages, cache, [1] * 12)
    cache_sequence(pages, cache, [2] * 12)
    for _ in range(1000):
        pages.release(cache.match([1] * 12))
    assert len(cache._leaves) < 100
    assert cache.evict(9) == 6


def test_evict_takes_no_page_in_use_and_none_above_one_in_use() -> None:
    pages, cache = make_cache()
    above = cache_sequence(pages, cache, [1] * 4)
    own = pages.allocate(2)
    cache.insert([1] * 4 + [2] * 4, own)
    assert cache.evictable_pages == 0
    assert cache.evict(5) == 0
    pages.release(own)
    assert cache.evictable_pages == 2
    assert cache.evict(5) == 2
    assert pages.ref_count(above[0]) == 0


def test_matched_prefix_is_not_evicted_until_it_is_released() -> None:
    pages, cache = make_cache()
    cache_sequence(pages, cache, [1] * 12)
    held = cache.match([1] * 8)
    assert cache.evictable_pages == 1
    assert cache.evict(9) == 1
    assert cache.match([1] * 12) == held
    pages.release(held)
    pages.release(held)
    assert cache.evict(9) == 2


def test_inserting_below_an_evictable_page_makes_it_stay() -> None:
    pages, cache = make_cache()
    cache_sequence(pages, cache, [1] * 4)
    assert cache.evictable_pages == 1
    held = run_sequence(pages, cache, [1] * 12)
    pages.release(held[:1])
    assert cache.evictable_pages == 0
    pages.release(held[1:])
    assert cache.evictable_pages == 3


def test_allocation_evicts_cached_pages_when_no_slab_is_left() -> None:
    pages, cache = make_cache(num_slabs=2)
    cache_sequence(pages, cache, [1] * 4 * 4)
    held = run_sequence(pages, cache, [2] * 4 * 4)
    assert pages.free_pages == 0
    assert pages.can_allocate(4)
    assert not pages.can_allocate(5)
    with pytest.raises(OutOfPages):
        pages.allocate(5)
    assert cache.cached_pages == 8
    assert len(pages.allocate(3)) == 3
    assert len(cache.match([1] * 16)) == 1
    assert all(pages.ref_count(page) == 2 for page in held)


def test_free_budget_is_used_before_anything_is_evicted() -> None:
    pages, cache = make_cache(num_slabs=2)
    cache_sequence(pages, cache, [1] * 16)
    pages.allocate(4)
    assert cache.cached_pages == 4


def test_clear_forgets_all_and_leaves_the_pages_of_others() -> None:
    pages, cache = make_cache()
    held = run_sequence(pages, cache, [1] * 8)
    cache_sequence(pages, cache, [2] * 8)
    cache.clear()
    assert (cache.cached_pages, cache.evictable_pages, pages.used_pages) == (0, 0, 2)
    assert cache.match([1] * 8) == []
    assert cache.insert([1] * 8, held) == 2


def test_arena_gets_whole_slabs_back_from_cached_prefixes() -> None:
    pages, cache = make_cache(num_slabs=4)
    for number in range(4):
        cache_sequence(pages, cache, [number] * 16)
    assert cache.reclaimable_bytes() == pages.arena.budget_bytes
    pages.arena.lease("video", 2 * pages.slab_bytes, kind="latents")
    assert (cache.cached_pages, pages.num_slabs) == (8, 2)


def test_of_equally_full_slabs_the_least_recently_used_is_given_back() -> None:
    pages, cache = make_cache(num_slabs=4)
    for number in range(4):
        cache_sequence(pages, cache, [number] * 16)
    pages.release(cache.match([0] * 16))
    pages.arena.lease("video", 3 * pages.slab_bytes, kind="latents")
    assert len(cache.match([0] * 16)) == 4


def test_slab_with_fewer_pages_is_given_back_before_an_older_one() -> None:
    pages, cache = make_cache(num_slabs=2)
    cache_sequence(pages, cache, [1] * 16)
    cache_sequence(pages, cache, [2] * 8)
    assert cache.reclaim(1) == pages.slab_bytes
    assert (len(cache.match([1] * 16)), cache.match([2] * 8)) == (4, [])


def test_nothing_is_evicted_for_bytes_when_no_slab_could_be_freed() -> None:
    pages, cache = make_cache(num_slabs=2)
    for number in range(2):
        cache_sequence(pages, cache, [number] * 12)
        pages.allocate(1)
    assert (cache.evictable_pages, cache.reclaimable_bytes()) == (6, 0)
    assert cache.reclaim(1) == 0
    assert cache.cached_pages == 6


def test_reclaiming_bytes_evicts_below_a_page_wherever_it_lies() -> None:
    pages, cache = make_cache(num_slabs=3, pages_per_slab=2)
    root = cache_sequence(pages, cache, [1] * 4)
    pages.allocate(1)
    below = cache_sequence(pages, cache, [1] * 4 + [2] * 8)[1:]
    assert {page // 2 for page in below} == {1}
    assert cache.reclaim(1) == pages.slab_bytes
    assert pages.ref_count(root[0]) == 1
    assert cache.cached_pages == 1


def scattered_cache(seed: int) -> tuple[KVPages, PrefixCache]:
    """A cache after random load: sequences of one to six pages that grew side by side, a third of it evicted by age."""
    pages, cache = make_cache(num_slabs=64, pages_per_slab=8)
    random_source = random.Random(seed)
    running: list[tuple[list[int], list[int]]] = []
    for number in range(150):
        running.append(([number] * TOKENS, pages.allocate(1)))
        for tokens, held in random_source.sample(running, min(4, len(running))):
            tokens += [number] * TOKENS
            held += pages.allocate(1)
        while len(running) > 6:
            tokens, held = running.pop(random_source.randrange(len(running)))
            cache.insert(tokens, held)
            pages.release(held)
    for tokens, held in running:
        cache.insert(tokens, held)
        pages.release(held)
    cache.evict(cache.cached_pages // 3)
    return pages, cache


def test_reclaiming_bytes_costs_far_fewer_pages_than_evicting_by_age() -> None:
    by_slab = by_age = 0
    for seed in range(5):
        pages, cache = scattered_cache(seed)
        target = pages.num_slabs - 10
        before = cache.cached_pages
        pages.give_back_spare()
        cache.reclaim((pages.num_slabs - target) * pages.slab_bytes)
        assert pages.num_slabs <= target
        by_slab += before - cache.cached_pages
        pages, cache = scattered_cache(seed)
        while pages.num_slabs > target:
            by_age += cache.evict(1)
            pages.give_back_spare()
    print(f"pages evicted for 50 slabs of 8: {by_slab} by slab, {by_age} by age")
    assert by_slab < 0.75 * by_age


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda cache, held: cache.insert([1] * 12, held), "3 whole pages of tokens and only 2 pages"),
        (lambda cache, held: cache.insert([2] * 8, held), "page 0 is cached for another prefix"),
        (lambda cache, _: cache.insert([2] * 8, [2, 2]), "the same page stands twice"),
        (lambda cache, _: cache.insert([2] * 8, [2, 3]), "cannot retain page 3: it is free"),
        (lambda cache, _: PrefixCache(cache._pages, page_tokens=4), "have a cache already"),
        (lambda cache, _: PrefixCache(cache._pages, page_tokens=5), "page_tokens=5 must be 4"),
    ],
)
def test_misuse_is_a_clear_error_and_changes_nothing(misuse, message) -> None:  # type: ignore[no-untyped-def]
    pages, cache = make_cache()
    held = run_sequence(pages, cache, [1] * 8)
    other = pages.allocate(1)
    with pytest.raises(ValueError, match=message):
        misuse(cache, held)
    assert pages.ref_count(other[0]) == 1
    assert cache.cached_pages == 2
    assert [pages.ref_count(page) for page in held] == [2, 2]
    assert cache.match([2] * 8) == []
