"""How an exception becomes a request's last event."""

from __future__ import annotations

import logging
import secrets

from braid.errors import BraidError, Overloaded
from braid.llm_core.engine.messages import Failed

_log = logging.getLogger(__name__)


def failed(request_id: str, error: BraidError) -> Failed:
    """The last event of a request that ended with `error`."""
    return Failed(
        request_id=request_id,
        message=error.message,
        status=error.status,
        type=error.type,
        code=error.code,
        param=error.param,
        retry_after_s=error.retry_after_s if isinstance(error, Overloaded) else None,
    )


def raised(failure: Failed) -> BraidError:
    """The error that a `Failed` stands for, to be raised again by whoever asked for that request."""
    error = BraidError(failure.message, param=failure.param)
    error.status, error.type, error.code = failure.status, failure.type, failure.code
    return error


def as_braid_error(error: Exception, doing: str) -> BraidError:
    """A `BraidError` as it is; anything else is ours to explain: it is logged, and the user gets a reference to that.

    Args:
        doing: what failed, for the log.
    """
    if isinstance(error, BraidError):
        return error
    reference = secrets.token_hex(6)
    _log.error("%s failed (reference %s)", doing, reference, exc_info=error)
    return BraidError(f"internal error; the server's log has the details under reference {reference}")
