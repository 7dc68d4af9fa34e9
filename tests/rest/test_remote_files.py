"""Files by URL: whom the server asks, what it takes, and when it stops."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
import zlib
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remote_server import PUBLIC, Answer, file, fixed, internet, redirect

from braid.errors import BraidError, Unsupported
from braid.rest.guarded_http import (
    GuardedClient,
    RemoteRequestFailed,
    RemoteUrlRefused,
    connect_to,
    parse_url,
    resolve_name,
)
from braid.rest.remote_files import RemoteFile, RemoteFileLimits, RemoteFiles

OK = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
PNG = b"\x89PNG picture"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def fetched(
    answer: Answer, *, url: str = "http://cats.example/x", kind: str = "image", **limits: Any
) -> RemoteFile:
    async with internet(x=answer) as net:
        files = RemoteFiles(net.client(), RemoteFileLimits(**{"max_bytes": 1000, "timeout_s": 5, **limits}))
        return await files.fetch(url, kind=kind, param="input_reference")


# -- what works --------------------------------------------------------------------------------------------------------


def test_a_file_is_fetched_from_the_checked_address() -> None:
    async def work() -> None:
        async with internet(**{"cat.png?size=2": file(PNG, "image/PNG; charset=x")}) as net:
            found = await RemoteFiles(net.client()).fetch(
                "http://Cats.example:8080/cat.png?size=2#top", kind="image", param="image"
            )
        assert found == RemoteFile(PNG, "image/png", "http://Cats.example:8080/cat.png?size=2#top")
        assert (net.resolved, net.connected) == (["cats.example"], [PUBLIC])
        head = net.requests[0].lower()
        assert head.startswith(b"get /cat.png?size=2 http/1.1\r\n")
        assert b"host: cats.example:8080\r\n" in head
        assert b"accept-encoding: identity\r\n" in head
        assert b"authorization" not in head
        assert b"cookie" not in head

    run(work())


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "binary/octet-stream"])
def test_a_picture_and_what_its_store_does_not_know_are_taken(content_type: str) -> None:
    assert run(fetched(file(PNG, content_type))).data == PNG


def test_a_file_in_chunks_and_one_without_a_length_are_taken() -> None:
    chunked = CHUNKED + b"4\r\n\x89PNG\r\n8\r\n picture\r\n0\r\n\r\n"
    assert run(fetched(fixed(chunked))).data == PNG
    assert run(fetched(fixed(OK + b"\r\n" + PNG))).data == PNG


def test_redirects_are_followed_to_the_file() -> None:
    async def work() -> None:
        answers = {"a": redirect("/b", 301), "b": redirect("//dogs.example/c", 307), "c": file(PNG)}
        async with internet(**answers) as net:
            found = await RemoteFiles(net.client()).fetch("http://cats.example/a", kind="image", param="image")
        assert (found.data, found.url) == (PNG, "http://dogs.example/c")
        assert net.resolved == ["cats.example", "cats.example", "dogs.example"]

    run(work())


def test_the_next_address_of_a_name_is_tried() -> None:
    async def work() -> None:
        async with internet(x=file(PNG)) as net:
            net.names["cats.example"] = ["2606:4700::1", PUBLIC]
            net.unreachable.add("2606:4700::1")
            found = await RemoteFiles(net.client()).fetch("http://cats.example/x", kind="image", param="image")
        assert found.data == PNG
        assert net.connected == ["2606:4700::1", PUBLIC]

    run(work())


# -- whom it does not ask ----------------------------------------------------------------------------------------------


def test_without_the_option_no_url_is_fetched() -> None:
    with pytest.raises(Unsupported, match="--allow-remote-urls") as caught:
        run(RemoteFiles().fetch("http://cats.example/x", kind="image", param="input_reference"))
    assert caught.value.param == "input_reference"
    assert not RemoteFiles().is_allowed


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.7"], ["::1"], ["169.254.169.254"], ["::ffff:10.0.0.1"], [PUBLIC, "192.168.0.1"], []],
)
def test_a_name_with_any_private_address_is_not_asked(addresses: list[str]) -> None:
    async def work() -> None:
        async with internet(x=file(PNG)) as net:
            net.names["cats.example"] = addresses
            with pytest.raises(RemoteUrlRefused, match="no address on the public internet") as caught:
                await RemoteFiles(net.client()).fetch("http://cats.example/x", kind="image", param="image")
            assert not net.connected
            assert not any(address in str(caught.value) for address in addresses)  # no map of our network

    run(work())


def test_a_name_that_changes_its_mind_is_asked_at_the_checked_address() -> None:
    async def work() -> None:
        async with internet(x=file(PNG)) as net:
            resolve = net._resolve

            async def rebind(host: str, port: int) -> Any:
                found = await resolve(host, port)
                net.names[host] = ["127.0.0.1"]  # from the second look on
                return found

            client = GuardedClient(resolve=rebind, connect=net._connect)
            found = await RemoteFiles(client).fetch("http://cats.example/x", kind="image", param="image")
            assert (found.data, net.resolved, net.connected) == (PNG, ["cats.example"], [PUBLIC])
            with pytest.raises(RemoteUrlRefused):
                await RemoteFiles(client).fetch("http://cats.example/x", kind="image", param="image")

    run(work())


@pytest.mark.parametrize(
    "location",
    [
        *("http://127.0.0.1/x", "http://[::1]:8000/x", "http://inside.example/x", "http://169.254.169.254/latest"),
        *("file:///etc/passwd", "gopher://cats.example/", "//10.0.0.1/x", "http://u:p@cats.example/x"),
        *("http://cats.example:22/x", "data:image/png;base64,AAAA"),
    ],
)
def test_a_redirect_to_our_own_network_is_refused(location: str) -> None:
    async def work() -> None:
        async with internet(x=redirect(location)) as net:
            net.names["inside.example"] = ["192.168.0.5"]
            with pytest.raises(RemoteUrlRefused):
                await RemoteFiles(net.client()).fetch("http://cats.example/x", kind="image", param="image")
            assert net.connected == [PUBLIC]

    run(work())


def test_a_circle_of_redirects_ends() -> None:
    with pytest.raises(RemoteRequestFailed, match="more than 3 redirects"):
        run(fetched(redirect("/x")))
    with pytest.raises(RemoteRequestFailed, match="more than 3 redirects"):
        run(fetched(fixed(b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n")))


def test_a_redirect_from_https_to_http_is_refused() -> None:
    async def work() -> None:
        async with internet(x=redirect("http://cats.example/y"), y=file(PNG)) as net:
            with pytest.raises(RemoteUrlRefused, match="from https to http"):
                await RemoteFiles(net.client()).fetch("https://cats.example/x", kind="image", param="image")

    run(work())


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://0x7f.1/", "http://127.1/"),
        *(
            "http://0/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://0177.0.0.1/",
        ),
    ],
)
def test_no_way_of_writing_this_machine_reaches_it(url: str) -> None:
    """With the system's own resolver, which understands all of them."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        here = url.removesuffix("/") + f":{listening.getsockname()[1]}/"
        with pytest.raises(RemoteUrlRefused):
            run(RemoteFiles(GuardedClient()).fetch(here, kind="image", param="image"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://cats.example/x", "http"),
        ("file:///etc/passwd", "http"),
        ("/etc/passwd", "http"),
        ("", "characters"),
        ("http://", "plain host"),
        ("http:///x", "plain host"),
        ("http://user@cats.example/", "user name"),
        ("http://good.example\\@127.0.0.1/", "%XX"),
        ("http://cats.example/a b", "%XX"),
        ("http://cats.example/\r\nHost: evil", "%XX"),
        ("http://cats.example/ä", "%XX"),
        ("http://cäts.example/", "%XX"),
        ("http://[::1%25lo]/", "plain host"),
        ("http://[nonsense/", "not a URL"),
        ("http://cats.example:99999/", "not a URL"),
        ("http://cats.example:25/", "port 25"),
        ("http://cats.example:0/", "port 0"),
        ("http://cats.example/" + 2048 * "a", "2068 characters"),
    ],
)
def test_a_url_that_can_be_misunderstood_is_refused(url: str, why: str) -> None:
    with pytest.raises(RemoteUrlRefused, match=why):
        parse_url(url)


