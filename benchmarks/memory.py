"""What does the bookkeeping of KV pages and cached prefixes cost?

    python benchmarks/memory.py

There is no physical limit but that of Python: one dictionary access is about 0.03 us, one method call 0.05 us. A step
of the text workload makes at most one `allocate` per sequence, a request one `match` and one `insert`. Goals: `match`
of 1,000 tokens 60 us, `allocate(1)` 2 us. Pages are those of SmolLM2-135M in bfloat16 (368,640 bytes).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

from machine import describe, median, p95

from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.kv_pages import KVPages
from braid.llm_core.memory.prefix_cache import PrefixCache
from braid.llm_core.memory.residency import resident_bytes

PAGE_BYTES = 368_640
PAGE_TOKENS = 16
NUM_SAMPLES = 300


def timed(setup: Callable[[], Any], action: Callable[[Any], Any], undo: Callable[[Any], Any]) -> dict[str, float]:
    """Microseconds of `action(setup())`; `undo` gets what it returned."""
    samples = []
    for _ in range(NUM_SAMPLES):
        given = setup()
        began = time.perf_counter()
        result = action(given)
        samples.append((time.perf_counter() - began) * 1e6)
        undo(result)
    samples = samples[NUM_SAMPLES // 10 :]
    return {"median_us": round(median(samples), 2), "p95_us": round(p95(samples), 2)}


def new_memory(budget_bytes: int = 1 << 30) -> tuple[KVPages, PrefixCache]:
    pages = KVPages(Arena(budget_bytes), page_bytes=PAGE_BYTES, page_tokens=PAGE_TOKENS)
    return pages, PrefixCache(pages, page_tokens=PAGE_TOKENS)


def fill_cache(pages: KVPages, cache: PrefixCache, num_sequences: int) -> None:
    """Sequences of 1,024 tokens, half of each shared with seven others."""
    for number in range(num_sequences):
        tokens = [number // 8] * 512 + [number] * 512
        held = cache.match(tokens)
        held += pages.allocate(64 - len(held))
        cache.insert(tokens, held)
        pages.release(held)


def page_costs() -> dict[str, Any]:
    """One page and 64 pages from slabs that are there, and a slab that has to be made."""
    pages, _ = new_memory()
    warm = pages.allocate(200)
    pages.release(warm[::2])
    ledger = Arena(1 << 30)
    return {
        "lease and release": timed(
            lambda: None, lambda _: ledger.lease("step", 1 << 20, kind="workspace").release(), lambda _: None
        ),
        "allocate(1)": timed(lambda: 1, pages.allocate, pages.release),
        "release(1)": timed(lambda: pages.allocate(1), pages.release, lambda _: None),
        "allocate(64)": timed(lambda: 64, pages.allocate, pages.release),
        "release(64)": timed(lambda: pages.allocate(64), pages.release, lambda _: None),
        "addresses()": timed(lambda: None, lambda _: pages.addresses(), lambda _: None),
        "slab made and given back": timed(lambda: new_memory()[0], make_and_drop_slab, lambda _: None),
    }


def make_and_drop_slab(pages: KVPages) -> None:
    pages.release(pages.allocate(1))
    pages.give_back_spare()


def cache_costs() -> dict[str, Any]:
    """Match and insert of 1,000 tokens and evictions in a cache of about 2,300 pages."""
    pages, cache = new_memory()
    fill_cache(pages, cache, 64)
    tokens = [3] * 512 + [25] * 512
    numbers = iter(range(10**6, 10**7))

    def fresh() -> tuple[list[int], list[int]]:
        return [next(numbers)] * 1000, pages.allocate(62)

    def insert(given: tuple[list[int], list[int]]) -> list[int]:
        cache.insert(*given)
        return given[1]

    cached_pages = cache.cached_pages
    return {
        "cached_pages": cached_pages,
        "match 1000 tokens, idle prefix": timed(lambda: tokens[:1000], cache.match, pages.release),
        "release of that match": timed(lambda: cache.match(tokens[:1000]), pages.release, lambda _: None),
        "match 1000 tokens, miss": timed(lambda: [10**8] * 1000, cache.match, pages.release),
        "insert 1000 tokens, all new": timed(fresh, insert, pages.release),
        "evict(1)": timed(lambda: 1, cache.evict, lambda _: None),
        "evict(62)": timed(lambda: cached_again(pages, cache, numbers), cache.evict, lambda _: None),
    }


def cached_again(pages: KVPages, cache: PrefixCache, numbers: Any) -> int:
    """Cache 62 pages more, so that evicting 62 leaves as many as before."""
    held = pages.allocate(62)
    cache.insert([next(numbers)] * 1000, held)
    pages.release(held)
    return 62


def reclaim_costs() -> dict[str, Any]:
    """Pages lost and time taken to give 25 of 64 slabs (400 MB) back from scattered prefixes, and the fall of RSS."""
    pages, cache = new_memory(64 << 24)
    source = random.Random(0)
    running: list[tuple[list[int], list[int]]] = []
    for number in range(600):
        running.append(([number] * PAGE_TOKENS, pages.allocate(1)))
        for tokens, held in source.sample(running, min(5, len(running))):
            if pages.can_allocate(1):
                tokens += [number] * PAGE_TOKENS
                held += pages.allocate(1)
        if len(running) > 8:
            tokens, held = running.pop(source.randrange(8))
            cache.insert(tokens, held)
            pages.release(held)
    for _, held in running:
        pages.release(held)
    for slab in pages.slabs():
        if slab is not None:
            slab.fill_(1)
    del slab
    slabs, cached, resident = pages.num_slabs, cache.cached_pages, resident_bytes()
    began = time.perf_counter()
    given = cache.reclaim(25 * pages.slab_bytes)
    took_ms = (time.perf_counter() - began) * 1e3
    return {
        "slabs_before": slabs,
        "slabs_after": pages.num_slabs,
        "pages_evicted": cached - cache.cached_pages,
        "pages_of_freed_slabs": given // PAGE_BYTES,
        "took_ms": round(took_ms, 1),
        "given_mb": given >> 20,
        "rss_fell_mb": (resident - resident_bytes()) >> 20,
    }


def main() -> None:
    results = {"pages": page_costs(), "prefix_cache": cache_costs(), "reclaim": reclaim_costs(), **describe()}
    for name, cost in {**results["pages"], **results["prefix_cache"]}.items():
        if isinstance(cost, dict):
            print(f"{name:32} median {cost['median_us']:8.2f} us   p95 {cost['p95_us']:8.2f} us")
    print(f"reclaim: {results['reclaim']}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
