"""Chats, pictures and films at once on a real server, with random cancels: nothing is left, and chat keeps its share.

A short sample in every run; `BRAID_SOAK=1` sends 200 requests in ten minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.tests.serve_rig import Served, files_of, served
from braid.tests.serving_rig import toy_config

IS_SOAK = bool(os.environ.get("BRAID_SOAK"))
NUM_REQUESTS, SECONDS = (200, 600.0) if IS_SOAK else (12, 6.0)
KINDS = ("chat", "chat", "chat", "picture", "film")
NUM_WARM, WARM_S = (120, 60.0) if IS_SOAK else (6, 6.0)
"""Requests after which memory is looked at first: what is made once has been made, and what keeps the newest of
something (steps, spans, pages of earlier prompts) is full or nearly so."""
ALLOWED_GROWTH = 0.05 if IS_SOAK else 0.10
"""After few requests, not everything that is made once has been made."""
BESIDE_S = 0.5
"""A token comes beside media if a step of some was this near."""
CANCELLED = 0.35
FILM: dict[str, Any] = {"prompt": "a red fox", "pipeline": "one_stage", "height": 64, "width": 64, "num_frames": 9}
PICTURE: dict[str, Any] = {"prompt": "a fox", "pipeline": "one_stage", "height": 64, "width": 64}


@dataclass
class Load:
    """What clients did and saw."""

    http: httpx.AsyncClient
    chance: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """When a token came, and seconds since the one before it."""
    media: list[tuple[float, float]] = field(default_factory=list)
    """Steps of pictures and films: from, to."""
    deleted: set[str] = field(default_factory=set)

    async def run(self, number: int, seconds: float) -> None:
        """Requests at random times; ends when all of them have."""
        watching = asyncio.create_task(self._watch())
        times = sorted(self.chance.uniform(0, seconds) for _ in range(number))
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for at, kind in zip(times, self._kinds(number), strict=True):
                await asyncio.sleep(max(0.0, at - (time.monotonic() - began)))
                group.create_task(getattr(self, kind)())
        watching.cancel()
        await self._look()

    def _kinds(self, number: int) -> list[str]:
        kinds = [KINDS[index % len(KINDS)] for index in range(number)]
        self.chance.shuffle(kinds)
        return kinds

    async def chat(self) -> None:
        """A stream that is read to its end, or left."""
        leave_after = self.chance.randint(1, 60) if self.chance.random() < CANCELLED else None
        body = {"messages": [{"role": "user", "content": f"say {self.chance.random()}"}], "stream": True}
        body |= {"max_tokens": self.chance.randint(40, 180), "ignore_eos": True}
        last, num = None, 0
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            self.seen[f"chat {stream.status_code}"] += 1
            async for line in stream.aiter_lines():
                assert "error" not in line, line
                if not line.startswith("data: {"):
                    continue
                now, num = time.monotonic(), num + 1
                if last is not None:
                    self.gaps.append((now, now - last))
                last = now
                if num == leave_after:
                    self.seen["chat left"] += 1
                    return

    async def picture(self) -> None:
        """One that is waited for, or whose client leaves."""
        body = PICTURE | {"num_inference_steps": self.chance.randint(2, 12)}
        limit_s = self.chance.uniform(0.05, 2) if self.chance.random() < CANCELLED else None
        try:
            async with asyncio.timeout(limit_s):
                answer = await self.http.post("/v1/images/generations", json=body)
            self.seen[f"picture {answer.status_code}"] += 1
        except TimeoutError:
            self.seen["picture left"] += 1

    async def film(self) -> None:
        """One that is waited for, cancelled, or deleted."""
        body = FILM | {"num_inference_steps": self.chance.randint(10, 60)}
        answer = await self.http.post("/v1/videos", json=body)
        assert answer.status_code == 200, answer.text
        url = f"/v1/videos/{answer.json()['id']}"
        if self.chance.random() < CANCELLED:
            await asyncio.sleep(self.chance.uniform(0, 4))
            if self.chance.random() < 0.5:
                self.seen[f"film cancelled {(await self.http.post(url + '/cancel')).status_code}"] += 1
            else:
                self.deleted.add(answer.json()["id"])
                self.seen[f"film deleted {(await self.http.delete(url)).status_code}"] += 1
                return
        while (await self.http.get(url)).json()["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.2)
        self.seen["film"] += 1

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(5)
            await self._look()

    async def _look(self) -> None:
        """The device's journal has the same clock as we."""
        steps = (await self.http.get("/v1/timeline?seconds=8")).json()["steps"]
        self.media += [
            (step["start_s"], step["start_s"] + step["ms"] / 1000)
            for step in steps
            if any(name.startswith(("image_", "video_")) for name in step["requests"])
        ]

    def latencies(self) -> dict[str, list[float]]:
        """Milliseconds between tokens, with and without media beside them."""
        near = {int(at / BESIDE_S) for start, end in self.media for at in (start, end)}
        found: dict[str, list[float]] = {"with": [], "without": []}
        for at, gap in self.gaps:
            found["with" if int(at / BESIDE_S) in near else "without"].append(gap * 1000)
        return found


