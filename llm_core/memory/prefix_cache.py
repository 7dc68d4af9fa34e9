"""Which pages hold the keys and values of which token prefixes: a radix tree with one node per whole page.

A node's page is right only after all pages above it, so a node can go only after everything below it: least recently
used leaves first. Nodes that a sequence still holds stay. It knows nothing of what is in a page.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

from braid.llm_core.memory.kv_pages import CACHE_ORDER, KVPages


class Node:
    """One cached page. A root has page -1 and is never free."""

    __slots__ = ("children", "is_free", "is_held", "key", "last_used", "num_busy_children", "page", "parent")

    def __init__(self, key: Hashable, page: int, parent: Node | None, last_used: int) -> None:
        self.key = key
        """The tokens of the page, as bytes; of a root, its namespace."""
        self.page = page
        self.parent = parent
        self.children: dict[Hashable, Node] = {}
        self.last_used = last_used
        """Tick at which somebody last let go of the page, or inserted the same tokens."""
        self.is_held = True
        """Whether somebody beside the cache holds the page."""
        self.num_busy_children = 0
        """Children that are not free."""
        self.is_free = False
        """Whether nobody holds this page or any below it: it could be evicted."""


class PrefixCache:
    """Shares pages between sequences that begin alike. Safe on any thread: it works under the arena's lock.

    On the arena it is the reclaimer of order 0; `pages` asks it for single pages before that.
    """

    name = "cached prefixes"

    def __init__(self, pages: KVPages, *, page_tokens: int = 16) -> None:
        if page_tokens != pages.page_tokens:
            raise ValueError(f"page_tokens={page_tokens} must be {pages.page_tokens}, as in the KV pages")
        self.page_tokens = page_tokens
        self.evictable_pages = 0
        self.num_evicted_pages = 0
        """Forgotten ever, to make room."""
        self._pages = pages
        self._lock = pages.arena.lock
        self._roots: dict[Hashable, Node] = {}
        self._nodes: dict[int, Node] = {}
        """By page."""
        self._free_in_slab: Counter[int] = Counter()
        """Evictable pages of each slab."""
        self._leaves: list[tuple[int, int]] = []
        """A heap of (last_used, page) with an entry for each evictable leaf; others are out of date and skipped."""
        self._tick = 0
        pages.attach(self)
        pages.arena.add_reclaimer(self, order=CACHE_ORDER)

    @property
    def cached_pages(self) -> int:
        return len(self._nodes)

    def match(self, token_ids: Sequence[int], *, namespace: Hashable = ()) -> list[int]:
        """The pages of the longest cached prefix of whole pages, each retained for the caller, who must release them.

        Args:
            token_ids: of one sequence from its start.
            namespace: prefixes of different namespaces are never shared (an adapter's id, a tenant).
        """
        with self._lock:
            _, pages = self._walk(self._keys(token_ids), namespace)
            self._pages.retain(pages)
            return pages

    def insert(self, token_ids: Sequence[int], pages: Sequence[int], *, namespace: Hashable = ()) -> int:
        """Share the caller's pages of these tokens; returns how many are newly cached.

        Prefixes that are cached keep the page they have. A last page that is not full is left out.

        Args:
            token_ids: of one sequence from its start, all of them computed.
            pages: the pages of those tokens in order, held by the caller; further ones are ignored.
        Raises:
            ValueError: too few pages; a page nobody holds, or that is cached for another prefix.
        """
        with self._lock:
            keys = self._keys(token_ids)
            if len(pages) < len(keys):
                raise ValueError(f"{len(keys)} whole pages of tokens and only {len(pages)} pages")
            self._tick += 1
            node, cached = self._walk(keys, namespace)
            num_cached = len(cached)
            fresh = list(pages[num_cached : len(keys)])
            if fresh:
                self._check_fresh(fresh)
                self._pages.retain(fresh)
                self._append(node, keys[num_cached:], fresh)
            elif cached:
                self._touch(node)
            return len(fresh)

    def evict(self, num_pages: int) -> int:
        """Release up to `num_pages` pages that nobody else holds, least recently used leaves first.

        Returns:
            how many were released; fewer only when nothing more is evictable.
        """
        with self._lock:
            evicted: list[int] = []
            while len(evicted) < num_pages and self._leaves:
                last_used, page = heapq.heappop(self._leaves)
                if self._is_current(last_used, page):
                    evicted.append(self._remove(self._nodes[page]))
            self._pages.release(evicted)
            self.num_evicted_pages += len(evicted)
            return len(evicted)

    def clear(self) -> None:
        """Forget everything; pages that others hold stay theirs."""
        with self._lock:
            pages = list(self._nodes)
            self._roots.clear()
            self._nodes.clear()
            self._leaves.clear()
            self._free_in_slab.clear()
            self.evictable_pages = 0
            self._pages.release(pages)

    def reclaimable_bytes(self) -> int:
        """The bytes of slabs in use that hold nothing but evictable pages."""
        return len(self._reclaimable_slabs()) * self._pages.slab_bytes

    def reclaim(self, num_bytes: int) -> int:
        """Evict what stands in the way of giving whole slabs back: those with the fewest pages first, then the least
        recently used.

        Evicting by age alone would thin out many slabs and free few.
        """
        with self._lock:
            slabs_before = self._pages.num_slabs
            for slab in sorted(self._reclaimable_slabs(), key=self._worth_of_slab):
                if (slabs_before - self._pages.num_slabs) * self._pages.slab_bytes >= num_bytes:
                    break
                self._evict_slab(slab)
                self._pages.give_back_spare()
            return (slabs_before - self._pages.num_slabs) * self._pages.slab_bytes

    def pages_shared(self, pages: Sequence[int]) -> None:
        """Somebody beside the cache holds these pages now. Called by `KVPages`."""
        for page in pages:
            node = self._nodes.get(page)
            if node is not None and not node.is_held:
                node.is_held = True
                self._make_busy(node)

    def pages_unshared(self, pages: Sequence[int]) -> None:
        """One holder of these pages is left, the cache if it has them. Called by `KVPages`."""
        self._tick += 1
        for page in pages:
            node = self._nodes.get(page)
            if node is not None:
                node.is_held = False
                node.last_used = self._tick
                self._make_free(node)

    def _keys(self, token_ids: Sequence[int]) -> list[bytes]:
        """The tokens of each whole page as bytes: cheaper to cut, hash and compare than tuples of integers."""
        page_tokens = self.page_tokens
        data = array("q", token_ids[: len(token_ids) // page_tokens * page_tokens]).tobytes()
        step = 8 * page_tokens
        return [data[start : start + step] for start in range(0, len(data), step)]

    def _walk(self, keys: list[bytes], namespace: Hashable) -> tuple[Node, list[int]]:
        """The deepest node on the way of `keys`, and the pages down to it."""
        node = self._roots.get(namespace)
        pages: list[int] = []
        if node is None:
            return Node(namespace, -1, None, 0), pages
        for key in keys:
            child = node.children.get(key)
            if child is None:
                break
            pages.append(child.page)
            node = child
        return node, pages

    def _check_fresh(self, pages: list[int]) -> None:
        for page in pages:
            if page in self._nodes:
                raise ValueError(f"page {page} is cached for another prefix")
        if len(set(pages)) < len(pages):
            raise ValueError(f"the same page stands twice in {pages}")

    def _append(self, parent: Node, keys: list[bytes], pages: list[int]) -> None:
        if parent.parent is None:
            self._roots[parent.key] = parent
        for key, page in zip(keys, pages, strict=True):
            node = Node(key, page, parent, self._tick)
            parent.children[key] = node
            self._nodes[page] = node
            self._block(parent)
            parent = node

    def _touch(self, node: Node) -> None:
        node.last_used = self._tick
        if node.is_free and not node.children:
            self._push(node)

    def _make_busy(self, node: Node) -> None:
        """`node` is held, or has got a busy child; so it and all above it cannot be evicted."""
        while node.is_free:
            node.is_free = False
            self.evictable_pages -= 1
            self._free_in_slab[node.page // self._pages.pages_per_slab] -= 1
            parent = node.parent
            assert parent is not None
            parent.num_busy_children += 1
            node = parent

    def _block(self, node: Node) -> None:
        """A busy child was added."""
        self._make_busy(node)
        node.num_busy_children += 1

    def _make_free(self, node: Node) -> None:
        """`node` is no longer held, or has lost a busy child; that may free it and nodes above it."""
        while not (node.is_free or node.is_held or node.num_busy_children):
            node.is_free = True
            self.evictable_pages += 1
            self._free_in_slab[node.page // self._pages.pages_per_slab] += 1
            if not node.children:
                self._push(node)
            parent = node.parent
            assert parent is not None
            parent.num_busy_children -= 1
            node = parent

    def _push(self, leaf: Node) -> None:
        heapq.heappush(self._leaves, (leaf.last_used, leaf.page))
        if len(self._leaves) > 64 + 2 * len(self._nodes):
            self._leaves = [entry for entry in set(self._leaves) if self._is_current(*entry)]
            heapq.heapify(self._leaves)

    def _is_current(self, last_used: int, page: int) -> bool:
        node = self._nodes.get(page)
        return node is not None and node.is_free and not node.children and node.last_used == last_used

    def _remove(self, leaf: Node) -> int:
        """Take an evictable leaf out of the tree; returns its page, still to be released."""
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.key]
        del self._nodes[leaf.page]
        self.evictable_pages -= 1
        self._free_in_slab[leaf.page // self._pages.pages_per_slab] -= 1
        if not parent.children:
            if parent.is_free:
                self._push(parent)
            elif parent.parent is None:
                del self._roots[parent.key]
        return leaf.page

    def _reclaimable_slabs(self) -> list[int]:
        pages = self._pages
        return [slab for slab, free in self._free_in_slab.items() if free and free == pages.used_in_slab(slab)]

    def _worth_of_slab(self, slab: int) -> tuple[int, int]:
        """(pages in use, last use) of a reclaimable slab."""
        return self._pages.used_in_slab(slab), max(node.last_used for node in self._nodes_in_slab(slab))

    def _evict_slab(self, slab: int) -> None:
        """Evict every page of a reclaimable slab, and so all that is cached below them, wherever it lies."""
        evicted: list[int] = []
        for node in self._nodes_in_slab(slab):
            if node.page in self._nodes:
                evicted += [self._remove(below) for below in _leaves_first(node)]
        self._pages.release(evicted)

    def _nodes_in_slab(self, slab: int) -> list[Node]:
        first = slab * self._pages.pages_per_slab
        return [node for page in range(first, first + self._pages.pages_per_slab) if (node := self._nodes.get(page))]


def _leaves_first(node: Node) -> Iterator[Node]:
    """`node` and all below it as they are now, each after its children."""
    order = [node]
    for above in order:
        order.extend(above.children.values())
    return reversed(order)
