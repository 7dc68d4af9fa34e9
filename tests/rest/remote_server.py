"""Another server on the internet, played by this process: names lead to public addresses, and those lead here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from braid.rest.guarded_http import GuardedClient, RemoteUrl, Streams

PUBLIC = "93.184.215.14"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def fixed(*parts: bytes, pause_s: float = 0.0) -> Answer:
    """An answer of these bytes, with pauses between the parts."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


def file(body: bytes, content_type: str = "image/png", *headers: str) -> Answer:
    """A file as a well-behaved server sends it."""
    lines = [f"content-type: {content_type}", f"content-length: {len(body)}", *headers]
    return fixed("\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode() + body)


def redirect(location: str, status: int = 302) -> Answer:
    return fixed(f"HTTP/1.1 {status} Elsewhere\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode())


@dataclass
class Internet:
    """What names lead to, what each path answers, and what was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    names: dict[str, Sequence[str]] = field(default_factory=dict)
    """Addresses of names; every other name has one public address."""
    port: int = 0
    unreachable: set[str] = field(default_factory=set)
    requests: list[bytes] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def client(self, *trusted_hosts: str) -> GuardedClient:
        return GuardedClient(trusted_hosts=trusted_hosts, resolve=self._resolve, connect=self._connect)

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        addresses = self.names.get(host, [PUBLIC])
        if not addresses:
            raise OSError("no such name")
        return addresses

    async def _connect(self, address: str, url: RemoteUrl) -> Streams:
        self.connected.append(address)
        if address in self.unreachable:
            raise ConnectionRefusedError(111, "Connection refused")
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), b":0")
            self.requests.append(head + await reader.readexactly(int(length.partition(b":")[2])))
            path = head.split(b" ")[1].decode()
            await self.answers.get(path, fixed(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"))(writer)

    async def end(self) -> None:
        """Let the last answers end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections close in the next turn of the loop


@contextlib.asynccontextmanager
async def internet(**answers: Answer) -> AsyncIterator[Internet]:
    """An internet whose servers answer `/name` with `answers[name]`."""
    made = Internet({f"/{name}": answer for name, answer in answers.items()})
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield made
        finally:
            await made.end()
