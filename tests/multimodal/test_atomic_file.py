"""A published file: whole or not there, and synchronised in the order that survives a power cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from braid.multimodal.atomic_file import AtomicFile, write_file


def test_content_is_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        told.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        told.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_file(tmp_path / "a.bin", b"whole", temporary=tmp_path / ".a")
    assert told == ["sync .a", "rename", f"sync {tmp_path.name}"]
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


def test_an_error_while_writing_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"older")

    def fail(unfinished: Path) -> None:
        unfinished.write_bytes(b"half")
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"), AtomicFile(path) as unfinished:
        fail(unfinished)
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="no room"):
            write_file(tmp_path / "a.bin", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_written_under_its_own_name_and_another_s_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_file(path, b"data", temporary=path, mode=0o600)
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "b.bin", b"other", temporary=path)
