"""Webhooks as their receivers see them: signed, tried again, kept over restarts, and only for the public internet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import InvalidWebhookSignatureError
from remote_server import PUBLIC, Internet, fixed, internet

from braid.diffusion.jobs.records import NewJob
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.errors import InvalidRequest, Unsupported
from braid.rest.guarded_http import RemoteUrlRefused
from braid.rest.webhook_secret import WebhookSecret
from braid.rest.webhooks import Webhooks, check_webhook_url
from braid.tracing.job_span import JobTrace
from braid.tracing.span import Span

SECRET = WebhookSecret(b"s" * 32)
OK = fixed(b"HTTP/1.1 204 No Content\r\n\r\n")
ERROR = fixed(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n")


def cancelled_job(
    storage: JobStorage, *, owner: str = "", url: str = "http://cats.example/hook", trace: JobTrace | None = None
) -> str:
    store = JobStore(storage)
    ids = {} if trace is None else {"trace_id": trace.trace_id, "span_id": trace.span_id}
    asked = NewJob(kind="video", params={}, owner=owner, facts={"webhook_url": url}, **ids)
    return store.cancel(store.create(asked).job.id).id


@contextlib.asynccontextmanager
async def sending(storage: JobStorage, net: Internet, **settings: Any) -> AsyncIterator[Webhooks]:
    settings = {"delays_s": (0.05, 0.05), "timeout_s": 1.0, "poll_s": 0.01} | settings
    webhooks = Webhooks(storage, SECRET, net.client(*settings.pop("trusted", ())), **settings)
    webhooks.start()
    try:
        yield webhooks
    finally:
        await webhooks.close()


async def until(check: Any, timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        await asyncio.sleep(0.01)


def parsed(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
    return {name.lower(): value for name, value in lines}, body


def unwrap(request: bytes, secret: WebhookSecret) -> Any:
    headers, body = parsed(request)
    with openai.OpenAI(api_key="none", webhook_secret=secret.text) as client:
        client.webhooks.verify_signature(body, headers)
    return json.loads(body)


async def all_told(storage: JobStorage) -> bool:
    """Whether nothing waits any more, however late it were."""

    def rows(connection: Any) -> int:
        return int(connection.exec_driver_sql("SELECT count(*) FROM braid_webhooks").scalar())

    return not await storage.off_loop(storage.database.read, rows)


async def until_told(storage: JobStorage) -> None:
    for _ in range(500):
        if await all_told(storage):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("still waiting")


def test_who_is_told_can_go_on_in_the_jobs_trace(tmp_path: Path) -> None:
    spans: list[Span] = []
    with JobStorage.open(tmp_path, seat="http") as storage:
        job = cancelled_job(storage, trace=JobTrace.begun_by(None))
        cancelled_job(storage)

        async def work() -> None:
            async with internet(hook=OK) as net:
                async with sending(storage, net, give_span=spans.append):
                    await until_told(storage)
                traceparents = [parsed(request)[0].get("traceparent") for request in net.requests]
                (span,) = spans
                assert span.attributes["braid.job.id"] == job
                assert sorted(map(str, traceparents)) == [f"00-{span.trace_id}-{span.span_id}-01", "None"]

        asyncio.run(work())


def test_the_end_of_a_job_is_told_as_openai_verifies_it(tmp_path: Path) -> None:
    with JobStorage.open(tmp_path, seat="http") as storage:
        job_id = cancelled_job(storage)

        async def work() -> None:
            async with internet(hook=OK) as net:
                async with sending(storage, net):
                    await until_told(storage)
                (request,) = net.requests
                event = unwrap(request, SECRET)
                assert (event["type"], event["object"]) == ("video.cancelled", "event")
                assert event["data"] == {"id": job_id, "status": "cancelled"}
                assert parsed(request)[0]["webhook-id"] == event["id"] == f"evt_{job_id}"
                assert net.connected == [PUBLIC]

        asyncio.run(work())


def test_a_changed_body_or_another_secret_is_no_signature() -> None:
    headers = SECRET.headers("evt_1", int(time.time()), b"{}")
    for secret, body in ((WebhookSecret(b"t" * 32), b"{}"), (SECRET, b"{ }")):
        client = openai.OpenAI(api_key="none", webhook_secret=secret.text)
        with client, pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body, headers)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the specification's reference libraries."""
    secret = WebhookSecret.parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = secret.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_owners_have_secrets_that_tell_nothing_of_each_other() -> None:
    ann, bob = SECRET.of("ann"), SECRET.of("bob")
    assert len({SECRET.key, ann.key, bob.key}) == 3
    assert SECRET.of("") == SECRET
    assert SECRET.of("ann") == ann
    assert WebhookSecret.parse(ann.text) == ann
    assert "ssss" not in repr(SECRET)