def loaded(server: Served, number: int, seconds: float, seed: int) -> Load:
    async def run() -> Load:
        async with httpx.AsyncClient(base_url=server.client.base_url, timeout=120) as http:
            load = Load(http, random.Random(seed))
            await load.run(number, seconds)
            return load

    return asyncio.run(run())


def settled(server: Served) -> dict[str, Any]:
    """The engine's counters once nothing runs any more."""
    deadline = time.monotonic() + 30
    while True:
        stats: dict[str, Any] = server.client.get("/stats").json()
        if stats["requests"]["open"] == 0:
            return stats
        assert time.monotonic() < deadline, stats
        time.sleep(0.05)


def resident_bytes(server: Served) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in (server.process.pid, server.engine.pid))


def percentiles(gaps: list[float]) -> str:
    cut = statistics.quantiles(gaps, n=100) if len(gaps) > 1 else [0.0] * 99
    return f"p50 {cut[49]:.1f} ms, p99 {cut[98]:.1f} ms of {len(gaps)}"


def check_files(data: Path, deleted: set[str]) -> Counter[str]:
    """No file but those that a row names; gives how many jobs are in which state."""
    with JobStorage.open(data, seat="watcher") as storage:
        store = JobStore(storage)
        assert store.unfinished() == []
        jobs = {path.name for path in (data / "jobs").iterdir() if any(path.iterdir())}
        assert not jobs & deleted
        states: Counter[str] = Counter()
        for job_id in jobs:
            job = store.get(job_id)
            states[f"{job.kind} {job.status}"] += 1
            assert job.is_final
            assert files_of(data, job_id) == {stored.file for stored in (*job.files, *job.inputs)}
    assert not any(path.is_file() for path in (data / "staging").rglob("*"))
    return states


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at clocks of two processes")
def test_chats_pictures_and_films_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    with served(config) as server:
        warm = loaded(server, NUM_WARM, WARM_S, seed=1)
        settled(server)
        before = resident_bytes(server)
        load = loaded(server, NUM_REQUESTS, SECONDS, seed=2)
        stats = settled(server)
        after = resident_bytes(server)
        beside = load.latencies()
        print(f"\n{NUM_REQUESTS} requests in {SECONDS:.0f} s: {dict(sorted(load.seen.items()))}")
        print(f"resident {before / 1e6:.0f} to {after / 1e6:.0f} MB")
        print(f"between tokens beside media: {percentiles(beside['with'])}; without: {percentiles(beside['without'])}")
        assert stats["kv_pages"]["used"] == stats["kv_pages"]["cached"]
        assert after < before * (1 + ALLOWED_GROWTH)
        assert load.seen["chat 200"] > 0
        assert load.seen["film"] > 0
        assert not [word for word in load.seen if word.endswith((" 500", " 503", " 429"))]
        server.process.terminate()
        assert server.process.wait(30) == 0
    states = check_files(tmp_path / "data", warm.deleted | load.deleted)
    print(f"jobs: {dict(states)}; {json.dumps(stats['kv_pages'])}")
    assert set(states) <= {f"{kind} {end}" for kind in ("image", "video") for end in ("completed", "cancelled")}
