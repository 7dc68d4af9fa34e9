"""A real engine process with a toy video model, and HTTP's end of its jobs, for tests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from braid.config import BraidConfig, ServeConfig, VideoConfig
from braid.diffusion.jobs.messages import CancelJob, JobEnded, JobEvent, JobProgress, JobsWaiting
from braid.diffusion.jobs.records import JobRecord, NewJob
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.llm_core.engine.messages import EngineReady
from braid.rest.child_process import ChildProcess, start_child
from braid.rest.remote import RemoteEngine
from braid.rest.wire_messages import LAST_EVENTS
from braid.server import child_command, child_environment
from braid.tests.diffusion.film_files import write_film_files

TIMEOUT_S = 120.0


def toy_config(folder: Path, **changes: Any) -> ServeConfig:
    """Of the files that `write_film_files` makes in a folder, which are written if they are not there."""
    if not (folder / "model.safetensors").exists():
        write_film_files(folder)
    video = VideoConfig(
        model=str(folder / "model.safetensors"),
        upsampler=str(folder / "upsampler.safetensors"),
        distilled_lora=str(folder / "distilled.safetensors"),
    )
    settings = {"checkpoint_interval_s": 0.05, "data_dir": str(folder / "data")} | changes
    engine = BraidConfig(num_threads=2, memory_budget_bytes=1 << 30)
    return ServeConfig(engine=engine, video=video, takes_language_of_video=True, **settings)


@dataclass
class EngineProcess:
    """An engine child, as HTTP sees it."""

    config: ServeConfig
    generation: int = 0
    told: list[JobEvent] = field(default_factory=list)
    child: ChildProcess | None = None
    engine: RemoteEngine | None = None

    async def start(self) -> EngineReady:
        """Gives what is loaded once there is a video model."""
        self.generation += 1
        self.child = start_child(
            child_command(self.config), self.generation, environment=child_environment(self.config)
        )
        self.engine = await RemoteEngine.connect(await self.child.connect())
        self.engine.on_job_event = self.told.append
        await asyncio.wait_for(self.engine.wait_ready(), TIMEOUT_S)
        await until(lambda: self.live.ready.modalities["video"] != "the video model is loading")
        return self.live.ready

    @property
    def live(self) -> RemoteEngine:
        assert self.engine is not None
        return self.engine

    async def kill(self) -> None:
        assert self.child is not None
        self.child.process.send_signal(signal.SIGKILL)
        await self.live.wait_closed()
        self.child.process.wait()

    async def stop(self) -> int:
        """Ask for the end; gives the exit code."""
        assert self.child is not None
        self.live.close()
        await self.live.wait_closed()
        return await asyncio.to_thread(self.child.process.wait, 20)

    async def ask(self, request: Any) -> Any:
        """The last event of a request."""
        last: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.live.submit(request, lambda event: last.set_result(event) if isinstance(event, LAST_EVENTS) else None)
        return await asyncio.wait_for(last, TIMEOUT_S)

    def progress_of(self, job_id: str) -> list[JobProgress]:
        return [event for event in self.told if isinstance(event, JobProgress) and event.request_id == job_id]

    def has_ended(self, job_id: str) -> bool:
        return any(isinstance(event, JobEnded) and event.request_id == job_id for event in self.told)


class Desk:
    """The store as HTTP has it, used on the event loop."""

    def __init__(self, storage: JobStorage) -> None:
        self.storage = storage
        self._store = JobStore(storage)

    @classmethod
    async def open(cls, config: ServeConfig) -> Desk:
        assert config.data_dir is not None
        return cls(await asyncio.to_thread(JobStorage.open, Path(config.data_dir), seat="http"))

    async def close(self) -> None:
        await asyncio.to_thread(self.storage.close)

    async def create(self, engine: EngineProcess, kind: str, params: dict[str, Any], **more: Any) -> str:
        created = await self.storage.off_loop(self._store.create, NewJob(kind=kind, params=params, **more))
        engine.live.send(JobsWaiting())
        return created.job.id

    async def get(self, job_id: str) -> JobRecord:
        return await self.storage.off_loop(self._store.get, job_id)

    async def cancel(self, engine: EngineProcess, job_id: str) -> None:
        await self.storage.off_loop(self._store.cancel, job_id)
        engine.live.send(CancelJob(id=job_id))

    async def final(self, job_id: str) -> JobRecord:
        """The job once it has ended."""
        async with asyncio.timeout(TIMEOUT_S):
            while not (job := await self.get(job_id)).is_final:
                await asyncio.sleep(0.05)
        return job

    def path(self, job: JobRecord, name: str) -> Path:
        return self._store.path(job, name)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not is_so():
            await asyncio.sleep(0.01)
