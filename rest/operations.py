"""Every URL that is served, once: what answers it, what it takes, what it gives.

The app's routes and the OpenAPI document are both made of this table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.rest import activity, audio, health, images, metrics, models, timeline, traces, videos
from braid.rest.chat import ChatBody, chat_completions
from braid.rest.completions import CompletionBody, completions
from braid.rest.job_routes import EVENTS_QUERY, LIST_QUERY, JobRoutes, content_query
from braid.rest.media_fields import Table

Endpoint = Callable[[Request], Awaitable[Response]]
JSON = "application/json"
MULTIPART = "multipart/form-data"
EVENTS = "text/event-stream"
MEDIA = {
    "video": ("video/mp4", "image/webp", "image/jpeg", "image/png", "audio/wav"),
    "image": ("image/png", "image/webp", "image/jpeg"),
    "audio": ("audio/wav",),
}
"""What `/content` gives, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method of a URL."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    name: str
    """Unique."""
    body: Table | type[msgspec.Struct] | None = None
    body_types: tuple[str, ...] = (JSON,)
    takes_bytes: bool = False
    """The body is of the one type of `body_types`, and described elsewhere."""
    query: Table = ()
    gives: str = "object"
    """The name of a schema of the document."""
    media_types: tuple[str, ...] = (JSON,)
    is_job: bool = False
    """The path has the id of a job."""
    makes_work: bool = False
    """It may be refused because of load, memory, or an engine that is away."""


BOTH = (JSON, MULTIPART)


def _of_kind(kind: str, url: str, list_url: str) -> tuple[Operation, ...]:
    """What every kind of job has."""
    routes = JobRoutes(kind)
    one = f"{url}/{{id}}"
    return (
        Operation(
            method="GET", path=list_url, endpoint=routes.list, name=f"list_{kind}s", gives="JobList", query=LIST_QUERY,
            summary=f"The {kind} jobs, by time of creation",
        ),
        Operation(
            method="GET", path=one, endpoint=routes.get, name=f"get_{kind}", gives="Job", is_job=True,
            summary="One job",
        ),
        Operation(
            method="DELETE", path=one, endpoint=routes.delete, name=f"delete_{kind}", gives="Deleted", is_job=True,
            summary="Forget a job and its files; one that runs is cancelled",
        ),
        Operation(
            method="POST", path=f"{one}/cancel", endpoint=routes.cancel, name=f"cancel_{kind}", gives="Job",
            is_job=True, summary="Cancel a job that has not ended",
        ),
        Operation(
            method="GET", path=f"{one}/events", endpoint=routes.events, name=f"events_of_{kind}", query=EVENTS_QUERY,
            media_types=(EVENTS,), is_job=True, summary="Progress, previews and the end of a job, as they come",
        ),
        Operation(
            method="GET", path=f"{one}/content", endpoint=routes.content, name=f"content_of_{kind}",
            query=content_query(kind), media_types=MEDIA[kind], is_job=True, summary="A file of a finished job",
        ),
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST", path="/v1/chat/completions", endpoint=chat_completions, name="chat", body=ChatBody,
        summary="Continue a conversation", media_types=(JSON, EVENTS), makes_work=True,
    ),
    Operation(
        method="POST", path="/v1/completions", endpoint=completions, name="complete", body=CompletionBody,
        summary="Continue a text", media_types=(JSON, EVENTS), makes_work=True,
    ),
    Operation(
        method="POST", path="/v1/images/generations", endpoint=images.generate_images, name="generate_images",
        body=images.GENERATE, body_types=BOTH, gives="Images", media_types=(JSON, EVENTS), makes_work=True,
        summary="Make pictures from words, and wait for them",
    ),
    Operation(
        method="POST", path="/v1/images/edits", endpoint=images.edit_image, name="edit_image", body=images.EDIT,
        body_types=BOTH, gives="Images", media_types=(JSON, EVENTS), makes_work=True,
        summary="Make pictures from words and a picture, and wait for them",
    ),
    *_of_kind("image", "/v1/images", "/v1/images"),
    Operation(
        method="POST", path="/v1/videos", endpoint=videos.create_video, name="create_video", body=videos.CREATE,
        body_types=BOTH, gives="Job", makes_work=True, summary="Ask for a film",
    ),
    Operation(
        method="POST", path="/v1/videos/extensions", endpoint=videos.extend_video, name="extend_video",
        body=videos.EXTEND, body_types=BOTH, gives="Job", makes_work=True, summary="Ask for a film to go on",
    ),
    Operation(
        method="POST", path="/v1/videos/edits", endpoint=videos.edit_video, name="edit_video", body=videos.EDIT,
        body_types=BOTH, gives="Job", makes_work=True, summary="Ask for a part of a film to be made anew",
    ),
    Operation(
        method="POST", path="/v1/videos/{id}/remix", endpoint=videos.remix_video, name="remix_video",
        body=videos.CREATE, body_types=BOTH, gives="Job", is_job=True, makes_work=True,
        summary="Ask for a film again, with changes",
    ),
    *_of_kind("video", "/v1/videos", "/v1/videos"),
    Operation(
        method="POST", path="/v1/audio/generations", endpoint=audio.generate_audio, name="generate_audio",
        body=audio.GENERATE, body_types=BOTH, gives="Job", makes_work=True, summary="Ask for sound",
    ),
    *_of_kind("audio", "/v1/audio", "/v1/audio/generations"),
    Operation(
        method="GET", path="/v1/activity", endpoint=activity.activity, name="activity", query=activity.QUERY,
        gives="Activity", makes_work=True, summary="What the device did in the last seconds",
    ),
    Operation(
        method="GET", path="/v1/timeline", endpoint=timeline.timeline, name="timeline", query=timeline.QUERY,
        makes_work=True, summary="Every step of the device in the last minutes",
    ),
    Operation(
        method="GET", path="/v1/traces", endpoint=traces.list_traces, name="list_traces", query=traces.LIST_QUERY,
        summary="The newest traces",
    ),
    Operation(
        method="POST", path="/v1/traces", endpoint=traces.collect, name="collect_traces", takes_bytes=True,
        body_types=(traces.PROTOBUF,), media_types=(traces.PROTOBUF,), summary="Spans of other programs, by OTLP",
    ),
    Operation(
        method="GET", path="/v1/traces/{id}", endpoint=traces.get_trace, name="get_trace", query=traces.ONE_QUERY,
        summary="One trace, by its id or that of a request or job in it",
    ),
    Operation(
        method="GET", path="/v1/models", endpoint=models.list_models, name="list_models", gives="ModelList",
        makes_work=True, summary="The models, and what each can do",
    ),
    Operation(
        method="GET", path="/v1/models/{model:path}", endpoint=models.get_model, name="get_model", gives="Model",
        makes_work=True, summary="One model",
    ),
    Operation(
        method="GET", path="/health", endpoint=health.health, name="health", summary="Whether the process lives"
    ),
    Operation(
        method="GET", path="/ready", endpoint=health.ready, name="ready", gives="Ready", makes_work=True,
        summary="What can be asked for now, and why not",
    ),
    Operation(
        method="GET", path="/stats", endpoint=health.stats, name="stats", makes_work=True,
        summary="The engine's counters",
    ),
    Operation(
        method="GET", path="/metrics", endpoint=metrics.metrics, name="metrics", media_types=("text/plain",),
        summary="Metrics, as Prometheus reads them",
    ),
)  # fmt: skip
