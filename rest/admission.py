"""Whether a request is taken on now. What is not gets 429 with the time after which to come again.

Who goes first among what was admitted is for the scheduler, which shares the device between owners.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from braid.errors import BraidError, Overloaded
from braid.rest.errors import error_response

MINUTE_S = 60.0


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
