"""Where a job stands among all that are not finished, and when it may be done: estimates, which decide nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from braid.diffusion.jobs.messages import JobProgress
from braid.diffusion.jobs.records import JobRecord, JobStatus

Progress = Callable[[str], JobProgress | None]
"""The newest progress of a job by its id."""
ESTIMATE = "estimate_s"
"""The fact that holds what the engine thought a job would take, alone."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of one job."""

    queue_position: int | None = None
    """How many jobs wait in front of it; None when it does not wait."""
    eta_s: float | None = None
    """Seconds to its end; None where nobody can know."""


def place_of(job: JobRecord, unfinished: Sequence[JobRecord], progress: Progress) -> Place:
    """Args:
    unfinished: in the order in which they are claimed.
    """
    if job.is_final:
        return Place()
    if job.status is JobStatus.IN_PROGRESS:
        return Place(None, remaining_s(job, progress))
    waiting = [other for other in unfinished if other.status is JobStatus.QUEUED]
    position = next((index for index, other in enumerate(waiting) if other.id == job.id), len(waiting))
    ahead = [other for other in unfinished if other.status is JobStatus.IN_PROGRESS] + waiting[:position]
    return Place(position, _sum([remaining_s(other, progress) for other in (*ahead, job)]))


def remaining_s(job: JobRecord, progress: Progress) -> float | None:
    """How long a job still takes once it is its turn."""
    estimate: float | None = job.facts.get(ESTIMATE)
    if job.status is JobStatus.QUEUED:
        return estimate
    newest = progress(job.id)
    if newest is not None and newest.eta_s is not None:
        return newest.eta_s
    percent = job.progress if newest is None else newest.progress
    return None if estimate is None else estimate * (100 - percent) / 100


def next_begin_s(unfinished: Sequence[JobRecord], progress: Progress) -> float | None:
    """Seconds until the first job that is worked on ends, and the next one begins; None where nobody knows."""
    left = [remaining_s(job, progress) for job in unfinished if job.status is JobStatus.IN_PROGRESS]
    return min((seconds for seconds in left if seconds is not None), default=None)


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
