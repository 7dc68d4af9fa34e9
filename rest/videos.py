"""`POST /v1/videos` and what is made of other films: remixes, extensions, edits. Each answers with a job at once."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.diffusion.jobs.records import JobRecord
from braid.errors import InvalidRequest, MissingField
from braid.rest.field_kinds import NUMBER, REF, SECONDS, SIZE, ranged
from braid.rest.form import MediaBody, read_media_body
from braid.rest.job_routes import desk_of, job_response, seer_of
from braid.rest.media_fields import (
    IN_PYTHON_ONLY,
    MODEL,
    PRIORITY,
    PROMPT,
    QUALITY,
    USER,
    WEBHOOK,
    Field,
    Table,
    arguments_without,
    read_fields,
)
from braid.rest.media_refs import MediaRef, published_file
from braid.rest.media_request import MediaRequest, with_overrides

KIND = "video"
REFERENCE = "input_reference"
STRENGTH = "input_reference_strength"

_SHARED: Table = (PROMPT, MODEL, Field("seconds", SECONDS, "length; becomes the nearest number of frames"))
_FIRST_FRAME: Table = (
    Field(REFERENCE, REF, "a picture that the film begins with"),
    Field(STRENGTH, ranged(NUMBER, 0, 1), "1 shows it exactly, 0 not at all; 1 if left out"),
)
_SIZE: Table = (Field("size", SIZE, "WIDTHxHEIGHT; becomes the nearest size that the model makes; or auto"), QUALITY)
_CLIP = Field("video", REF, "the film: a file, or the id of a finished job", is_required=True)

CREATE: Table = (*_SHARED, *_SIZE, *_FIRST_FRAME, *arguments_without(), PRIORITY, WEBHOOK, *USER)
EXTEND: Table = (
    *_SHARED,
    _CLIP,
    *arguments_without("video", "pipeline", "window", "images"),
    PRIORITY,
    WEBHOOK,
    *USER,
)
EDIT: Table = (
    *_SHARED,
    _CLIP,
    Field(STRENGTH, ranged(NUMBER, 0, 1), "without a window: how strongly the first frame is kept; 1 if left out"),
    *arguments_without("video", "pipeline", "images"),
    PRIORITY,
    WEBHOOK,
    *USER,
)


async def create_video(request: Request) -> Response:
    """A film from words, and pictures, clips or sound."""
    body = await _body(request)
    media = MediaRequest(request, KIND, read_fields(body, CREATE, refused=IN_PYTHON_ONLY), body)
    return await _answer(request, media)


async def remix_video(request: Request) -> Response:
    """The film of an earlier job with another prompt, and whatever else is given: the rest stays, its seed too."""
    body = await _body(request)
    fields = read_fields(body, CREATE, refused=IN_PYTHON_ONLY)
    original = await desk_of(request).get(request.path_params["id"], owner=seer_of(request), kind=KIND)
    media = MediaRequest(request, KIND, with_overrides(original, fields), body)
    media.facts["remixed_from"] = original.id
    media.inputs.inputs.update(await desk_of(request).inputs_of(original, _named_inputs(media.fields)))
    return await _answer(request, media)


async def extend_video(request: Request) -> Response:
    """A film that begins with the last frames of another and goes on."""
    body = await _body(request)
    media = MediaRequest(request, KIND, read_fields(body, EXTEND, refused=IN_PYTHON_ONLY), body)
    media.fields["pipeline"] = "extend"
    original = await _original(request, media)
    if original is not None:
        media.facts["extended_from"] = original.id
        media.fields.setdefault("frame_rate", original.params.get("frame_rate"))
        name = "last_frames" if original.named("last_frames") else "video"
        media.fields["video"] = published_file("video", original, name)
    return await _answer(request, media)


async def edit_video(request: Request) -> Response:
    """A part of a film made anew, where a window is given; else the film again from its first frame."""
    body = await _body(request)
    media = MediaRequest(request, KIND, read_fields(body, EDIT, refused=IN_PYTHON_ONLY), body)
    original = await _original(request, media)
    if original is not None:
        media.facts["edited_from"] = original.id
    if "window" in media.fields:
        if STRENGTH in media.fields:
            raise InvalidRequest(f"{STRENGTH} has no meaning beside a window; leave it out", param=STRENGTH)
        media.fields["pipeline"] = "retake"
        if original is not None:
            media.fields["video"] = published_file("video", original, "video")
    elif original is not None:
        del media.fields["video"]
        first_frame = published_file("video", original, "first_frame")
        strength = media.fields.pop(STRENGTH, 1.0)
        media.fields["images"] = [{"image": first_frame, "frame_index": 0, "strength": strength}]
        for name in ("width", "height", "num_frames", "frame_rate"):
            if not (name == "num_frames" and "seconds" in media.fields):
                media.fields.setdefault(name, original.params[name])
    else:
        raise MissingField("window is missing: the seconds [from, to] of an uploaded film to make anew", param="window")
    return await _answer(request, media)


async def _answer(request: Request, media: MediaRequest) -> Response:
    media.settle_shape()
    _settle_first_frame(media.fields)
    await media.settle_files()
    desk = desk_of(request)
    (job,) = await desk.create(media.wants())
    return await job_response(desk, job)


async def _body(request: Request) -> MediaBody:
    return await read_media_body(request, limit_bytes=request.app.state.max_upload_bytes)


def _settle_first_frame(fields: dict[str, Any]) -> None:
    """`input_reference` is a picture at frame 0."""
    reference, strength = fields.pop(REFERENCE, None), fields.pop(STRENGTH, None)
    if reference is None:
        if strength is not None:
            raise MissingField(f"{STRENGTH} is given without {REFERENCE}", param=REFERENCE)
        return
    others = fields.get("images", [])
    if any(item.get("frame_index", 0) == 0 for item in others):
        raise InvalidRequest(f"{REFERENCE} and images both have a picture for frame 0; give one", param=REFERENCE)
    first = {"image": reference, "frame_index": 0, "strength": 1.0 if strength is None else strength}
    fields["images"] = [first, *others]


async def _original(request: Request, media: MediaRequest) -> JobRecord | None:
    """The job that `video` names; None where it is a file."""
    ref = media.fields["video"]
    assert isinstance(ref, MediaRef)
    if ref.job_id is None:
        return None
    return await desk_of(request).get(ref.job_id, owner=seer_of(request), kind=KIND)


def _named_inputs(fields: dict[str, Any]) -> set[str]:
    """Uploads of an earlier job that are still wanted."""
    values = [fields.get("video"), fields.get("waveform"), *(item["image"] for item in fields.get("images", ()))]
    return {value["input"] for value in values if isinstance(value, dict) and "input" in value}
