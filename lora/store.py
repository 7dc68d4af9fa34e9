"""The adapters that are loaded, by name; each was checked against the model before it got here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from braid.errors import InvalidRequest, ModelFileError, NotFound, UnsupportedModel
from braid.llm_core.memory.arena import Arena, Lease
from braid.lora.adapter import Adapter, AdapterUse
from braid.lora.formats import LoraFile, Rename, open_lora
from braid.lora.targets import Targets

_log = logging.getLogger(__name__)

NUM_EXAMPLES = 3
"""How many names an error shows."""

ActiveAdapters = tuple[tuple[Adapter, float], ...]
"""Adapters with their strengths, in the order in which they are added."""


class AdapterStore:
    """Adapters of one model. Used by one thread at a time.

    Args:
        targets: what of the model they can change.
        arena: asked for the mapped files, as bytes that the system takes back by itself.
        rename: see `formats.open_lora`.
    """

    def __init__(self, targets: Targets, *, arena: Arena | None = None, rename: Rename | None = None) -> None:
        self._targets = targets
        self._arena = arena
        self._rename = rename
        self._adapters: dict[str, Adapter] = {}
        self._leases: dict[str, Lease] = {}

    def add(self, name: str, path: Path) -> Adapter:
        """Open a file, check it against the model, and read all of it once for NaN.

        Raises:
            InvalidRequest: the name is empty or taken.
            ModelFileError: see `formats.open_lora`; a number is not finite; the file is for another model.
            CannotFit: the file is larger than the memory budget.
        """
        if not name:
            raise InvalidRequest("the name of a LoRA must not be empty", param="name")
        if name in self._adapters:
            raise InvalidRequest(f"there is a LoRA {name!r} already, of {self._adapters[name].file.path}", param="name")
        file = open_lora(path, rename=self._rename)
        unknown = frozenset(check_against_model(file, self._targets))
        if unknown:
            _log.warning("%s: %d modules are not this model's: %s", path, len(unknown), _some(sorted(unknown)))
        file.check_finite()
        known = {module: pair for module, pair in file.modules.items() if module not in unknown}
        adapter = Adapter(name, file, known, tuple(sorted(unknown)))
        if self._arena is not None:
            self._leases[name] = self._arena.lease(
                f"the file of LoRA {name}", adapter.num_bytes, kind="mapped adapters", evictable=True
            )
        self._adapters[name] = adapter
        return adapter

    def remove(self, name: str) -> None:
        """Forget an adapter; work under way keeps its file open. Raises NotFound."""
        self[name]
        del self._adapters[name]
        if name in self._leases:
            self._leases.pop(name).release()

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._adapters:
            known = ", ".join(map(repr, self._adapters)) or "none"
            raise NotFound(f"there is no LoRA {name!r}; loaded are: {known}", param="loras")
        return self._adapters[name]

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def __iter__(self) -> Iterator[Adapter]:
        return iter(tuple(self._adapters.values()))

    def __len__(self) -> int:
        return len(self._adapters)

    def active(self, uses: Iterable[AdapterUse]) -> ActiveAdapters:
        """The adapters of `uses`, in their order; none if every strength is 0.

        One with strength 0 beside others stays: the official rule rounds its (empty) product too.

        Raises:
            NotFound: one of them is not loaded.
        """
        found = tuple((self[use.name], use.strength) for use in uses)
        return found if any(strength for _, strength in found) else ()

    def is_current(self, adapter: Adapter) -> bool:
        """Whether an adapter can still be asked for by its name."""
        return self._adapters.get(adapter.name) is adapter


def check_against_model(file: LoraFile, targets: Targets) -> tuple[str, ...]:
    """The modules of a file that the model does not have; the official rule ignores them.

    Raises:
        ModelFileError: no module is the model's, or one has another shape: the file is for another model.
        UnsupportedModel: the model stores a module in a way that has no rule.
    """
    names = list(file.modules)
    unknown = tuple(name for name in names if name not in targets.modules and name not in targets.without_rule)
    if len(unknown) == len(names):
        raise ModelFileError(
            f"{file.path} is for another model: none of its {len(names)} modules, such as {_some(names)}, is one of "
            f"this model's, such as {_some(list(targets.modules))}"
        )
    for name in names:
        if name in targets.without_rule:
            raise UnsupportedModel(
                f"{file.path} changes {name!r}, which this model stores as {targets.without_rule[name]}; merging has "
                "rules for float32, bfloat16 and float8_e4m3fn with or without a float32 scale"
            )
    wrong = [name for name in names if name in targets.modules and file.modules[name].shape != targets.modules[name]]
    if wrong:
        examples = "; ".join(
            f"{name!r} is {file.modules[name].shape} and the model's {targets.modules[name]}"
            for name in wrong[:NUM_EXAMPLES]
        )
        raise ModelFileError(
            f"{file.path} is for another model: {len(wrong)} of its {len(names)} modules have other shapes "
            f"(out_features, in_features): {examples}"
        )
    return unknown


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:NUM_EXAMPLES]))
