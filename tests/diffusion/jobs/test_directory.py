"""Whose temporary files a process may clear away when it sits down."""

from __future__ import annotations

from pathlib import Path

import pytest

from braid.diffusion.jobs.directory import DataDirectory


@pytest.mark.parametrize("around", ["{}", ".{}.1a2b3c4d.part"])
def test_what_a_living_process_writes_is_left_alone(tmp_path: Path, around: str) -> None:
    left = DataDirectory.take(tmp_path, "left")
    path = left.temporary("video_1", "video.mp4", token=1)
    path = path.with_name(around.format(path.name))
    path.write_bytes(b"half a film")
    DataDirectory.take(tmp_path, "right").close()
    assert path.exists()
    left.close()
    DataDirectory.take(tmp_path, "right").close()
    assert not path.exists()
