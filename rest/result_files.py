"""Hidden states on their way between two processes: too large for the socket, so they travel as a file.

The engine's process writes it into a folder that is its own, and whoever asked reads it once. What nobody read goes
with the engine. It knows no engine and no socket.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import msgspec

from braid.errors import BraidError, EngineDied
from braid.llm_core.engine.messages import Encoded

_NAMES = ("hidden_states", "attention_mask")


class ResultFiles:
    """The engine's end. Used by one thread.

    Args:
        folder: made when the first file is written, for this user alone; it must not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_made = False

    def write(self, event: Encoded) -> Encoded:
        """The same event with a path instead of its tensors.

        Raises:
            BraidError: the file could not be written; nothing of it is left.
        """
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(getattr(event, name)) for name in _NAMES}
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            self._make_folder()
            save_file(arrays, path)
        except (OSError, SafetensorError) as error:  # the package wraps what the system says
            path.unlink(missing_ok=True)
            num_bytes = sum(array.nbytes for array in arrays.values())
            raise BraidError(f"{num_bytes:,} bytes of hidden states could not be written to a file: {error}") from error
        return Encoded(event.request_id, path=str(path))

    def _make_folder(self) -> None:
        if not self._is_made:
            self._folder.mkdir(mode=0o700)
            self._is_made = True

    def close(self) -> None:
        """Remove the folder and what nobody has read."""
        if self._is_made:
            shutil.rmtree(self._folder, ignore_errors=True)


def read_result(event: Encoded) -> Encoded:
    """The event with its arrays, float32 and int64, read from its file, which is then gone. Blocks.

    Raises:
        EngineDied: the file is not there: its engine has ended, or it was read before.
    """
    from safetensors.numpy import load_file

    assert event.path is not None
    try:
        arrays = load_file(event.path)
    except FileNotFoundError as error:
        raise EngineDied("the hidden states are gone with the engine that made them; send the request again") from error
    finally:
        discard_result(event)
    return msgspec.structs.replace(event, path=None, **{name: arrays[name] for name in _NAMES})


def discard_result(event: Encoded) -> None:
    """Remove the file of a result that nobody wants, if it has one."""
    if event.path is not None:
        Path(event.path).unlink(missing_ok=True)
