"""The one place that turns an error into an HTTP response: OpenAI's error object with its status and headers.

Also the errors that only HTTP can make: a wrong method, a body that is not JSON.
"""

from __future__ import annotations

import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from braid.errors import BraidError, InvalidRequest

DEFAULT_RETRY_AFTER_S = 1.0
"""For a refusal that passes by itself (429, 503) and comes without an estimate."""


class InvalidType(InvalidRequest):
    """A field holds a value of the wrong JSON type."""

    code = "invalid_type"


class InvalidJson(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class UnsupportedMediaType(InvalidRequest):
    """The body is of a content type that this URL does not read."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLarge(InvalidRequest):
    """The body is longer than the server reads."""

    status = 413
    code = "request_too_large"


class HttpError(BraidError):
    """An error that the router found: an unknown URL, a wrong method."""

    type = "invalid_request_error"

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    error: ErrorDetail


def error_body(error: BraidError) -> bytes:
    """The JSON of an error, for a response's body or for an SSE `data:` line."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.message, error.type, error.param, error.code)))


def error_response(error: BraidError, *, headers: dict[str, str] | None = None) -> Response:
    """The response for an error; a refusal that passes by itself says when to come again."""
    headers = getattr(error, "headers", {}) | (headers or {})
    if error.status in (429, 503):
        headers["retry-after"] = str(math.ceil(retry_after_s(error)))
    if error.status == 409:
        headers["x-should-retry"] = "false"  # OpenAI's client would: no conflict of ours goes away by asking again
    if isinstance(error, BodyTooLarge):
        headers["connection"] = "close"  # else the rest of the body would be read to its end and thrown away
    return Response(error_body(error), error.status, headers, media_type="application/json")


def retry_after_s(error: BraidError) -> float:
    """Seconds after which to try again, at least a little."""
    estimate: float | None = getattr(error, "retry_after_s", None)
    return DEFAULT_RETRY_AFTER_S if estimate is None else max(estimate, 0.001)


def from_router(error: HTTPException, *, method: str, path: str) -> HttpError:
    """An error of the router (404, 405) as one of ours."""
    if error.status_code == 404:
        return HttpError(f"there is no {method} {path}; see GET /v1/models", status=404, code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{method} is not allowed on {path}; use {allowed}"
        return HttpError(message, status=405, code="method_not_allowed")
    return HttpError(str(error.detail), status=error.status_code, code="http_error")
