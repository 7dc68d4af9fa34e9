"""News of jobs as the engine tells them, for whoever looks right now. What nobody watches is forgotten.

News may be lost, and jobs may be worked on by another server: who watches must look into the store from time to time.
Everything here is called on the event loop.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from braid.diffusion.jobs.messages import JobEnded, JobEvent, JobProgress


class Watch:
    """What is new about some jobs. Only the newest of each is kept, however slowly it is read."""

    def __init__(self, news: JobNews, job_ids: tuple[str, ...]) -> None:
        self._news = news
        self._job_ids = job_ids
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._previews: dict[str, JobProgress] = {}
        self.has_ended = False
        """One of the jobs has, since the watch began."""

    async def wait(self, timeout_s: float) -> bool:
        """Until something is new, or for so long; gives whether something is."""
        return await _wait(self._changed, timeout_s)

    async def wait_end(self, timeout_s: float) -> None:
        """Until one of the jobs has ended, or for so long."""
        await _wait(self._ended, timeout_s)

    def preview(self, job_id: str) -> JobProgress | None:
        """The newest one, once."""
        return self._previews.pop(job_id, None)

    def notice(self, event: JobEvent) -> None:
        """Something happened to one of the jobs."""
        if isinstance(event, JobProgress) and event.preview is not None:
            self._previews[event.request_id] = event
        if isinstance(event, JobEnded):
            self._ended.set()
            self.has_ended = True
        self._changed.set()

    def wake(self) -> None:
        """End all waiting, once."""
        self._changed.set()
        self._ended.set()

    def __enter__(self) -> Self:
        self._news.add(self, self._job_ids)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._news.remove(self, self._job_ids)


class JobNews:
    """Passes the engine's events on to those who watch, and remembers how far the jobs under way are."""

    def __init__(self) -> None:
        self._watches: dict[str, list[Watch]] = {}
        self._progress: dict[str, JobProgress] = {}

    def on_event(self, event: JobEvent) -> None:
        """Give it to `Supervisor(on_job_event=...)`."""
        job_id = event.request_id
        if isinstance(event, JobEnded):
            self._progress.pop(job_id, None)
        elif isinstance(event, JobProgress):
            self._progress[job_id] = event
        for watch in self._watches.get(job_id, ()):
            watch.notice(event)

    def progress(self, job_id: str) -> JobProgress | None:
        """The newest progress of a job that this server's engine works on."""
        return self._progress.get(job_id)

    def forget(self) -> None:
        """The engine is gone: what it said last is not true any more."""
        self._progress.clear()

    def wake_all(self) -> None:
        """Have everybody look, whether there is news or not."""
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()

    def watch(self, *job_ids: str) -> Watch:
        """Use it as a context: it hears what happens from `with` on."""
        return Watch(self, job_ids)

    def add(self, watch: Watch, job_ids: tuple[str, ...]) -> None:
        """Called by a `Watch`."""
        for job_id in job_ids:
            self._watches.setdefault(job_id, []).append(watch)

    def remove(self, watch: Watch, job_ids: tuple[str, ...]) -> None:
        """Called by a `Watch`."""
        for job_id in job_ids:
            watches = self._watches[job_id]
            watches.remove(watch)
            if not watches:
                del self._watches[job_id]

    @property
    def num_watched(self) -> int:
        """Jobs that somebody watches."""
        return len(self._watches)


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    event.clear()
    return True
