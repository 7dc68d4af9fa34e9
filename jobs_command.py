"""`braid jobs`: the films, pictures and sounds of a running server, from the terminal."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from braid.errors import BraidError
from braid.job_client import URLS, JobClient, JobEvent
from braid.media_command import progress_line

DEFAULT_SERVER = "http://127.0.0.1:8000"
MAX_LISTED = 100
_COLUMNS = "{id:42} {status:12} {progress:>5} {age:>8}  {prompt}"
_PROMPT_WIDTH = 60


def add_jobs_command(parser: argparse.ArgumentParser) -> None:
    """The arguments of `braid jobs`."""
    parser.add_argument(
        "--server", default=os.environ.get("BRAID_SERVER", DEFAULT_SERVER), metavar="URL",
        help=f"of a running `braid serve` (also $BRAID_SERVER; default: {DEFAULT_SERVER}); $BRAID_API_KEY is its key",
    )  # fmt: skip
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the newest jobs")
    listing.add_argument("--kind", choices=tuple(URLS), help="only these")
    listing.add_argument("--limit", type=_few, default=20, metavar="N", help=f"1 to {MAX_LISTED} (default: 20)")
    listing.set_defaults(run=list_jobs)
    follow = actions.add_parser("follow", help="show how far a job is, until it ends; Ctrl-C leaves it running")
    follow.add_argument("id")
    follow.add_argument("-o", "--output", type=Path, metavar="FILE", help="save what it made")
    follow.set_defaults(run=follow_job)
    cancel = actions.add_parser("cancel", help="end a job")
    cancel.add_argument("id", nargs="+")
    cancel.set_defaults(run=cancel_jobs)
    save = actions.add_parser("save", help="save what a finished job made")
    save.add_argument("id")
    save.add_argument("output", type=Path, metavar="FILE")
    save.add_argument("--variant", help="thumbnail, spritesheet, audio, first_frame (default: the film itself)")
    save.set_defaults(run=save_job)


def _few(word: str) -> int:
    if not word.isascii() or not word.isdigit() or not 1 <= int(word) <= MAX_LISTED:
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number from 1 to {MAX_LISTED}")
    return int(word)


def _client(arguments: argparse.Namespace) -> JobClient:
    return JobClient(arguments.server, os.environ.get("BRAID_API_KEY"))


def list_jobs(arguments: argparse.Namespace) -> int:
    """`braid jobs list`."""
    client = _client(arguments)
    kinds = tuple(URLS) if arguments.kind is None else (arguments.kind,)
    jobs = [job for kind in kinds for job in client.newest(kind, arguments.limit)]
    jobs.sort(key=lambda job: job["created_at"], reverse=True)
    for job in jobs[: arguments.limit]:
        print(job_line(job, time.time()))
    if not jobs:
        print("there are no jobs")
    return 0


def job_line(job: dict[str, Any], now: float) -> str:
    """One job in one line: `video_5f.. in_progress 40%  2 min  a red circle ...`."""
    prompt = " ".join((job["prompt"] or "").split())
    return _COLUMNS.format(
        id=job["id"],
        status=job["status"],
        progress=f"{job['progress']}%",
        age=_age(now - job["created_at"]),
        prompt=prompt if len(prompt) <= _PROMPT_WIDTH else f"{prompt[: _PROMPT_WIDTH - 3]}...",
    ).rstrip()


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def follow_job(arguments: argparse.Namespace) -> int:
    """`braid jobs follow`."""
    client = _client(arguments)
    job = show(client.events(arguments.id), sys.stderr)
    if job is None:
        raise BraidError("the server ended the stream before the job ended; follow it again")
    print(f"{job['id']}: {job['status']}")
    if job["status"] != "completed":
        return 1
    if arguments.output is not None:
        client.save(arguments.id, arguments.output)
        print(arguments.output)
    return 0


def show(events: Iterable[JobEvent], out: TextIO) -> dict[str, Any] | None:
    """Draw a bar on a terminal, else a line a stage; gives the job as it ended.

    Raises:
        BraidError: the job failed; the message says why.
    """
    is_terminal, told = out.isatty(), ""
    try:
        for event in events:
            if event.name == "error":
                raise BraidError(event.data["error"]["message"])
            if event.name == "done":
                return event.data
            if event.name != "progress":
                continue
            if is_terminal:
                print(f"\r\x1b[K{event_line(event.data)}", end="", file=out, flush=True)
            elif (stage := _stage(event.data)) != told:
                print(event_line(event.data), file=out, flush=True)
                told = stage
    finally:
        if is_terminal:
            print(file=out)
    return None


def event_line(data: dict[str, Any]) -> str:
    """A `progress` event in one line."""
    return progress_line(_stage(data), data["progress"], 100, data["eta_s"])


def _stage(data: dict[str, Any]) -> str:
    if data["status"] == "queued":
        position = data["queue_position"]
        return "queued" if position is None else f"queued ({position})"
    return str(data["stage"] or data["status"])


def cancel_jobs(arguments: argparse.Namespace) -> int:
    """`braid jobs cancel`."""
    client = _client(arguments)
    for job_id in arguments.id:
        job = client.cancel(job_id)
        print(f"{job_id}: {job['status']}{'' if job['status'] == 'cancelled' else ', and is being cancelled'}")
    return 0


def save_job(arguments: argparse.Namespace) -> int:
    """`braid jobs save`."""
    _client(arguments).save(arguments.id, arguments.output, arguments.variant)
    print(arguments.output)
    return 0
