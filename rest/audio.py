"""`POST /v1/audio/generations`: sound from a description. It answers with a job at once, like a film.

Not OpenAI's `/v1/audio/speech`: that reads a text aloud with a named voice, while the model makes the sound that words
describe and has no voices. An endpoint that took a text to read and answered with something else would be a lie.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from braid.rest.field_kinds import SECONDS
from braid.rest.form import read_media_body
from braid.rest.job_routes import desk_of, job_response
from braid.rest.media_fields import (
    IN_PYTHON_ONLY,
    MODEL,
    PRIORITY,
    PROMPT,
    USER,
    WEBHOOK,
    Field,
    Table,
    argument_fields,
    read_fields,
)
from braid.rest.media_request import MediaRequest

KIND = "audio"
PIPELINE = "text_to_audio"

GENERATE: Table = (
    PROMPT,
    MODEL,
    Field("seconds", SECONDS, "length; becomes the nearest that the model makes"),
    *argument_fields(
        "negative_prompt", "num_frames", "frame_rate", "seed", "num_inference_steps", "sampler", "guidance", "adapters",
        "distilled_adapter", "enhance_prompt", "sigmas",
    ),
    PRIORITY,
    WEBHOOK,
    *USER,
)  # fmt: skip
_OF_PICTURES = ("height", "width", "images", "video", "waveform", "window", "num_context_frames", "stage_2_sigmas")
REFUSED = IN_PYTHON_ONLY | dict.fromkeys(_OF_PICTURES, "sound alone is made from words")


async def generate_audio(request: Request) -> Response:
    """Sound from words."""
    body = await read_media_body(request, limit_bytes=request.app.state.max_upload_bytes)
    media = MediaRequest(request, KIND, read_fields(body, GENERATE, refused=REFUSED), body)
    media.fields["pipeline"] = PIPELINE
    media.settle_shape()
    desk = desk_of(request)
    (job,) = await desk.create(media.wants())
    return await job_response(desk, job)
