"""One HTTP request to an address that somebody else wrote down: bounded in time and size, and never to our own network.

The name is resolved once, every address that it has is checked, and the connection goes to a checked address, so a name
that changes its mind (DNS rebinding) changes nothing. Redirects are answers like any other: whoever follows one makes a
new request, with the same checks. No proxy is used, no cookie and no key is sent, and nothing is decompressed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import h11

from braid.errors import InvalidRequest
from braid.rest.public_addresses import is_public

MAX_URL_LENGTH = 2048
MAX_HEADER_BYTES = 16 << 10
_CONNECT_TIMEOUT_S = 10.0
_READ_BYTES = 64 << 10
_MAX_ADDRESSES = 4
"""So many of a name's are tried."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_PORT = 1024
"""Below it lie mail, shells and the like, to which HTTP could be made to speak; but for the two of the web."""
_PRINTABLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9.])?|[0-9a-f:.]+")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name. Raises OSError where it has none."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[str, "RemoteUrl"], Awaitable[Streams]]
"""A connection to an address, for a URL."""


class RemoteUrlRefused(InvalidRequest):
    """A URL that this server does not ask."""

    code = "remote_url_refused"


class RemoteRequestFailed(InvalidRequest):
    """The other server did not answer, or not with what was asked for."""

    code = "remote_request_failed"


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """A URL that may be asked, as far as one can see without looking up its name."""

    text: str
    scheme: str
    host: str
    port: int
    target: str
    """What stands in the request line."""

    @property
    def authority(self) -> str:
        """The `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take."""

    max_bytes: int
    """Of the answer's body."""
    timeout_s: float
    """From the look-up of the name to the last byte."""


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """The head of an answer, and as much of its body as was asked for."""

    status: int
    headers: Mapping[str, str]
    """By small letters; of a header that comes twice, the last."""
    body: bytes = b""


def parse_url(text: str, *, param: str | None = None) -> RemoteUrl:
    """Read a URL strictly: what two parsers could understand in two ways is refused.

    Raises:
        RemoteUrlRefused: it is not one of http or https with a plain host and no user name.
    """
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise _refused(text, f"it is not a URL: {error}", param) from None
    if len(text) > MAX_URL_LENGTH:
        raise _refused(text, f"it has {len(text)} characters; at most {MAX_URL_LENGTH} are read", param)
    if not _PRINTABLE.fullmatch(text) or "\\" in text:
        raise _refused(text, "it holds characters that must be written as %XX", param)
    if parts.scheme not in _DEFAULT_PORTS:
        raise _refused(text, "only http:// and https:// are asked", param)
    if "@" in parts.netloc or not _HOST.fullmatch(host):
        raise _refused(text, "it must have a plain host name, and no user name", param)
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    if port not in _DEFAULT_PORTS.values() and port < _FIRST_PORT:
        raise _refused(text, f"port {port} must be 80, 443 or at least {_FIRST_PORT}", param)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return RemoteUrl(text, parts.scheme, host, port, target)


