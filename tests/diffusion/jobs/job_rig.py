"""Storages with a clock that stands still, films of a few bytes, full disks, and calls at the same time."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.records import JobRecord, Lease, NewJob
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.worker import JobWorker

T = TypeVar("T")
VIDEO = NewJob(kind="video", params={"prompt": "a red circle, ü\u0000", "num_frames": 9}, owner="key_1")
STATE_VERSION = 3
LIMITS = JobLimits(lease_s=30.0, heartbeat_s=0.000001, checkpoint_interval_s=0.000001)


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def new(**changes: object) -> NewJob:
    return msgspec.structs.replace(VIDEO, **changes)


def opened(
    root: Path, seat: str = "engine", *, url: URL | None = None, clock: Clock | None = None, **other: object
) -> JobStorage:
    other.setdefault("limits", LIMITS)
    return JobStorage.open(root, seat=seat, url=url, clock=clock, **other)  # type: ignore[arg-type]


def claimed(worker: JobWorker) -> Lease:
    lease = worker.claim(["video"])
    assert lease is not None
    return lease


def finish(worker: JobWorker, lease: Lease, data: bytes = b"film") -> JobRecord:
    path = worker.output(lease, "video.mp4")
    path.write_bytes(data)
    return worker.finish(lease, {"video": (path, "video.mp4")})


def files_in(root: Path) -> set[str]:
    """Every file of every job."""
    return {str(path.relative_to(root / "jobs")) for path in (root / "jobs").rglob("*") if path.is_file()}


def named_by(job: JobRecord) -> set[str]:
    """The files that a row says are there."""
    return {os.path.join(job.id, stored.file) for some in (job.inputs, job.files, job.checkpoints) for stored in some}


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What they give, each called on a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


def fill_the_disk(patch: pytest.MonkeyPatch, *, after: int = 3) -> None:
    """`os.write` writes so many bytes more."""
    write, left = os.write, [after]

    def full(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        num = write(descriptor, bytes(data)[: left[0]])
        left[0] -= num
        return num

    patch.setattr(os, "write", full)
