"""What every Python face of an engine has: the engine, and whether it ends with the face."""

from __future__ import annotations

from typing import Generic, Protocol, Self, TypeVar


class Closable(Protocol):
    """An engine, as far as its end goes."""

    def close(self) -> None: ...


EngineType = TypeVar("EngineType", bound=Closable)


class EngineFace(Generic[EngineType]):
    """Args:
    engine: shared with other faces; `close` closes it only if this face owns it.
    """

    def __init__(self, engine: EngineType, *, owns_engine: bool = False) -> None:
        self.engine = engine
        self._owns_engine = owns_engine

    def close(self) -> None:
        """Stop the engine, unless it was given."""
        if self._owns_engine:
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
