"""Telling somebody's URL that a job has ended: signed, tried again when it fails, and never in anybody's way.

What is to be told lies in the job store (`outbox`), so a restart forgets nothing. Who receives may get a message twice,
with the same `webhook-id`. A message says which job ended and how; its content is fetched with a key.
"""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from braid.diffusion.jobs.job_trace import GiveSpan, trace_of
from braid.diffusion.jobs.outbox import DueWebhook, WebhookOutbox
from braid.diffusion.jobs.records import JobRecord
from braid.diffusion.jobs.storage import JobStorage
from braid.errors import BraidError, InvalidRequest, Unsupported
from braid.rest.guarded_http import GuardedClient, Limits, RemoteRequestFailed, parse_url
from braid.rest.webhook_secret import VARIABLE, WebhookSecret
from braid.tracing.job_span import JobTrace
from braid.tracing.span import AttributeValue, Span, child_span
from braid.tracing.trace_context import TraceContext

logger = logging.getLogger("braid.rest")

DELAYS_S = (10.0, 60.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Between attempts: eight of them in 18 hours."""
TIMEOUT_S = 15.0
MAX_CONCURRENT = 16
POLL_S = 2.0
"""How often the outbox is looked at. Jobs of other servers end there, too."""
GONE = 410
"""The other side wants no more of them."""


class WebhookEvent(msgspec.Struct, frozen=True):
    """The body, in the shape of OpenAI's webhook events."""

    id: str
    type: str
    """`video.completed`, `video.failed`, `video.cancelled`, and the same for `image` and `audio`."""
    created_at: int
    data: dict[str, str]
    object: str = "event"


def webhook_event(job: JobRecord) -> WebhookEvent:
    """What is told of a job that has ended."""
    ended_at = int(job.completed_at or job.created_at)
    return WebhookEvent(f"evt_{job.id}", f"{job.kind}.{job.status}", ended_at, {"id": job.id, "status": job.status})


def check_webhook_url(webhooks: Webhooks | None, url: object) -> str:
    """The `webhook_url` of a request.

    Raises:
        Unsupported: this server sends no webhooks.
        InvalidRequest: it is not a URL that may be asked. Its host is looked up only when there is something to tell.
    """
    if webhooks is None:
        message = f"webhook_url: this server sends no webhooks ({VARIABLE} is not set); leave the field out"
        raise Unsupported(message, param="webhook_url")
    if not isinstance(url, str):
        raise InvalidRequest("webhook_url must be a string", param="webhook_url")
    return parse_url(url, param="webhook_url").text


class Webhooks:
    """Sends what is due. One of a server; `start` it on the event loop, and `close` it before its storage.

    Args:
        give_span: gets one for each attempt.
    """

    def __init__(
        self,
        storage: JobStorage,
        secret: WebhookSecret,
        client: GuardedClient,
        *,
        delays_s: tuple[float, ...] = DELAYS_S,
        timeout_s: float = TIMEOUT_S,
        poll_s: float = POLL_S,
        give_span: GiveSpan = lambda span: None,
    ) -> None:
        self._storage = storage
        self._give_span = give_span
        self._outbox = WebhookOutbox(storage, delays_s)
        self._secret = secret
        self._client = client
        self._limits = Limits(max_bytes=0, timeout_s=timeout_s)
        self._poll_s = poll_s
        self._sending: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for what is due."""
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop. What was being sent is sent again by the next process."""
        tasks = [task for task in (self._watcher, *self._sending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await self._send_due()
            await asyncio.sleep(self._poll_s)

    async def _send_due(self) -> None:
        room = MAX_CONCURRENT - len(self._sending)
        if room <= 0:
            return
        try:
            due = await self._storage.off_loop(self._outbox.claim, room)
        except BraidError as error:
            logger.warning("webhooks wait: %s", error)
            return
        for webhook in due:
            task = asyncio.create_task(self._deliver(webhook))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _deliver(self, webhook: DueWebhook) -> None:
        began_ns, problem = time.time_ns(), None
        job = trace_of(webhook.job)
        place = None if job is None else job.child()
        try:
            is_over = await self._is_delivered(webhook, place)
        except BraidError as error:
            is_over, problem = webhook.is_last, error.code
            logger.warning("webhook of job %s, attempt %d: %s", webhook.job.id, webhook.attempt, error)
        if job is not None and place is not None:
            self._give_span(_span(webhook, job, place, began_ns, problem))
        if not is_over:
            return
        try:
            await self._storage.off_loop(self._outbox.remove, webhook.job.id)
        except BraidError as error:
            logger.warning("webhook of job %s may be sent again: %s", webhook.job.id, error)

    async def _is_delivered(self, webhook: DueWebhook, place: TraceContext | None) -> bool:
        """Whether there is no more to do.

        Args:
            place: the attempt's, for whoever is told; None where nobody traces the job.
        Raises:
            BraidError: it was not taken.
        """
        event = webhook_event(webhook.job)
        body = msgspec.json.encode(event)
        secret = self._secret.of(webhook.job.owner)
        headers = {"content-type": "application/json", **secret.headers(event.id, int(time.time()), body)}
        if place is not None:
            headers["traceparent"] = place.traceparent
        answer = await self._client.request(
            "POST", parse_url(webhook.url), limits=self._limits, headers=headers, body=body
        )
        if answer.status == GONE:
            logger.warning("webhook of job %s: the other side wants no more of them (410)", webhook.job.id)
            return True
        if not 200 <= answer.status < 300:
            raise RemoteRequestFailed(f"it was answered with status {answer.status}")
        return True


def _span(webhook: DueWebhook, job: JobTrace, place: TraceContext, began_ns: int, error: str | None) -> Span:
    """The attempt, under its job."""
    said: dict[str, AttributeValue] = {"braid.job.id": webhook.job.id, "braid.attempt": webhook.attempt}
    times = {"start_ns": began_ns, "end_ns": time.time_ns()}
    return child_span(job, "webhook", **times, kind="client", attributes=said, error=error, span_id=place.span_id)
