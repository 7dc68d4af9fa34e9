"""How much one key may ask for, and how much may wait.

What is refused here gets 429 with the time after which to come again. Who goes first among what was admitted is for
the scheduler, which shares the device between owners.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from braid.errors import BraidError, InvalidRequest, Overloaded
from braid.rest.errors import error_response

MINUTE_S = 60.0
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
            QueueFull: not now. Requests that ask at the same moment may together pass by a few.
        """
        retry_s = DEFAULT_RETRY_S if retry_after_s is None else retry_after_s
        for limit, waiting, whose in (
            (self.queued_jobs_per_key, num_queued_of_key, "jobs of this key are"),
            (self.queued_jobs, num_queued, "jobs are"),
        ):
            if limit is not None and waiting + num_new > limit:
                message = f"{waiting} {whose} waiting and {num_new} more come; {limit} may"
                raise QueueFull(message, retry_after_s=retry_s)


class RequestRates:
    """So many requests a minute for each owner: a bucket that holds a minute's worth and fills evenly.

    An owner that was quiet may ask all of them at once.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._interval_s = MINUTE_S / per_minute
        self._clock = clock
        self._full_at: dict[str, float] = {}
        """When each owner's bucket is full again. Owners are keys, so there are not many."""

    def take(self, owner: str) -> None:
        """Count a request.

        Raises:
            Overloaded: the owner asked too often; this one is not counted.
        """
        now = self._clock()
        full_at = max(self._full_at.get(owner, now), now)
        wait_s = full_at - now + self._interval_s - MINUTE_S
        if wait_s > 1e-6:
            message = f"this key may ask {self._per_minute} times a minute; ask again in {wait_s:.1f} s"
            raise Overloaded(message, retry_after_s=wait_s)
        self._full_at[owner] = full_at + self._interval_s


class LimitRequests:
    """Refuses requests that make work when their owner asks too often. Inside `Authenticate`, which names the owner."""

    def __init__(self, app: ASGIApp, rates: RequestRates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 429."""
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["path"].endswith("/cancel"):
            try:
                self._rates.take(scope["state"]["owner"])
            except BraidError as error:
                await error_response(error, headers={"connection": "close"})(scope, receive, send)
                return
        await self._app(scope, receive, send)
