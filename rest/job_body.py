"""A job as its owner sees it: OpenAI's video object, with all that we know besides. Pictures and sounds look alike."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from braid.diffusion.jobs.messages import JobProgress
from braid.diffusion.jobs.records import REWRITTEN_PROMPT, JobRecord, JobStatus
from braid.rest.job_queue import Place

ASKED = "asked"
"""The fact that holds what the client wrote, where the answer repeats it."""
SERVED_AS = "served_as"
"""The fact that holds the id of the model; the worker's own facts say which files it was."""
POLL_MS = (200, 1000, 5000)
"""Least, where nobody knows, and most time between two questions of a client that polls."""


def job_body(job: JobRecord, place: Place, progress: JobProgress | None = None) -> dict[str, Any]:
    """The JSON of a job.

    Args:
        progress: what the engine told last; newer than the job's own row.
    """
    live = progress if job.status is JobStatus.IN_PROGRESS else None
    asked = job.facts.get(ASKED, {})
    params = job.params
    return {
        "id": job.id,
        "object": job.kind,
        "model": job.facts.get(SERVED_AS, ""),
        "status": str(job.status),
        "progress": max(job.progress, live.progress) if live else job.progress,
        "created_at": int(job.created_at),
        "started_at": _whole(job.started_at),
        "completed_at": _whole(job.completed_at),
        "expires_at": _whole(job.expires_at),
        "prompt": params.get("prompt"),
        "revised_prompt": job.facts.get(REWRITTEN_PROMPT),
        "seconds": asked.get("seconds") or _seconds(params),
        "size": f"{params['width']}x{params['height']}" if "width" in params and job.kind != "audio" else None,
        "remixed_from_video_id": job.facts.get("remixed_from"),
        "extended_from_video_id": job.facts.get("extended_from"),
        "edited_from_video_id": job.facts.get("edited_from"),
        "error": None if job.error is None else msgspec.to_builtins(job.error),
        "stage": live.stage if live else job.stage or None,
        "queue_position": place.queue_position,
        "eta_s": place.eta_s if place.eta_s is None else round(place.eta_s, 3),
        "cancel_requested": job.cancel_requested,
        "files": [stored.name for stored in job.files],
        "params": params,
        "notes": [note.text for note in job.notes],
    }


def poll_after_ms(place: Place) -> int:
    """When to ask again: an eighth of what is left, within bounds."""
    least, unknown, most = POLL_MS
    return unknown if place.eta_s is None else min(most, max(least, math.ceil(place.eta_s * 1000 / 8)))


def _seconds(params: dict[str, Any]) -> str | None:
    """As text, which is how OpenAI has it."""
    frames, rate = params.get("num_frames"), params.get("frame_rate")
    if not frames or not rate:
        return None
    return f"{round(frames / rate, 3):g}"


def _whole(time: float | None) -> int | None:
    return None if time is None else int(time)
