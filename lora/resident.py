"""Merged weights in place of the base's copies: for a device that has room for one set of weights only.

The copies on the device hold the base or one list of adapters, never both. Going from one to another writes the tensors
that differ, each merged from (or copied from) the source, the mapped file: never from what the copy held before. So the
base comes back bit for bit after any sequence, also after one that was abandoned half-way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from torch import Tensor

from braid.errors import MemoryPressure
from braid.lora.adapter import AdapterUse
from braid.lora.apply import MergeStep, changed_bytes, finish, merge_target
from braid.lora.factors import StoredWeight
from braid.lora.layout import local_tensor
from braid.lora.store import ActiveAdapters, AdapterStore
from braid.lora.targets import Target, Targets
from braid.lora.variants import Built, HeldWeights, Network


class _Held:
    """See `variants.HeldWeights`."""

    def __init__(self, owner: ResidentWeights, weights: Mapping[str, Tensor]) -> None:
        self._owner: ResidentWeights | None = owner
        self.weights = weights

    def network(self, build: Callable[[Mapping[str, Tensor]], Network]) -> Network:
        """One for all lists of adapters: the tensors that it refers to are written to in place."""
        assert self._owner is not None, "the weights are released"
        return self._owner._built.of(self.weights, build)

    def release(self) -> None:
        if self._owner is not None:
            self._owner._num_users -= 1
            self._owner = None


class ResidentWeights:
    """Copies of a model's weights that hold the base or one list of adapters. See `variants.WeightVariants`.

    Tensors keep their addresses. Used by one thread; copies are leased by whoever made them.

    Args:
        copies: on the device, holding the base now; written to.
        source: the same tensors where they came from; only read, one at a time.
        targets: of `source`.
        name: of the model, for messages.
    Raises:
        ValueError: a copy is its source, which would be lost.
    """

    def __init__(
        self,
        copies: Mapping[str, Tensor],
        source: Mapping[str, Tensor],
        targets: Targets,
        store: AdapterStore,
        *,
        name: str = "model",
    ) -> None:
        for target in targets.targets:
            for key in target.keys:
                _require_apart(key, copies[key], source[key])
        self._copies = copies
        self._source = source
        self._targets = targets
        self._store = store
        self._name = name
        self._built = Built()
        self._num_users = 0
        self._held: ActiveAdapters = ()
        """What the present users were given."""
        self._contents: dict[str, ActiveAdapters | None] = {}
        """Per weight that does not hold the base: the adapters that change it, or None if a write was not finished."""

    def acquire(self, uses: Sequence[AdapterUse]) -> HeldWeights:
        """`acquiring`, at once."""
        return finish(self.acquiring(uses))

    def acquiring(self, uses: Sequence[AdapterUse]) -> Generator[MergeStep, None, HeldWeights]:
        """See `variants.WeightVariants`. MemoryPressure: others use the copies with other adapters now."""
        active = self._store.active(uses)
        if self._num_users and active != self._held:
            raise MemoryPressure(
                f"a second set of merged weights of {self._name}",
                needed_bytes=changed_bytes(self._source, self._targets, active or self._held),
                available_bytes=0,
            )
        for adapter, _ in active:
            adapter.file.check_unchanged()
        self._num_users += 1
        held, self._held = False, active
        try:
            for target in self._targets.targets:
                yield from self._hold(target, _those_that_change(target, active))
            held = True
            return _Held(self, self._copies)
        finally:
            if not held:
                self._num_users -= 1

    def _hold(self, target: Target, wanted: ActiveAdapters) -> Generator[MergeStep, None, None]:
        """Make one weight of the copies hold the base with the wanted adapters."""
        if self._contents.get(target.key, ()) == wanted:
            return
        source, copy = target.stored(self._source), target.stored(self._copies)
        self._contents[target.key] = None
        if wanted:
            yield from merge_target(target, source, self._source, wanted, into=copy)
            self._contents[target.key] = wanted
        else:
            yield MergeStep(target.key, source.num_bytes)
            _restore(source, copy)
            del self._contents[target.key]


def _those_that_change(target: Target, active: ActiveAdapters) -> ActiveAdapters:
    modules = {module for module, _ in target.parts}
    return tuple((adapter, strength) for adapter, strength in active if modules & adapter.modules.keys())


def _restore(source: StoredWeight, copy: StoredWeight) -> None:
    copy.weight.copy_(source.weight)
    if copy.scale is not None and source.scale is not None:
        copy.scale.copy_(source.scale)


def _require_apart(key: str, copy: Tensor, source: Tensor) -> None:
    if (copy.dtype, copy.shape) != (source.dtype, source.shape):
        raise ValueError(
            f"the copy of {key} is {copy.dtype} {tuple(copy.shape)}, its source {source.dtype} {tuple(source.shape)}"
        )
    mine, theirs = local_tensor(copy), local_tensor(source)
    if mine.numel() and mine.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr():
        raise ValueError(f"the copy of {key} is its source, which must not be written to")
