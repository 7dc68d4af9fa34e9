"""From the fields of a request to what the desk takes in: the steps that pictures, films and sounds share."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.requests import Request

from braid.diffusion.jobs.outbox import WEBHOOK_URL
from braid.diffusion.jobs.records import JobRecord
from braid.errors import InvalidRequest
from braid.rest.form import MediaBody, Upload
from braid.rest.job_body import ASKED, SERVED_AS
from braid.rest.job_routes import desk_of, owner_of, seer_of
from braid.rest.jobs import Asked
from braid.rest.media_models import MediaModel, media_model
from braid.rest.media_refs import MediaInputs, MediaRef
from braid.rest.sampling import PRIORITIES
from braid.rest.trace_place import traceparent_of
from braid.rest.webhooks import check_webhook_url

MAX_KEY = 200
"""Of an idempotency key: pictures of one request add their number to it."""
REFS = {"video": "video", "waveform": "audio"}
"""Arguments that are one file, and of what kind."""
PARAMS = "params"


class MediaRequest:
    """One request under way.

    Args:
        fields: the values by name; taken out one by one, and what is left are arguments.
        body: what they were read from.
    """

    def __init__(self, request: Request, kind: str, fields: dict[str, Any], body: MediaBody) -> None:
        self.kind = kind
        self.fields = fields
        self.facts: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        self._request = request
        self._body = body
        self._desk = desk_of(request)
        self.inputs = MediaInputs(self._desk, seer_of(request), request.app.state.remote_files)
        self._priority = fields.pop("priority", None)
        webhook_url = fields.pop(WEBHOOK_URL, None)
        if webhook_url is not None:
            self.facts[WEBHOOK_URL] = check_webhook_url(request.app.state.webhooks, webhook_url)
        for name in ("user", "safety_identifier"):
            fields.pop(name, None)
        self.model: MediaModel = media_model(request.app.state.engine.ready, fields.pop("model", None), kind)
        self.facts[SERVED_AS] = self.model.id

    def settle_shape(self) -> None:
        """`quality`, `size` and `seconds` become arguments.

        Raises:
            InvalidRequest: the same thing is said twice.
        """
        fields = self.fields
        quality = fields.pop("quality", "auto")
        pipeline = self.model.pipeline_for(quality)
        if pipeline is not None:
            self._refuse_both("quality", "pipeline")
            fields["pipeline"] = pipeline
        size = fields.pop("size", None)
        if size is not None:
            self._refuse_both("size", "width", "height")
            fields |= self.model.size(size, fields.get("pipeline"))
        seconds = fields.pop("seconds", None)
        if seconds is not None:
            self._refuse_both("seconds", "num_frames")
            fields["num_frames"] = self.model.num_frames(seconds, fields.get("pipeline"), fields.get("frame_rate"))
            self.asked["seconds"] = f"{seconds:g}"

    async def settle_files(self) -> None:
        """References become uploads, or files of other jobs."""
        for name, wanted in REFS.items():
            ref = self.fields.get(name)
            if isinstance(ref, MediaRef):
                self.fields[name] = await self.inputs.words(name, ref, wanted)
        for index, item in enumerate(self.fields.get("images", ())):
            if isinstance(item["image"], MediaRef):
                item["image"] = await self.inputs.words(f"images.{index}.image", item["image"], "image")

    def wants(self, *, count: int = 1, fixed: dict[str, Any] | None = None) -> Asked:
        """What the desk takes in.

        Args:
            fixed: arguments that the route decides, not the client.
        Raises:
            InvalidRequest: the idempotency key cannot be one.
        """
        params = self.fields | (fixed or {})
        return Asked(
            kind=self.kind,
            params=params,
            inputs=self.inputs.inputs,
            owner=owner_of(self._request),
            priority=self._level(),
            facts=self.facts | {ASKED: self.asked | {PARAMS: self.fields}},
            request={"url": self._request.url.path, "fields": _fingerprint(self._body.fields)},
            idempotency_key=_idempotency_key(self._request),
            traceparent=traceparent_of(self._request),
            count=count,
        )

    def _level(self) -> int:
        """Higher goes first."""
        usual = "standard" if self.kind == "image" else "batch"
        return len(PRIORITIES) - 1 - PRIORITIES.index(self._priority or usual)

    def _refuse_both(self, name: str, *others: str) -> None:
        for other in others:
            if other in self.fields:
                raise InvalidRequest(f"{name} and {other} say the same thing; give one of them", param=name)


def with_overrides(original: JobRecord, fields: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an earlier job, with some replaced; its seed, too, so that what is not replaced stays alike."""
    kept = dict(original.facts.get(ASKED, {}).get(PARAMS, {}))
    if "seed" in original.params:
        kept["seed"] = original.params["seed"]
    replaced = {
        "size": ("width", "height"),
        "seconds": ("num_frames",),
        "quality": ("pipeline",),
        "input_reference": ("images",),
    }
    for name, others in replaced.items():
        if name in fields:
            for other in others:
                kept.pop(other, None)
    return kept | fields


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidRequest(
            f"the Idempotency-Key header must be 1 to {MAX_KEY} printable characters; this one has {len(key)}",
            param="idempotency_key",
        )
    return key


def _fingerprint(value: Any) -> Any:
    """The fields as they were sent, with digests for files."""
    if isinstance(value, Upload):
        return {"sha256": hashlib.sha256(value.data).hexdigest()}
    if isinstance(value, dict):
        return {key: _fingerprint(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fingerprint(inner) for inner in value]
    return value