def test_a_jobs_webhook_is_signed_for_its_owner(tmp_path: Path) -> None:
    with JobStorage.open(tmp_path, seat="http") as storage:
        cancelled_job(storage, owner="ann")

        async def work() -> None:
            async with internet(hook=OK) as net:
                async with sending(storage, net):
                    await until_told(storage)
                unwrap(net.requests[0], SECRET.of("ann"))
                with pytest.raises(InvalidWebhookSignatureError):
                    unwrap(net.requests[0], SECRET)

        asyncio.run(work())


def test_failures_are_tried_again_with_the_same_id_until_it_is_taken(tmp_path: Path) -> None:
    with JobStorage.open(tmp_path, seat="http") as storage:
        cancelled_job(storage)

        async def work() -> None:
            async with internet(hook=ERROR) as net:
                async with sending(storage, net):
                    await until(lambda: len(net.requests) == 2)
                    net.answers["/hook"] = OK
                    await until_told(storage)
                assert len(net.requests) == 3
                assert len({parsed(request)[0]["webhook-id"] for request in net.requests}) == 1
                unwrap(net.requests[-1], SECRET)

        asyncio.run(work())


@pytest.mark.parametrize(
    ("answer", "num_requests"),
    [
        (ERROR, 3),
        (fixed(b"HTTP/1.1 302 Found\r\nlocation: http://cats.example/other\r\n\r\n"), 3),
        (fixed(b"HTTP/1.1 410 Gone\r\n\r\n"), 1),
        (fixed(b"nonsense"), 3),
        (fixed(b"", pause_s=5), 3),
    ],
)
def test_a_receiver_that_never_takes_it_is_given_up(tmp_path: Path, answer: Any, num_requests: int) -> None:
    with JobStorage.open(tmp_path, seat="http") as storage:
        cancelled_job(storage)

        async def work() -> None:
            async with internet(hook=answer, other=OK) as net:
                async with sending(storage, net, timeout_s=0.2):
                    await until_told(storage)
                assert len(net.requests) == num_requests
                assert not any(b"/other" in request for request in net.requests)

        asyncio.run(work())


def test_a_receiver_within_our_network_is_never_asked_unless_trusted(tmp_path: Path) -> None:
    with JobStorage.open(tmp_path, seat="http") as storage:

        async def work(trusted: tuple[str, ...]) -> list[bytes]:
            async with internet(hook=OK) as net:
                net.names["cats.example"] = ["10.0.0.7"]
                async with sending(storage, net, trusted=trusted):
                    await until_told(storage)
                return net.requests

        cancelled_job(storage)
        assert asyncio.run(work(())) == []
        cancelled_job(storage)
        assert len(asyncio.run(work(("cats.example",)))) == 1


def test_a_restart_in_the_middle_of_sending_forgets_nothing(tmp_path: Path) -> None:
    async def cut_off(storage: JobStorage) -> None:
        async with internet(hook=fixed(b"", pause_s=30)) as net, sending(storage, net, timeout_s=30):
            await until(lambda: len(net.requests) == 1)

    async def resumed(storage: JobStorage) -> int:
        async with internet(hook=OK) as net:
            async with sending(storage, net):
                await until_told(storage)
            return len(net.requests)

    with JobStorage.open(tmp_path, seat="http") as storage:
        cancelled_job(storage)
        asyncio.run(cut_off(storage))
    with JobStorage.open(tmp_path, seat="http") as storage:
        assert asyncio.run(resumed(storage)) == 1


def test_a_slow_receiver_holds_up_nobody_else(tmp_path: Path) -> None:
    with JobStorage.open(tmp_path, seat="http") as storage:
        cancelled_job(storage, url="http://slow.example/slow")

        async def work() -> None:
            async with internet(hook=OK, slow=fixed(b"", pause_s=30)) as net:
                async with sending(storage, net, timeout_s=30):
                    await until(lambda: len(net.requests) == 1)
                    await storage.off_loop(cancelled_job, storage)
                    await until(lambda: len(net.requests) == 2)
                assert b"/hook" in net.requests[1]

        asyncio.run(work())


def test_a_webhook_url_is_looked_at_before_the_job_is_taken(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="BRAID_WEBHOOK_SECRET"):
        check_webhook_url(None, "https://cats.example/")
    with JobStorage.open(tmp_path, seat="http") as storage:
        webhooks = Webhooks(storage, SECRET, Internet().client())
        assert check_webhook_url(webhooks, "https://cats.example/a?b=1") == "https://cats.example/a?b=1"
        for wrong in ("cats.example", "ftp://cats.example/", "http://a@cats.example/"):
            with pytest.raises(RemoteUrlRefused) as caught:
                check_webhook_url(webhooks, wrong)
            assert caught.value.param == "webhook_url"
        with pytest.raises(InvalidRequest, match="string"):
            check_webhook_url(webhooks, 7)


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", "c" * 44, "whsec_not base64", "whsec_" + "A" * 88])
def test_a_secret_that_is_none_is_refused_without_being_told(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        WebhookSecret.parse(text)
    told = text.removeprefix("whsec_")
    assert not told or told not in str(caught.value)