async def resolve_name(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


async def connect_to(address: str, url: RemoteUrl) -> Streams:
    """A connection to an address, encrypted for the URL's host where it says https."""
    # Certificates are read from disk: not on the event loop.
    context = await asyncio.to_thread(ssl.create_default_context) if url.scheme == "https" else None
    return await asyncio.open_connection(
        address, url.port, ssl=context, server_hostname=url.host if context else None, limit=_READ_BYTES
    )


class GuardedClient:
    """Makes requests to public servers.

    Args:
        trusted_hosts: names that may also lead to private addresses; the server's owner vouches for them.
    """

    def __init__(
        self,
        *,
        trusted_hosts: Collection[str] = (),
        resolve: Resolve = resolve_name,
        connect: Connect = connect_to,
    ) -> None:
        self._trusted_hosts = frozenset(host.lower() for host in trusted_hosts)
        self._resolve = resolve
        self._connect = connect

    async def request(
        self,
        method: str,
        url: RemoteUrl,
        *,
        limits: Limits,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        check_head: Callable[[RemoteAnswer], None] | None = None,
    ) -> RemoteAnswer:
        """Ask, and read the answer.

        Args:
            check_head: called before the body is read; what it raises ends the request. None reads no body.
        Raises:
            RemoteUrlRefused: the host is not on the public internet.
            RemoteRequestFailed: no answer, a broken one, a compressed one, or one over the limits.
        """
        head = {"host": url.authority, "accept-encoding": "identity", "user-agent": "braid", "connection": "close"}
        sent = [*(head | dict(headers or {})).items()]
        if body:
            sent.append(("content-length", str(len(body))))
        try:
            async with asyncio.timeout(limits.timeout_s):
                reader, writer = await self._open(url)
                try:
                    request = h11.Request(method=method, target=url.target, headers=sent)
                    return await _exchange(reader, writer, request, body, limits, check_head)
                finally:
                    writer.transport.abort()  # nothing is left to say, and the other side is not waited for
        except TimeoutError:
            raise RemoteRequestFailed(f"{url.host} has not answered within {limits.timeout_s:g} s") from None
        except (OSError, h11.ProtocolError) as error:
            raise RemoteRequestFailed(f"{url.host} did not answer as HTTP does: {_reason(error)}") from None

    async def _open(self, url: RemoteUrl) -> Streams:
        failure: OSError | None = None
        for address in (await self._addresses(url))[:_MAX_ADDRESSES]:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await self._connect(address, url)
            except OSError as error:  # a timeout, too
                failure = error
        raise RemoteRequestFailed(f"{url.host} cannot be reached: {_reason(failure)}")

    async def _addresses(self, url: RemoteUrl) -> Sequence[str]:
        """All addresses of the host, every one of them checked. Nothing is told of names inside our network."""
        try:
            addresses = [url.host] if _is_address(url.host) else await self._resolve(url.host, url.port)
        except (OSError, UnicodeError):
            addresses = []
        if url.host in self._trusted_hosts and addresses:
            return addresses
        if not addresses or not all(is_public(address) for address in addresses):
            raise RemoteUrlRefused(f"{url.host} has no address on the public internet, or also others")
        return addresses


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: h11.Request,
    body: bytes,
    limits: Limits,
    check_head: Callable[[RemoteAnswer], None] | None,
) -> RemoteAnswer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    for event in (request, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    await writer.drain()
    events = _events(connection, reader)
    answer = await _head(events)
    if check_head is None:
        return answer
    _check_encoding(answer)
    check_head(answer)
    return RemoteAnswer(answer.status, answer.headers, await _body(events, answer, limits.max_bytes))


async def _events(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[h11.Event]:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Event):
            yield event
        else:
            return


async def _head(events: AsyncIterator[h11.Event]) -> RemoteAnswer:
    async for event in events:
        if isinstance(event, h11.Response):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            return RemoteAnswer(event.status_code, headers)
    raise RemoteRequestFailed("the connection ended without an answer")


async def _body(events: AsyncIterator[h11.Event], answer: RemoteAnswer, max_bytes: int) -> bytes:
    """Raises:
    RemoteRequestFailed: longer than `max_bytes`, by its own word or when it comes.
    """
    announced = int(answer.headers.get("content-length", "0"))
    if announced > max_bytes:
        raise RemoteRequestFailed(f"the file has {announced:,} bytes; at most {max_bytes:,} are read")
    body = bytearray()
    async for event in events:
        if isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise RemoteRequestFailed(f"the file has more than {max_bytes:,} bytes, the most that are read")
        elif isinstance(event, h11.EndOfMessage):
            break
    return bytes(body)


def _check_encoding(answer: RemoteAnswer) -> None:
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise RemoteRequestFailed(f"the answer is compressed ({encoding[:40]!r}) although that was not asked for")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refused(text: str, why: str, param: str | None) -> RemoteUrlRefused:
    return RemoteUrlRefused(f"the URL {text[:200]!r} is refused: {why}", param=param)


def _reason(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'certificate'})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)[:200] or type(error).__name__
