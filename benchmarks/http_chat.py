"""How does chat over HTTP hold up with 1, 8 and 32 streaming clients, beside llama.cpp's own server?

Both servers get the same requests in turn, on the same machine as the client: a distinct prompt of about 60 tokens and
64 new tokens each, greedy, streamed. Reported: tokens a second over all clients, time to the first token, time between
chunks. The limit is what `cpu_chat.py` measures without HTTP at the same batch.

    python benchmarks/http_chat.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from braid.benchmarks import machine
from braid.benchmarks.llama_cpp import LlamaCpp, find_or_build
from braid.llm_core.loading.checkpoint import open_checkpoint

NEW_TOKENS = 64
TOPICS = ("rivers", "trains", "bread", "stars", "winter", "clocks", "glass", "birds")


@dataclass
class Answer:
    """When one streamed answer began and went on."""

    began: float
    chunks: list[float] = field(default_factory=list)
    num_tokens: int = 0


async def ask(port: int, number: int) -> Answer:
    """Stream one chat completion over a connection of its own."""
    topic = TOPICS[number % len(TOPICS)]
    body = json.dumps(
        {
            "model": "smollm2",
            "messages": [{"role": "user", "content": f"Question {number}: write a few sentences about {topic}."}],
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            take(answer, json.loads(line[6:]))
    writer.close()
    return answer


def take(answer: Answer, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise RuntimeError(chunk["error"])
    if chunk.get("usage"):
        answer.num_tokens = chunk["usage"]["completion_tokens"]
    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
        answer.chunks.append(time.perf_counter())


async def ask_all(port: int, num_clients: int, first: int) -> list[Answer]:
    return await asyncio.gather(*(ask(port, first + i) for i in range(num_clients)))


def measure(port: int, num_clients: int, first: int) -> dict[str, float]:
    began = time.perf_counter()
    answers = asyncio.run(ask_all(port, num_clients, first))
    seconds = time.perf_counter() - began
    gaps = [b - a for answer in answers for a, b in zip(answer.chunks, answer.chunks[1:], strict=False)]
    assert all(answer.num_tokens == NEW_TOKENS for answer in answers), [answer.num_tokens for answer in answers]
    return {
        "tokens_per_s": sum(answer.num_tokens for answer in answers) / seconds,
        "first_token_ms": machine.median([(a.chunks[0] - a.began) * 1e3 for a in answers]),
        "between_ms_p50": machine.median(gaps) * 1e3,
        "between_ms_p95": machine.p95(gaps) * 1e3,
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], port: int, path: str) -> Iterator[None]:
    """A server, once `path` answers 200."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{command[0]} did not come up")
        yield
    finally:
        server.terminate()
        server.wait(20)


def braid_command(port: int, threads: int) -> list[str]:
    return [sys.executable, "-m", "braid.cli", "serve", "--port", str(port), "--threads", str(threads)]


def llama_command(llama: LlamaCpp, port: int, threads: int, num_clients: int) -> list[str]:
    model = str(open_checkpoint("smollm2").path)
    context = str(num_clients * 512)
    return [
        *(llama.program("llama-server"), "-m", model, "--port", str(port), "-np", str(num_clients), "-c", context),
        *("-t", str(threads), "-tb", str(threads)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    llama = find_or_build()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for num_clients in args.clients:
        samples: dict[str, list[dict[str, float]]] = {"braid": [], "llama-server": []}
        for number in range(args.rounds):
            port = free_port()
            for name, command, path in (
                ("braid", braid_command(port, args.threads), "/ready"),
                ("llama-server", llama_command(llama, port, args.threads, num_clients), "/health"),
            ):
                with running(command, port, path):
                    measure(port, 1, 10_000)  # warm up
                    samples[name].append(measure(port, num_clients, 1000 * number))
        results[str(num_clients)] = {
            name: {key: round(machine.median([row[key] for row in rows]), 1) for key in rows[0]}
            for name, rows in samples.items()
        }
        for name, row in results[str(num_clients)].items():
            print(f"{num_clients:3d} clients  {name:14s} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    print(json.dumps({"machine": machine.describe(), "clients": results}))


if __name__ == "__main__":
    main()
