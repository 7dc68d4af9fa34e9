"""`POST /v1/images/generations` and `/v1/images/edits`: pictures, which the request waits for.

Each picture is a job like a film, so it is durable and stands in the gallery; but its client waits, and when the client
leaves, it is cancelled.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.diffusion.jobs.records import REWRITTEN_PROMPT, JobRecord, JobStatus
from braid.errors import BraidError, InvalidRequest, MissingField, RequestCancelled, Unsupported
from braid.rest.errors import InvalidType
from braid.rest.field_kinds import (
    BOOLEAN,
    INTEGER,
    MAX_INT,
    NUMBER,
    REF,
    REF_SCHEMA,
    SIZE,
    Kind,
    choice,
    ranged,
)
from braid.rest.form import read_media_body
from braid.rest.image_events import image_events
from braid.rest.job_events import failure_of
from braid.rest.job_routes import desk_of, json_response
from braid.rest.jobs import SYNCHRONOUS, JobDesk
from braid.rest.media_fields import (
    IN_PYTHON_ONLY,
    MODEL,
    PRIORITY,
    PROMPT,
    QUALITY,
    USER,
    Field,
    Table,
    arguments_without,
    read_fields,
)
from braid.rest.media_refs import MediaRef, read_ref
from braid.rest.media_request import MediaRequest
from braid.rest.sse import EventStream, unless_client_leaves

KIND = "image"
MAX_PICTURES = 10
DEFAULT_STRENGTH = 0.5
_OF_FILMS = ("num_frames", "frame_rate", "video", "waveform", "window", "num_context_frames", "generate_audio")


def _one_ref(name: str, value: Any) -> MediaRef:
    """`image[]` of a form, or a list in JSON, with one picture in it."""
    if isinstance(value, list):
        if not value:
            raise InvalidType(f"{name} is an empty list: give a picture", param=name)
        if len(value) > 1:
            raise Unsupported(f"{name}: the model begins with one picture, not with {len(value)}", param=name)
        value = value[0]
    return read_ref(name, value)


_IMAGE = Kind(
    _one_ref,
    {"anyOf": [*REF_SCHEMA["anyOf"], {"type": "array", "items": REF_SCHEMA, "minItems": 1, "maxItems": 1}]},
    REF.parse,
    is_file=True,
)

_ANSWER: Table = (
    Field("n", ranged(INTEGER, 1, MAX_PICTURES), "so many pictures, with seeds that follow each other; 1 if left out"),
    Field("size", SIZE, "WIDTHxHEIGHT; becomes the nearest size that the model makes; or auto"),
    QUALITY,
    Field("response_format", choice("b64_json", "url"), "b64_json if left out; a URL needs the same key to be read"),
    Field("output_format", choice("png", "webp", "jpeg"), "png if left out"),
    Field("output_compression", ranged(INTEGER, 0, 100), "the quality of webp and jpeg; 100 if left out"),
    Field("background", choice("auto", "opaque"), "pictures are opaque"),
    Field("moderation", choice("auto", "low"), "accepted for clients that send it; nothing is moderated"),
    Field("stream", BOOLEAN, "answer with server-sent events: partial pictures while they are made"),
    Field("partial_images", ranged(INTEGER, 0, 3), "at most so many previews in a stream; 0 if left out"),
)
GENERATE: Table = (PROMPT, MODEL, *_ANSWER, *arguments_without(*_OF_FILMS), PRIORITY, *USER)
EDIT: Table = (
    PROMPT,
    MODEL,
    Field("image", _IMAGE, "the picture to begin with"),
    Field("strength", ranged(NUMBER, 0, 1), f"how much of it stays: 1 is all; {DEFAULT_STRENGTH} if left out"),
    *_ANSWER,
    *arguments_without(*_OF_FILMS),
    PRIORITY,
    *USER,
)
_NOT_MADE = dict.fromkeys(
    ("style", "svg", "complexity", "frame_count", "frame_duration_ms", "markup", "input_fidelity"),
    "the model has no such choice",
)
REFUSED = IN_PYTHON_ONLY | _NOT_MADE | dict.fromkeys(_OF_FILMS, "a picture has one frame and no sound")
REFUSED_IN_EDITS = REFUSED | {"mask": "the model conditions on whole pictures, not on parts of them"}


async def generate_images(request: Request) -> Response:
    """Pictures from words."""
    body = await read_media_body(request, limit_bytes=request.app.state.max_upload_bytes)
    media = MediaRequest(request, KIND, read_fields(body, GENERATE, refused=REFUSED), body)
    return await _answer(request, media, "image_generation")


async def edit_image(request: Request) -> Response:
    """Pictures from words and a picture."""
    body = await read_media_body(request, limit_bytes=request.app.state.max_upload_bytes)
    media = MediaRequest(request, KIND, read_fields(body, EDIT, refused=REFUSED_IN_EDITS), body)
    _settle_image(media.fields)
    return await _answer(request, media, "image_edit")


def _settle_image(fields: dict[str, Any]) -> None:
    """`image`, or what `images` holds in its place, is what the only frame begins with."""
    image, strength = fields.pop("image", None), fields.pop("strength", DEFAULT_STRENGTH)
    items = fields.get("images", [])
    if image is None and not items:
        raise MissingField("image is missing: the picture to begin with", param="image")
    if image is not None and items:
        raise InvalidRequest("image and images are both given; choose one", param="images")
    if len(items) > 1:
        raise Unsupported(f"images: the model begins with one picture, not with {len(items)}", param="images")
    first = {"image": image} if image is not None else items[0]
    fields["images"] = [{"strength": strength, **first}]


async def _answer(request: Request, media: MediaRequest, event_type: str) -> Response:
    fields = media.fields
    count = fields.pop("n", 1)
    as_url = fields.pop("response_format", "b64_json") == "url"
    for name in ("background", "moderation"):
        fields.pop(name, None)
    is_stream, num_partial = fields.pop("stream", False), fields.pop("partial_images", 0)
    _check_answer(fields, count=count, is_stream=is_stream, num_partial=num_partial)
    media.settle_shape()
    await media.settle_files()
    media.facts[SYNCHRONOUS] = True
    desk = desk_of(request)
    jobs = await desk.create(media.wants(count=count, fixed={"preview_every": 1} if num_partial else {}))
    if is_stream:
        return EventStream(image_events(desk, jobs[0], event_type, num_partial))
    return await _when_made(request, desk, jobs, as_url=as_url)


def _check_answer(fields: dict[str, Any], *, count: int, is_stream: bool, num_partial: int) -> None:
    """Raises: InvalidRequest: what does not go together."""
    if num_partial and not is_stream:
        raise InvalidRequest("partial_images is only for stream=true", param="partial_images")
    if is_stream and count > 1:
        raise Unsupported(f"n={count}: a stream has one picture", param="n")
    if "output_compression" in fields and fields.get("output_format", "png") == "png":
        raise InvalidRequest("output_compression is for output_format webp or jpeg", param="output_compression")
    if fields.get("seed", 0) > MAX_INT - MAX_PICTURES:
        raise InvalidRequest(f"seed={fields['seed']} must be at most {MAX_INT - MAX_PICTURES}", param="seed")


async def _when_made(request: Request, desk: JobDesk, jobs: Sequence[JobRecord], *, as_url: bool) -> Response:
    """Raises:
    JobFailed, JobCancelled, RequestCancelled: the first that did not come; the others are cancelled.
    """
    job_ids = [job.id for job in jobs]
    try:
        made = await unless_client_leaves(_all_made(desk, job_ids), request.receive)
        if made is None:
            raise RequestCancelled("the client left before its pictures were made")
    except BaseException:
        desk.end_soon(job_ids)
        raise
    return json_response(await _body(request, desk, made, as_url=as_url))


async def _all_made(desk: JobDesk, job_ids: Sequence[str]) -> list[JobRecord]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(desk, job_id)) for job_id in job_ids]
    outcomes = [task.result() for task in tasks]
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, JobRecord)]


async def _outcome(desk: JobDesk, job_id: str) -> JobRecord | Exception:
    """An error is given, not raised: of several, the group would wrap it."""
    try:
        job = await desk.wait(job_id)
    except BraidError as error:  # the server is stopping, or somebody deleted it
        return error
    return job if job.status is JobStatus.COMPLETED else failure_of(job)


async def _body(request: Request, desk: JobDesk, jobs: Sequence[JobRecord], *, as_url: bool) -> dict[str, Any]:
    params = jobs[0].params
    return {
        "created": int(jobs[0].created_at),
        "data": [await _picture(request, desk, job, as_url=as_url) for job in jobs],
        "background": "opaque",
        "output_format": params.get("output_format", "png"),
        "size": f"{params['width']}x{params['height']}",
    }


async def _picture(request: Request, desk: JobDesk, job: JobRecord, *, as_url: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": job.id, "seed": job.params.get("seed")}
    if REWRITTEN_PROMPT in job.facts:
        entry["revised_prompt"] = job.facts[REWRITTEN_PROMPT]
    if as_url:
        return entry | {"url": str(request.url_for("content_of_image", id=job.id))}
    return entry | {"b64_json": await read_base64(desk, job)}


async def read_base64(desk: JobDesk, job: JobRecord) -> str:
    """A finished picture as text."""
    data = await asyncio.to_thread(desk.store.path(job, KIND).read_bytes)
    return base64.b64encode(data).decode()
