"""Errors as events, and back: the one place where a `BraidError` is flattened for the wire."""

from __future__ import annotations

import errno
import logging
import secrets

from braid.errors import BraidError, DiskFull
from braid.llm_core.engine.messages import Failed

_log = logging.getLogger(__name__)


def failed(request_id: str, error: BraidError) -> Failed:
    """The last event of a request that ends with `error`."""
    return Failed(
        request_id,
        message=error.message,
        status=error.status,
        type=error.type,
        code=error.code,
        param=error.param,
        retry_after_s=getattr(error, "retry_after_s", None),
    )


class RequestFailed(BraidError):
    """A `Failed` event raised again on the side of the caller, with the status and code that it came with."""

    def __init__(self, event: Failed) -> None:
        super().__init__(event.message, param=event.param)
        self.status = event.status
        self.type = event.type
        self.code = event.code
        self.retry_after_s = event.retry_after_s


def as_braid_error(error: Exception, doing: str) -> BraidError:
    """A `BraidError` as it is, or of a full disk; anything else is ours to explain: it is logged, and the user gets a
    reference to that.

    Args:
        doing: what failed, for the log.
    """
    if isinstance(error, BraidError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _log.error("%s: there is no room on the disk: %s", doing, error)
        return DiskFull("there is no room on the server's disk for the result")
    reference = secrets.token_hex(6)
    _log.error("%s failed (reference %s)", doing, reference, exc_info=error)
    return BraidError(f"internal error; the server's log has the details under reference {reference}")
