"""Arena, pages and radix tree together under random operations, against a model in plain dictionaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.memory.arena import Arena, Lease
from braid.llm_core.memory.kv_pages import KVPages, OutOfPages
from braid.llm_core.memory.prefix_cache import PrefixCache

PAGE = 64
TOKENS = 2
PAGES_PER_SLAB = 4
SLAB = PAGE * PAGES_PER_SLAB
NUM_SLABS = 10

Prefix = tuple[str, tuple[int, ...]]

token_lists = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=4, max_size=16)
namespaces = st.sampled_from(["", "adapter"])


class MemoryMachine(RuleBasedStateMachine):
    """`held` are the pages of running sequences; `written` is what each page in use was filled with.

    `seen` counts what happened, over all traces: a test that never runs out of pages would show nothing.
    """

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen
        self.arena = Arena(NUM_SLABS * SLAB)
        self.pages = KVPages(self.arena, page_bytes=PAGE, page_tokens=TOKENS, slab_bytes=SLAB)
        self.cache = PrefixCache(self.pages, page_tokens=TOKENS)
        self.held: list[list[int]] = []
        self.leases: list[Lease] = []
        self.written: dict[int, Prefix] = {}
        self.fill_of: dict[Prefix, int] = {}

    @initialize(permanent=st.integers(0, 2 * SLAB))
    def load_model(self, permanent: int) -> None:
        self.arena.lease("model", permanent, kind="weights", permanent=True)
        self.permanent = permanent

    @rule(tokens=token_lists, namespace=namespaces, keeps_running=st.booleans())
    def run_sequence(self, tokens: list[int], namespace: str, keeps_running: bool) -> None:
        prefixes = list(whole_prefixes(tokens, namespace))
        held = self.cache.match(tokens, namespace=namespace)
        assert [self.written[page] for page in held] == prefixes[: len(held)]
        for page, prefix in zip(held, prefixes, strict=False):
            assert self.read(page) == self.fill(prefix)
        self.seen["pages matched"] += len(held)
        held += self.allocate_or_none(len(prefixes) - len(held)) or []
        for page, prefix in zip(held, prefixes, strict=False):
            self.write(page, prefix)
        self.cache.insert(tokens[: len(held) * TOKENS], held, namespace=namespace)
        self.finish_or_keep(held, keeps_running)

    @rule(tokens=token_lists, namespace=namespaces, keeps_running=st.booleans())
    def run_without_matching(self, tokens: list[int], namespace: str, keeps_running: bool) -> None:
        prefixes = list(whole_prefixes(tokens, namespace))
        held = self.allocate_or_none(len(prefixes))
        if held is None:
            return
        for page, prefix in zip(held, prefixes, strict=True):
            self.write(page, prefix)
        cached_before = self.cache.cached_pages
        assert self.cache.insert(tokens, held, namespace=namespace) == self.cache.cached_pages - cached_before
        self.finish_or_keep(held, keeps_running)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish_sequence(self, data: st.DataObject) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pages.release(data.draw(st.permutations(held)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork_sequence(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.held))
        self.pages.retain(held)
        self.held.append(list(held))

    @rule(num_pages=st.integers(0, 4))
    def evict(self, num_pages: int) -> None:
        evictable, cached = self.cache.evictable_pages, self.cache.cached_pages
        used = self.pages.used_pages
        assert self.cache.evict(num_pages) == min(num_pages, evictable)
        self.seen["pages evicted"] += min(num_pages, evictable)
        assert cached - self.cache.cached_pages == used - self.pages.used_pages == min(num_pages, evictable)

    @rule(num_bytes=st.integers(0, 2 * SLAB))
    def reclaim(self, num_bytes: int) -> None:
        possible, before = self.cache.reclaimable_bytes(), self.arena.usage().leased_bytes
        given = self.cache.reclaim(num_bytes)
        self.seen["bytes reclaimed"] += given
        assert min(num_bytes, possible) <= given <= possible + SLAB, "at most the spare slab beside what was promised"
        assert before - self.arena.usage().leased_bytes == given

    @rule(num_bytes=st.integers(0, (NUM_SLABS + 1) * SLAB))
    def lease(self, num_bytes: int) -> None:
        if self.arena.can_lease(num_bytes):
            self.seen["leases that reclaimed"] += num_bytes > self.arena.available_bytes
            self.leases.append(self.arena.lease("video", num_bytes, kind="latents"))
        elif self.arena.could_ever_fit(num_bytes):
            self.seen["memory pressure"] += 1
            with pytest.raises(MemoryPressure) as pressed:
                self.arena.lease("video", num_bytes, kind="latents")
            free = NUM_SLABS * SLAB - self.arena.usage().leased_bytes
            assert (pressed.value.needed_bytes, pressed.value.available_bytes) == (num_bytes, free)
            assert free < num_bytes
        else:
            self.seen["refused for ever"] += 1
            with pytest.raises(CannotFit) as refused:
                self.arena.lease("video", num_bytes, kind="latents")
            room = NUM_SLABS * SLAB - self.permanent
            assert (refused.value.needed_bytes, refused.value.budget_bytes) == (num_bytes, room)
            assert room < num_bytes

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), num_bytes=st.integers(0, 3 * SLAB))
    def resize_lease(self, data: st.DataObject, num_bytes: int) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        before = lease.num_bytes
        possible = self.arena.can_lease(num_bytes - before)
        try:
            lease.resize(num_bytes)
        except MemoryPressure:
            assert not possible
            assert lease.num_bytes == before
        else:
            assert lease.num_bytes == num_bytes

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release_lease(self, data: st.DataObject) -> None:
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release()

    @precondition(lambda self: self.cache.cached_pages > 12)
    @rule()
    def clear_cache(self) -> None:
        self.cache.clear()
        assert (self.cache.cached_pages, self.cache.evictable_pages) == (0, 0)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        self.seen["operations"] += 1
        cached = set(self.cached_nodes())
        expected = Counter(page for held in self.held for page in held) + Counter(cached)
        in_use = {page for page in range(len(self.pages.slabs()) * PAGES_PER_SLAB) if self.pages.ref_count(page)}
        assert {page: self.pages.ref_count(page) for page in in_use} == dict(expected)
        assert self.pages.used_pages == len(expected)
        assert self.cache.cached_pages == len(cached)

    @invariant()
    def every_page_holds_what_was_written(self) -> None:
        self.written = {page: prefix for page, prefix in self.written.items() if self.pages.ref_count(page)}
        assert all(self.read(page) == self.fill(prefix) for page, prefix in self.written.items())

    @invariant()
    def leased_bytes_are_those_of_slabs_and_leases(self) -> None:
        usage = self.arena.usage()
        slabs = [slab for slab in self.pages.slabs() if slab is not None]
        assert usage.by_kind.get("kv", 0) == sum(slab.nbytes for slab in slabs) == self.pages.num_slabs * SLAB
        assert usage.by_kind.get("latents", 0) == sum(lease.num_bytes for lease in self.leases)
        assert usage.leased_bytes == sum(usage.by_kind.values()) == sum(usage.by_owner.values())
        assert usage.leased_bytes <= usage.high_water_bytes <= usage.budget_bytes
        assert self.pages.free_pages == self.pages.num_slabs * PAGES_PER_SLAB - self.pages.used_pages

    @invariant()
    def addresses_are_those_of_the_slabs(self) -> None:
        expected = [0 if slab is None else slab.data_ptr() for slab in self.pages.slabs()]
        assert self.pages.addresses().tolist() == expected

    @invariant()
    def at_most_one_slab_is_empty(self) -> None:
        live = [index for index, slab in enumerate(self.pages.slabs()) if slab is not None]
        assert sum(self.pages.used_in_slab(index) == 0 for index in live) <= 1

    @invariant()
    def evictable_pages_are_those_with_nothing_in_use_below(self) -> None:
        busy_prefixes = {
            (namespace, tokens[:length])
            for page, (namespace, tokens) in self.cached_nodes().items()
            if self.pages.ref_count(page) > 1
            for length in range(TOKENS, len(tokens) + 1, TOKENS)
        }
        expected = [prefix for prefix in self.cached_nodes().values() if prefix not in busy_prefixes]
        assert self.cache.evictable_pages == len(expected)

    def teardown(self) -> None:
        for held in self.held:
            self.pages.release(held)
        for lease in self.leases:
            lease.release()
        assert self.cache.evictable_pages == self.cache.cached_pages == self.pages.used_pages
        used = self.pages.used_pages
        assert self.cache.evict(10**6) == used
        assert self.pages.used_pages == 0
        self.pages.close()
        assert self.arena.usage().leased_bytes == getattr(self, "permanent", 0)

    def cached_nodes(self) -> dict[int, Prefix]:
        """The whole tree, read from its inside: page -> prefix."""
        nodes: dict[int, Prefix] = {}
        for root in self.cache._roots.values():
            waiting = list(root.children.values())
            for node in waiting:
                assert node.page not in nodes, "a page stands in the tree twice"
                nodes[node.page] = self.written[node.page]
                waiting += node.children.values()
        return nodes

    def allocate_or_none(self, num_pages: int) -> list[int] | None:
        possible = self.pages.can_allocate(num_pages)
        in_use = {page for held in self.held for page in held}
        try:
            taken = self.pages.allocate(num_pages)
        except OutOfPages:
            self.seen["out of pages"] += 1
            assert not possible
            return None
        assert possible
        assert len(set(taken)) == num_pages
        assert not in_use & set(taken), "a page is owned twice"
        assert all(self.pages.ref_count(page) == 1 for page in taken)
        return taken

    def finish_or_keep(self, held: list[int], keeps_running: bool) -> None:
        if keeps_running:
            self.held.append(held)
        else:
            self.pages.release(held)

    def fill(self, prefix: Prefix) -> int:
        return self.fill_of.setdefault(prefix, len(self.fill_of) % 255 + 1)

    def write(self, page: int, prefix: Prefix) -> None:
        slab = self.pages.slabs()[page // PAGES_PER_SLAB]
        assert slab is not None
        slab[page % PAGES_PER_SLAB] = self.fill(prefix)
        self.written[page] = prefix

    def read(self, page: int) -> int:
        slab = self.pages.slabs()[page // PAGES_PER_SLAB]
        assert slab is not None
        return int(slab[page % PAGES_PER_SLAB, PAGE - 1])


def whole_prefixes(tokens: list[int], namespace: str) -> Iterator[Prefix]:
    for end in range(TOKENS, len(tokens) + 1, TOKENS):
        yield namespace, tuple(tokens[:end])


def run_traces(num_traces: int, num_operations: int) -> Counter[str]:
    """Run random traces of up to `num_operations` each; returns how often what was seen."""
    seen: Counter[str] = Counter()
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        lambda: MemoryMachine(seen),
        settings=settings(
            max_examples=num_traces,
            stateful_step_count=num_operations,
            deadline=None,
            suppress_health_check=checks,
            database=None,
        ),
    )
    return seen


def test_memory_stays_sound_over_random_operations() -> None:
    assert run_traces(num_traces=20, num_operations=50)["operations"] > 100


@pytest.mark.soak
def test_memory_stays_sound_over_many_thousand_random_operations() -> None:
    seen = run_traces(num_traces=400, num_operations=100)
    print(dict(seen))
    assert seen["operations"] >= 10_000
    assert min(seen.values()) > 20
