"""The numbers of admission: how much one key may ask for, and how much may wait."""

from __future__ import annotations

from dataclasses import dataclass

from braid.errors import InvalidRequest, Overloaded

DEFAULT_RETRY_S = 10.0
"""Until a job ends, where nobody has an estimate yet."""


class QueueFull(Overloaded):
    """As many jobs wait as may."""

    code = "queue_full"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """What is taken on. None is no limit.

    Raises:
        InvalidRequest: a limit lets nothing pass.
    """

    requests_per_minute: int | None = None
    """Of each key: requests that make work. Looking and cancelling are free."""
    queued_jobs: int | None = 256
    """That wait, of all keys together."""
    queued_jobs_per_key: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name}={value} must be at least 1", param=name)

    def check_queue(
        self, *, num_queued: int, num_queued_of_key: int, num_new: int = 1, retry_after_s: float | None = None
    ) -> None:
        """Whether so many more jobs may wait.

        Args:
            retry_after_s: an estimate of when the next waiting job begins.
        Raises:
            QueueFull: not now.
        """
        retry_s = DEFAULT_RETRY_S if retry_after_s is None else retry_after_s
        for limit, waiting, whose in (
            (self.queued_jobs_per_key, num_queued_of_key, "jobs of this key are"),
            (self.queued_jobs, num_queued, "jobs are"),
        ):
            if limit is not None and waiting + num_new > limit:
                message = f"{waiting} {whose} waiting and {num_new} more come; {limit} may"
                raise QueueFull(message, retry_after_s=retry_s)
