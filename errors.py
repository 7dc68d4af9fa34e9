"""Every error that a user can meet.

A leaf: it imports nothing of ours, so that all other modules may import it. Each class fixes the HTTP status and the
stable `code` of OpenAI's error object; the message names the field, the value and what would be right. Turning an error
into an HTTP response is the business of `rest.errors`, the only place that does it.
"""

from __future__ import annotations


class BraidError(Exception):
    """An error with its place in OpenAI's error object.

    Args:
        message: names the field, the value and what would be right.
        param: the request field at fault, dotted (`messages.0.content`), or None.
    """

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(BraidError):
    """A field holds a value that can never be right."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class MissingField(InvalidRequest):
    """A required field is not there."""

    code = "missing_required_parameter"


class Unsupported(InvalidRequest):
    """A documented feature that this server cannot do yet; refused rather than ignored."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested tokens are longer than the model's context."""

    code = "context_length_exceeded"


class CannotFit(InvalidRequest):
    """The request needs more bytes than the whole memory budget; it carries both numbers."""

    code = "insufficient_memory"

    def __init__(self, what: str, *, needed_bytes: int, budget_bytes: int, param: str | None = None) -> None:
        super().__init__(
            f"{what} needs {needed_bytes:,} bytes and the memory budget has room for {budget_bytes:,}", param=param
        )
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


class MemoryPressure(BraidError):
    """The bytes would fit in the budget, but not beside what is held now: nobody's fault, so retry later."""

    status = 503
    code = "memory_pressure"

    def __init__(self, what: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(f"{what} needs {needed_bytes:,} bytes and {available_bytes:,} are free now; retry later")
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class ModelNotFound(BraidError):
    """No model of that name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(BraidError):
    """No such thing: an unknown URL or id."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelFileError(BraidError):
    """A model file or folder is broken; the message names the file, the place and what is wrong."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_model_file"


class UnsupportedModel(ModelFileError):
    """The file is sound, but its architecture or tensor type is not one that we run."""

    code = "unsupported_model"


class Overloaded(BraidError):
    """The queue is full. `retry_after_s` is an estimate from the scheduler."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestCancelled(BraidError):
    """The request was cancelled by its owner; no HTTP client is usually left to read it."""

    status = 499
    type = "invalid_request_error"
    code = "request_cancelled"


class EngineDied(BraidError):
    """The engine process ended while it held this request; the request was not finished."""

    status = 503
    type = "server_error"
    code = "engine_died"


class DiskFull(BraidError):
    """A device has no room for a file. Nothing half-written is left."""

    status = 507
    code = "disk_full"


class NotReady(BraidError):
    """The server is alive and cannot take this work yet; the message says what it waits for."""

    status = 503
    type = "server_error"
    code = "not_ready"
