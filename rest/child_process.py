"""Starting an engine's process and holding the socket to it.

Spawned with a fresh interpreter, never forked: a fork of a process with threads and a device is undefined.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from braid.rest.child import TOKEN_VARIABLE
from braid.rest.keys import VARIABLE as KEYS_VARIABLE
from braid.rest.webhook_secret import VARIABLE as SECRET_VARIABLE

CONNECT_TIMEOUT_S = 30.0
NUM_TOKEN_BYTES = 32
HTTP_ONLY = frozenset({KEYS_VARIABLE, SECRET_VARIABLE})
"""Variables that a child does not inherit: it neither asks for keys nor signs."""


@dataclass(slots=True)
class ChildProcess:
    """A started process; its socket is connected (`sock`), or will be, by who knows `token` (`listener`)."""

    process: subprocess.Popen[bytes]
    generation: int
    files: Path
    """The folder that the process makes for large results, once it has one."""
    sock: socket.socket | None = None
    listener: socket.socket | None = None
    token: bytes = b""

    async def connect(self) -> socket.socket:
        """The socket to the child.

        Raises:
            TimeoutError: nobody came with the token.
        """
        if self.sock is not None:
            return self.sock
        assert self.listener is not None
        with self.listener:
            return await asyncio.wait_for(_accept(self.listener, self.token), CONNECT_TIMEOUT_S)

    def remove_files(self) -> None:
        """Remove what an ended process has left; it may have been killed."""
        shutil.rmtree(self.files, ignore_errors=True)


def start_child(
    command: Sequence[str],
    generation: int,
    *,
    use_tcp: bool | None = None,
    environment: Mapping[str, str] | None = None,
) -> ChildProcess:
    """Spawn a child; the socket's address, our id, the generation and a folder are appended to the command.

    Args:
        use_tcp: a loopback connection with a token instead of a Unix socket pair; None is where there is no such pair.
        environment: more variables. What is secret goes here: other users can read a process's arguments.
    """
    use_tcp = not hasattr(socket, "AF_UNIX") if use_tcp is None else use_tcp
    files = Path(tempfile.gettempdir(), f"braid-engine-{secrets.token_hex(16)}")
    command = [*command, "--parent", str(os.getpid()), "--generation", str(generation), "--files", str(files)]
    inherited = {name: value for name, value in os.environ.items() if name not in HTTP_ONLY}
    variables = inherited | dict(environment or {})
    return (_start_tcp if use_tcp else _start_pair)(command, variables, generation, files)


def _start_pair(command: Sequence[str], variables: dict[str, str], generation: int, files: Path) -> ChildProcess:
    ours, theirs = socket.socketpair()
    with theirs:
        address = f"fd:{theirs.fileno()}"
        process = subprocess.Popen(
            [*command, "--socket", address], env=variables, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
        )
    ours.setblocking(False)
    return ChildProcess(process, generation, files, sock=ours)


def _start_tcp(command: Sequence[str], variables: dict[str, str], generation: int, files: Path) -> ChildProcess:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    token = secrets.token_bytes(NUM_TOKEN_BYTES)
    process = subprocess.Popen(
        [*command, "--socket", f"tcp:{listener.getsockname()[1]}"],
        env=variables | {TOKEN_VARIABLE: token.hex()},
        stdin=subprocess.DEVNULL,
    )
    return ChildProcess(process, generation, files, listener=listener, token=token)


async def _accept(listener: socket.socket, token: bytes) -> socket.socket:
    loop = asyncio.get_running_loop()
    while True:
        sock, _ = await loop.sock_accept(listener)
        sock.setblocking(False)
        given = b""
        while len(given) < NUM_TOKEN_BYTES and (data := await loop.sock_recv(sock, NUM_TOKEN_BYTES - len(given))):
            given += data
        if hmac.compare_digest(given, token):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock.close()