@given(st.text(max_size=60) | st.text("htps:/.@[]%#?\\0123x \n", max_size=60).map(lambda tail: "http://" + tail))
def test_any_text_is_a_plain_url_or_refused(text: str) -> None:
    try:
        url = parse_url(text)
    except RemoteUrlRefused:
        return
    assert url.scheme in ("http", "https")
    assert url.target.startswith("/")
    assert url.target.isascii()
    assert " " not in url.target


def test_a_trusted_host_may_be_private() -> None:
    async def work() -> None:
        async with internet(x=file(PNG)) as net:
            net.names = {"store.lan": ["10.0.0.7"], "other.lan": ["10.0.0.8"]}
            files = RemoteFiles(net.client("Store.lan"))
            assert (await files.fetch("http://store.lan/x", kind="image", param="image")).data == PNG
            with pytest.raises(RemoteUrlRefused):
                await files.fetch("http://other.lan/x", kind="image", param="image")

    run(work())


# -- what it does not take ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (file(b"<html>", "text/html"), "'text/html', not image"),
        (file(b"<svg/>", "image/svg+xml"), "svg"),
        (file(PNG, "video/mp4"), "video/mp4"),
        (fixed(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), "status 404"),
        (fixed(b"HTTP/1.1 206 Partial\r\ncontent-length: 1\r\n\r\nx"), "status 206"),
        (fixed(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "status 304"),
        (file(bytes(1001)), "1,001 bytes; at most 1,000"),
        (fixed(OK + b"\r\n" + bytes(1001)), "more than 1,000 bytes"),
        (fixed(CHUNKED + 2 * (b"1f4\r\n" + bytes(500) + b"\r\n") + b"1\r\nx"), "more than 1,000"),
        (fixed(CHUNKED + b"ffffffff\r\n" + bytes(2000)), "more than 1,000"),
        (fixed(OK + b"content-length: 100\r\n\r\nshort"), "as HTTP"),
        (fixed(OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nshort"), "as HTTP"),
        (fixed(OK + b"content-length: -5\r\n\r\nshort"), "as HTTP"),
        (fixed(OK + b"content-length: " + 5000 * b"9" + b"\r\n\r\nshort"), "as HTTP"),
        (fixed(CHUNKED + b"zz\r\n"), "as HTTP"),
        (fixed(OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "as HTTP"),
        (fixed(OK + 20_000 * b"x-filler: y\r\n" + b"\r\n"), "as HTTP"),
        (fixed(b"SSH-2.0-OpenSSH\r\n"), "as HTTP"),
        (fixed(b""), "as HTTP"),
        (file(zlib.compress(bytes(10**6)), "image/png", "content-encoding: gzip"), "compressed .'gzip'"),
        (file(zlib.compress(bytes(10**6)), "image/png", "content-encoding: deflate"), "compressed"),
    ],
)
def test_what_is_not_such_a_file_within_the_limits_is_refused(answer: Answer, why: str) -> None:
    with pytest.raises(RemoteRequestFailed, match=why) as caught:
        run(fetched(answer))
    assert caught.value.param == "input_reference"
    assert caught.value.message.startswith("input_reference: ")


def test_what_a_server_sends_beyond_its_own_word_is_not_taken() -> None:
    assert run(fetched(fixed(OK + b"content-length: 4\r\n\r\n\x89PNG and more"))).data == b"\x89PNG"


def test_less_than_the_servers_limit_may_be_asked_for() -> None:
    async def work() -> None:
        async with internet(x=file(PNG)) as net:
            with pytest.raises(RemoteRequestFailed, match="at most 5"):
                await RemoteFiles(net.client()).fetch("http://c.example/x", kind="image", param="image", max_bytes=5)

    run(work())


# -- when it stops -----------------------------------------------------------------------------------------------------

DRIP = [OK + b"content-length: 900\r\n\r\n", *(900 * [b"x"])]


@pytest.mark.parametrize(
    "answer",
    [
        fixed(*DRIP, pause_s=0.01),
        fixed(*(bytes([byte]) for byte in OK), pause_s=0.05),
        fixed(*(1000 * [b"HTTP/1.1 100 Continue\r\n\r\n"]), pause_s=0.01),
        fixed(b"", pause_s=10),
    ],
)
def test_a_server_that_drips_is_left_in_time(answer: Answer) -> None:
    started = time.monotonic()
    with pytest.raises(RemoteRequestFailed, match=r"within 0\.3 s"):
        run(fetched(answer, timeout_s=0.3))
    assert time.monotonic() - started < 3


def test_redirects_do_not_begin_the_time_anew() -> None:
    slow = fixed(b"HTTP/1.1 302 Found\r\n", b"location: /x\r\ncontent-length: 0\r\n\r\n", pause_s=0.2)
    with pytest.raises(RemoteRequestFailed, match=r"within 0\.5 s"):
        run(fetched(slow, timeout_s=0.5))


def test_a_name_server_that_does_not_answer_is_left_in_time() -> None:
    async def never(host: str, port: int) -> Any:
        await asyncio.sleep(60)

    files = RemoteFiles(GuardedClient(resolve=never), RemoteFileLimits(timeout_s=0.1))
    with pytest.raises(RemoteRequestFailed, match=r"within 0\.1 s"):
        run(files.fetch("http://cats.example/x", kind="image", param="image"))


def test_only_so_many_files_come_at_once() -> None:
    async def work() -> None:
        waiting, most = 0, 0
        finish = asyncio.Event()

        async def answer(writer: asyncio.StreamWriter) -> None:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            await asyncio.wait_for(finish.wait(), 5)
            waiting -= 1
            await file(PNG)(writer)

        async with internet(x=answer) as net:
            files = RemoteFiles(net.client(), RemoteFileLimits(max_concurrent=2))
            fetches = [files.fetch("http://cats.example/x", kind="image", param="image") for _ in range(5)]
            asyncio.get_running_loop().call_later(0.2, finish.set)
            assert [found.data for found in await asyncio.gather(*fetches)] == 5 * [PNG]
        assert most == 2

    run(work())


def test_an_unreachable_host_is_an_error_of_the_request() -> None:
    async def work() -> None:
        async with internet() as net:
            net.unreachable.add(PUBLIC)
            with pytest.raises(BraidError, match=r"cats\.example cannot be reached: Connection refused") as caught:
                await RemoteFiles(net.client()).fetch("http://cats.example/x", kind="image", param="image")
            assert caught.value.status == 400

    run(work())


def test_names_are_resolved_and_certificates_are_checked() -> None:
    async def work() -> None:
        assert "127.0.0.1" in await resolve_name("localhost", 80)
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect_to("127.0.0.1", parse_url(f"https://cats.example:{port}/"))

    run(work())
