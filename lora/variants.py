"""Merged weights that are kept beside their base, as leases of the arena.

A variant is the base with a list of adapters: every tensor that they change, once more. It lives while somebody uses
it and after that until the arena wants the bytes. What the base costs is not this module's business: where it is a
mapped file, the system drops the pages that a variant replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from braid.llm_core.memory.arena import Arena, Lease
from braid.lora.adapter import AdapterUse
from braid.lora.apply import MergeStep, changed_bytes, finish, merging
from braid.lora.store import ActiveAdapters, AdapterStore
from braid.lora.targets import Targets

KIND = "adapters"
RECLAIM_ORDER = 10
Network = TypeVar("Network")


class HeldWeights(Protocol):
    """Weights that stay as they are until `release`."""

    @property
    def weights(self) -> Mapping[str, Tensor]: ...

    def network(self, build: Callable[[Mapping[str, Tensor]], Network]) -> Network:
        """What `build` makes of the weights, without copying them: built for the first who asks, forgotten with them.

        All who use the weights must ask for the same.
        """
        ...

    def release(self) -> None:
        """No longer used by the caller, who must also let go of its tensors. A second call does nothing."""
        ...


class WeightVariants(Protocol):
    """Whoever has weights with adapters: `MergedWeights` keeps several, `resident.ResidentWeights` one at a time."""

    def acquiring(self, uses: Sequence[AdapterUse]) -> Generator[MergeStep, None, HeldWeights]:
        """The weights with adapters, in bounded pieces; an abandoned generator leaves nothing behind.

        Args:
            uses: in the order in which they are added: a user's own first, the distilled one last.
        Raises:
            NotFound: an adapter is not loaded.
            CannotFit: never enough memory.
            MemoryPressure: not enough memory now.
            ModelFileError: the adapter's file has changed.
            InvalidRequest: a merged number is beyond its dtype.
        """
        ...


class Built:
    """What was built of some weights, once."""

    def __init__(self) -> None:
        self._network: Any = None

    def of(self, weights: Mapping[str, Tensor], build: Callable[[Mapping[str, Tensor]], Network]) -> Network:
        """The network, built if there is none."""
        if self._network is None:
            self._network = build(weights)
        network: Network = self._network
        return network

    def forget(self) -> None:
        """Let go of it, and so of the weights."""
        self._network = None


class Variant:
    """One list of adapters merged, or on the way there; shared by all who want it. See `HeldWeights`."""

    def __init__(self, lease: Lease, pieces: Generator[MergeStep, None, Mapping[str, Tensor]]) -> None:
        self.lease = lease
        self.num_users = 0
        self.weights: Mapping[str, Tensor] | None = None
        self.built = Built()
        self.failure: Exception | None = None
        self._pieces = pieces
        self.next_step: MergeStep | None = None
        self.advance()

    def advance(self) -> None:
        """Do the next piece; what it raises, everyone who waits for the variant gets."""
        try:
            self.next_step = next(self._pieces)
        except StopIteration as stop:
            self.next_step, self.weights = None, stop.value
        except Exception as error:
            self.next_step, self.failure = None, error

    def drop(self) -> None:
        """Free the tensors and give their bytes back."""
        self._pieces.close()
        self.weights = None
        self.built.forget()
        self.lease.release()


class _Held:
    """See `HeldWeights`."""

    def __init__(self, owner: MergedWeights, variant: Variant | None, weights: Mapping[str, Tensor]) -> None:
        self._owner = owner
        self._variant = variant
        self.weights = weights

    def network(self, build: Callable[[Mapping[str, Tensor]], Network]) -> Network:
        return (self._owner._built if self._variant is None else self._variant.built).of(self.weights, build)

    def release(self) -> None:
        if self._variant is not None:
            variant, self._variant = self._variant, None
            self.weights = {}
            self._owner._let_go(variant)


class MergedWeights:
    """Variants of one model's weights, kept for as long as nobody else needs the memory. See `WeightVariants`.

    Used by one thread; only reclaiming may come from others, under the arena's lock.

    Args:
        base: never written to.
        targets: of `base`.
        name: of the model, for messages.
    """

    def __init__(
        self, base: Mapping[str, Tensor], targets: Targets, store: AdapterStore, arena: Arena, *, name: str = "model"
    ) -> None:
        self.name = f"LoRA variants of {name}"
        self._base = base
        self._targets = targets
        self._store = store
        self._arena = arena
        self._variants: dict[ActiveAdapters, Variant] = {}
        """The least recently used first."""
        self._built = Built()
        """Of the base."""
        self.num_found = 0
        """Variants that were asked for and there, ever."""
        self.num_begun = 0
        """Those that had to be merged."""
        arena.add_reclaimer(self, order=RECLAIM_ORDER)

    def acquire(self, uses: Sequence[AdapterUse]) -> HeldWeights:
        """`acquiring`, at once."""
        return finish(self.acquiring(uses))

    def acquiring(self, uses: Sequence[AdapterUse]) -> Generator[MergeStep, None, HeldWeights]:
        """See `WeightVariants`. Whoever comes second while a variant is merged helps to finish it."""
        self._drop_unreachable()
        active = self._store.active(uses)
        if not active:
            return _Held(self, None, self._base)
        variant = self._wanted(active)
        held = False
        try:
            while variant.next_step is not None:
                yield variant.next_step
                if variant.next_step is not None:  # nobody else finished it meanwhile
                    variant.advance()
            if variant.failure is not None:
                raise variant.failure
            assert variant.weights is not None
            held = True
            return _Held(self, variant, variant.weights)
        finally:
            if not held:
                self._let_go(variant)

    def reclaimable_bytes(self) -> int:
        return sum(variant.lease.num_bytes for variant in self._variants.values() if not variant.num_users)

    def reclaim(self, num_bytes: int) -> int:
        released = 0
        for active in [key for key, variant in self._variants.items() if not variant.num_users]:
            if released >= num_bytes:
                break
            released += self._drop(active)
        return released

    def close(self) -> None:
        """Give everything back; nothing may be held."""
        with self._arena.lock:
            assert not any(variant.num_users for variant in self._variants.values()), "a variant is still used"
            self.reclaim(self.reclaimable_bytes() + 1)
            self._built.forget()
            self._arena.remove_reclaimer(self)

    def _wanted(self, active: ActiveAdapters) -> Variant:
        """The variant with one more user: the one that is there, or a new one at its beginning."""
        with self._arena.lock:
            variant = self._variants.pop(active, None)
            self.num_found += variant is not None
            if variant is None:
                self.num_begun += 1
                num_bytes = changed_bytes(self._base, self._targets, active)
                lease = self._arena.lease(self.name, num_bytes, kind=KIND)
                variant = Variant(lease, merging(self._base, self._targets, active))
            self._variants[active] = variant
            variant.num_users += 1
            return variant

    def _let_go(self, variant: Variant) -> None:
        """One user less. An unfinished or failed variant that nobody waits for goes at once."""
        with self._arena.lock:
            variant.num_users -= 1
            if not variant.num_users and variant.weights is None:
                self._variants = {key: other for key, other in self._variants.items() if other is not variant}
                variant.drop()
        self._drop_unreachable()

    def _drop_unreachable(self) -> None:
        """Variants of adapters that were removed can never be asked for again."""
        with self._arena.lock:
            for active, variant in tuple(self._variants.items()):
                if not variant.num_users and not all(self._store.is_current(adapter) for adapter, _ in active):
                    self._drop(active)

    def _drop(self, active: ActiveAdapters) -> int:
        variant = self._variants.pop(active)
        num_bytes = variant.lease.num_bytes
        variant.drop()
        return num_bytes
