"""Random load on the real server: cancels, disconnects, nonsense. Afterwards no page is leased and memory is flat."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from braid.benchmarks.http_chat import free_port

SECONDS = 300 if os.environ.get("BRAID_SOAK") else 8
NUM_CLIENTS = 12
ALLOWED_GROWTH_BYTES = 48 << 20
"""Two slabs of keys and values and some slack of the allocator; five minutes leak far more than that or nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "braid.cli", "serve", "--port", str(port), "--threads", "2", "--memory", "176MiB"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(port)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2):
            return
        time.sleep(0.1)
    raise TimeoutError("the server did not become ready")


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        return json.load(response)


def some_body(rng: random.Random) -> bytes:
    """A request: mostly right, sometimes with one thing wrong, sometimes no JSON at all."""
    words = " ".join(rng.choices(["river", "train", "bread", "star", "clock", "bird"], k=rng.randint(1, 300)))
    body: dict[str, Any] = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": rng.randint(1, 60),
        "temperature": rng.choice([0, 1]),
        "stream": rng.random() < 0.6,
        "n": rng.choice([1, 1, 1, 3]),
    }
    trouble = rng.random()
    if trouble < 0.05:
        return b'{"model": "smollm2", "messages": ['
    if trouble < 0.2:
        body |= rng.choice(
            [{"temperature": 9}, {"messages": []}, {"max_tokens": 10**6}, {"model": "none"}, {"tools": [{"type": "x"}]}]
        )
    return json.dumps(body).encode()


async def one_request(port: int, rng: random.Random) -> str:
    """Send a request and read its answer, or leave before the end; returns what happened."""
    body = some_body(rng)
    leave_after = rng.randint(0, 12) if rng.random() < 0.4 else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        if leave_after == 0:
            return "left at once"
        status = int((await reader.readline()).split()[1])
        lines = 0
        while await reader.readline():
            lines += 1
            if leave_after is not None and lines > 6 + leave_after:
                return "left in the middle"
        return str(status)
    finally:
        writer.close()


async def load(port: int, seconds: float, seed: int) -> Counter[str]:
    """Clients that go on for `seconds`, each finishing its last request."""
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while time.monotonic() < end:
            seen[await asyncio.wait_for(one_request(port, rng), 120)] += 1

    await asyncio.gather(*(client(i) for i in range(NUM_CLIENTS)))
    return seen


def settled(port: int) -> dict[str, Any]:
    """The engine's counters once nothing runs any more."""
    for _ in range(200):
        stats: dict[str, Any] = get(port, "/stats")
        if stats["requests"]["open"] == 0:
            return stats
        time.sleep(0.05)
    raise TimeoutError(f"requests stay open: {stats}")


def resident_bytes(process: psutil.Process) -> int:
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])


def test_random_load_leaves_nothing_behind(server: tuple[int, psutil.Process]) -> None:
    port, process = server
    asyncio.run(load(port, SECONDS / 3, seed=1))
    settled(port)
    before = resident_bytes(process)
    seen = asyncio.run(load(port, SECONDS * 2 / 3, seed=2))
    stats = settled(port)
    print(f"{SECONDS} s: {dict(seen)}, resident {before / 1e6:.0f} to {resident_bytes(process) / 1e6:.0f} MB")
    assert stats["kv_pages"]["used"] == stats["kv_pages"]["cached"]
    assert set(seen) <= {"200", "400", "404", "429", "left at once", "left in the middle"}
    assert seen["200"] > 0
    assert seen["400"] > 0
    assert seen["left in the middle"] > 0
    assert resident_bytes(process) - before < ALLOWED_GROWTH_BYTES
    assert len(process.children(recursive=True)) == 1
