"""What this process logs: as text or as one JSON object a line, with the trace that a record belongs to.

A record belongs to the request that the code works on (`CURRENT`), else to one that its message names. Prompts are in
no log, unless `PROMPTS_VARIABLE` says so.
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import time
from collections.abc import Callable, Mapping

from braid.errors import InvalidRequest
from braid.tracing.trace_context import TraceContext

FORMAT_VARIABLE, LEVEL_VARIABLE = "BRAID_LOG_FORMAT", "BRAID_LOG_LEVEL"
PROMPTS_VARIABLE = "BRAID_SHOW_PROMPTS"
"""1 puts what was asked into spans and logs."""
MAX_PROMPT_CHARS = 8192

CURRENT: contextvars.ContextVar[TraceContext | None] = contextvars.ContextVar("braid_trace", default=None)
"""The place in a trace of what is being done."""

TraceOf = Callable[[str], TraceContext | None]
"""From a request's id to its place in a trace."""

_REQUEST_ID = re.compile(r"\b(?:chatcmpl|cmpl|video|image|audio)[-_][0-9a-f]{16,}\b")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FORMATS = ("text", "json")


def shows_prompts(environment: Mapping[str, str]) -> bool:
    """Whether somebody asked for prompts in spans and logs."""
    return environment.get(PROMPTS_VARIABLE) == "1"


class RecordPlaces(logging.Filter):
    """Gives each record `trace_id`, `span_id` and `request_id`, empty where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.trace_of: TraceOf = lambda request_id: None
        """Of the engine in this process, once there is one."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything through."""
        named = _REQUEST_ID.search(record.getMessage())
        request_id = named[0] if named else ""
        place = CURRENT.get() or (self.trace_of(request_id) if request_id else None)
        record.request_id = request_id
        record.trace_id, record.span_id = ("", "") if place is None else (place.trace_id, place.span_id)
        return True


class TextLines(logging.Formatter):
    """For people; the trace stands at the end."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        trace_id: str = getattr(record, "trace_id", "")
        return f"{text} [trace {trace_id}]" if trace_id else text


class JsonLines(logging.Formatter):
    """For programs: one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request_id", "trace_id", "span_id"):
            if value := getattr(record, name, ""):
                found[name] = value
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


def set_up_logs(environment: Mapping[str, str], *, level: str) -> RecordPlaces:
    """Log to standard error from now on; what is given back may be told how to find traces.

    Args:
        level: unless the environment names another.
    Raises:
        InvalidRequest: a variable says what cannot be.
    """
    places = RecordPlaces()
    handler = logging.StreamHandler()
    handler.addFilter(places)
    is_json = _choice(environment, FORMAT_VARIABLE, _FORMATS, "text") == "json"
    handler.setFormatter(JsonLines() if is_json else TextLines())
    logging.basicConfig(level=_choice(environment, LEVEL_VARIABLE, _LEVELS, level), handlers=[handler])
    return places


def _choice(environment: Mapping[str, str], variable: str, known: tuple[str, ...], usual: str) -> str:
    given = environment.get(variable) or usual
    found = {word.lower(): word for word in known}.get(given.strip().lower())
    if found is None:
        raise InvalidRequest(f"{variable}={given[:40]!r} must be one of {', '.join(known)}", param=variable)
    return found
