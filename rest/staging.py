"""Uploads on their way to the engine's judgement: files that live as long as one question."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from braid.diffusion.jobs.directory import check_file_name
from braid.diffusion.jobs.durable import disk_errors, make_folder


class Staging:
    """A folder of a data directory, for one seat. Its methods block."""

    def __init__(self, root: Path, seat: str) -> None:
        self._folder = root / "staging" / seat

    def clear(self) -> None:
        """Remove what earlier processes at this seat left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, inputs: Mapping[str, bytes]) -> Staged:
        """Write uploads.

        Raises:
            DiskFull: nothing is left.
        """
        staged = Staged(self._folder / secrets.token_hex(16), {})
        if not inputs:
            return staged
        try:
            make_folder(staged.folder)
            with disk_errors(staged.folder):
                for name, data in inputs.items():
                    check_file_name(name)
                    staged.paths[name] = str(staged.folder / name)
                    (staged.folder / name).write_bytes(data)
        except BaseException:
            staged.remove()
            raise
        return staged


class Staged:
    """Uploads as files: `paths` by name."""

    def __init__(self, folder: Path, paths: dict[str, str]) -> None:
        self.folder = folder
        self.paths = paths

    def remove(self) -> None:
        """The question is answered."""
        shutil.rmtree(self.folder, ignore_errors=True)
