"""What crosses between HTTP and the engine about pictures, films and sound: requests and nudges in, events out.

msgspec structs, beside those of `llm_core.engine.messages`. The jobs themselves do not cross: both sides read them from
the store, and these messages may be lost with a process without a job being lost.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_PREVIEW_BYTES = 48 << 10


class ResolveMedia(msgspec.Struct, frozen=True, kw_only=True, tag="resolve_media"):
    """Judge a request before it becomes a job. Ends with `MediaResolved` or `Failed`."""

    id: str
    kind: str
    """`image`, `video` or `audio`."""
    params: dict[str, Any]
    """Plain JSON, by the names of `arguments.ARGUMENTS` and `prompt`. An upload is `{"input": name}`, and a published
    file of another job, which the asker must own, is `{"job": id, "file": name}`."""
    inputs: dict[str, str] = {}
    """Paths of uploads by name."""
    tenant: str = ""


class ActivityRequest(msgspec.Struct, frozen=True, kw_only=True, tag="activity"):
    """What the device did in the last seconds. Ends with `Activity` or `Failed`."""

    id: str
    seconds: float = 2.0


class JobsWaiting(msgspec.Struct, frozen=True, kw_only=True, tag="jobs_waiting"):
    """A nudge: there are new jobs in the store. No answer."""

    id: str = ""


class CancelJob(msgspec.Struct, frozen=True, kw_only=True, tag="cancel_job"):
    """A nudge: the cancellation of a job was asked for in the store. No answer."""

    id: str


MediaRequest = ResolveMedia | ActivityRequest
Nudge = JobsWaiting | CancelJob


class MediaResolved(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="media_resolved"):
    """A request that can be done, with every question answered: the last event of a `ResolveMedia`."""

    request_id: str
    params: dict[str, Any]
    """As they were given, and with all that was decided: the seed, the pipeline, height, width, num_frames, frame_rate,
    steps. They alone, and the inputs, fix the bytes of the result."""
    expected_bytes: int
    """What its files may take on disk while it is worked on."""
    estimate_s: float | None = None
    """Of its work alone, from what such steps took before; None where there is no such experience."""


class Activity(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="activity"):
    """The last event of an `ActivityRequest`."""

    request_id: str
    now_s: float
    """By the engine's clock, as all times here."""
    steps: tuple[dict[str, Any], ...] = ()
    """Oldest first: `number`, `workload`, `kind`, `lane`, `requests` (ids), `start_s`, `ms`."""


class JobProgress(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="job_progress"):
    """How far a job is; nobody has asked for it, and only who looks right now sees it."""

    request_id: str
    """The job's id."""
    stage: str
    step: int
    num_steps: int
    progress: int
    """Percent of the whole job."""
    eta_s: float | None = None
    preview: bytes | None = None
    """JPEG, at most `MAX_PREVIEW_BYTES`."""


class JobEnded(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="job_ended"):
    """A job has its final status in the store (or was put back in the queue: `queued`)."""

    request_id: str
    status: str


MediaEvent = MediaResolved | Activity | JobProgress | JobEnded
JobEvent = JobProgress | JobEnded
