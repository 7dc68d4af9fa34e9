"""`braid trace`: where a request's time went, asked of a running server."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import msgspec

from braid.errors import BraidError, InvalidRequest
from braid.tracing.span import Span
from braid.tracing.trace_store import TraceSummary
from braid.tracing.waterfall import waterfall

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "BRAID_API_KEY"
TIMEOUT_S = 10.0
MIN_WIDTH = 60


class ServerSaysNo(BraidError):
    """The server cannot be asked, or refuses; the message says why."""

    code = "server_says_no"


def add_trace_command(parser: argparse.ArgumentParser) -> None:
    """The arguments of `braid trace`."""
    parser.add_argument("id", nargs="?", help="of a trace, a request or a job; without one, the newest are listed")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--width", type=int, metavar="N", help="columns (default: the terminal's)")
    parser.add_argument("--chrome", metavar="FILE", help="write it for Perfetto instead")
    parser.set_defaults(run=trace)


def trace(arguments: argparse.Namespace) -> int:
    """Run `braid trace`.

    Raises:
        BraidError: the server cannot be asked, or has no such trace.
    """
    if arguments.width is not None and arguments.width < MIN_WIDTH:
        raise InvalidRequest(f"--width={arguments.width} must be at least {MIN_WIDTH}", param="width")
    if arguments.id is None:
        _list(_asked(arguments.url, "/v1/traces?limit=20"))
        return 0
    path = f"/v1/traces/{urllib.parse.quote(arguments.id, safe='')}"
    if arguments.chrome:
        found = _asked(arguments.url, path + "?format=chrome")
        with open(arguments.chrome, "w", encoding="utf-8") as file:
            json.dump(found, file)
        print(f"{arguments.chrome}: open it in Perfetto or chrome://tracing")
        return 0
    spans = msgspec.convert(_asked(arguments.url, path)["spans"], list[Span])
    for line in waterfall(spans, width=arguments.width or _terminal_width()):
        print(_printable(line))
    return 0


def _list(found: dict[str, Any]) -> None:
    for summary in msgspec.convert(found["data"], list[TraceSummary]):
        ms = (summary.end_ns - summary.start_ns) / 1e6
        error = f" !{summary.error}" if summary.error else ""
        state = ", under way" if summary.is_under_way else ""
        line = f"{summary.trace_id}  {ms:10.1f} ms  {summary.num_spans:5} spans  {summary.name}{error}{state}"
        print(_printable(line))


def _asked(url: str, path: str) -> dict[str, Any]:
    key = os.environ.get(KEY_VARIABLE)
    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"--url={url!r} must begin with http:// or https://", param="url")
    request = urllib.request.Request(url.rstrip("/") + path, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        with error:
            raise ServerSaysNo(_message(error)) from None
    except (OSError, ValueError) as error:
        raise ServerSaysNo(f"{url} cannot be asked: {error}; is `braid serve` running there?") from None


def _printable(text: str) -> str:
    """Other programs name spans as they like, and a terminal would obey them."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.code}"


def _terminal_width() -> int:
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, MIN_WIDTH)
    except OSError:
        return 110
