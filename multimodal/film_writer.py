"""What all writers of moving pictures share: when a film gets its name, and when nothing is left of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.atomic_file import AtomicFile


class FilmWriter(ABC):
    """Takes frames; nothing is under `path` until `close` has returned.

    As a context manager it closes at the end and aborts when an error passes.
    """

    name: ClassVar[str]
    """What it writes, for people: "a video"."""

    def __init__(self, path: Path) -> None:
        self.num_frames = 0
        self._file = AtomicFile(path)

    @abstractmethod
    def add_frames(self, frames: Tensor) -> None:
        """Compress the next frames.

        Args:
            frames: (F, H, W, 3) uint8 on the CPU.
        """

    @abstractmethod
    def _write_end(self) -> None:
        """What comes behind the last frame."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close the temporary file, finished or not. It may be asked twice."""

    def close(self) -> Path:
        """Finish the file and give it its name.

        Raises:
            InvalidRequest: it has no frame.
        """
        try:
            if not self.num_frames:
                raise InvalidRequest(f"{self.name} needs at least one frame")
            self._write_end()
            self._let_go()
            self._file.commit()
        except BaseException:
            self.abort()
            raise
        return self._file.path

    def abort(self) -> None:
        """Give up and remove what was written."""
        try:
            self._let_go()
        finally:
            self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()
