"""Stored jobs end to end, through an engine process: done, killed and gone on with, cancelled, beside chat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from braid.diffusion.jobs.messages import Activity, ActivityRequest, MediaResolved, ResolveMedia
from braid.diffusion.jobs.records import JobRecord, JobStatus
from braid.llm_core.engine.messages import Failed, GenerateRequest, SamplingParams, TextDelta
from braid.multimodal.images import load_image
from braid.multimodal.sound import load_sound
from braid.multimodal.video_reader import read_video
from braid.tests.serving_rig import Desk, EngineProcess, toy_config, until

FILM: dict[str, Any] = {
    "prompt": "a red fox", "negative_prompt": "rain", "pipeline": "one_stage", "height": 64, "width": 64,
    "num_frames": 9, "seed": 3, "num_inference_steps": 4, "preview_every": 2,
}  # fmt: skip
LONG_FILM = FILM | {"pipeline": "two_stage", "num_inference_steps": 40, "preview_every": 0}
PICTURE = {"prompt": "a boat", "pipeline": "one_stage", "height": 64, "width": 64, "seed": 1, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@asynccontextmanager
async def serving(folder: Path, **changes: Any) -> AsyncIterator[tuple[EngineProcess, Desk]]:
    config = toy_config(folder, **changes)
    engine = EngineProcess(config)
    desk = await Desk.open(config)
    try:
        ready = await engine.start()
        assert ready.modalities == {"chat": "", "image": "", "video": "", "audio": ""}
        yield engine, desk
    finally:
        await engine.stop()
        await desk.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def contents(desk: Desk, job: JobRecord) -> dict[str, bytes]:
    return {stored.name: desk.path(job, stored.name).read_bytes() for stored in job.files}


def test_jobs_are_judged_made_and_published(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder) as (engine, desk):
            resolved = await engine.ask(ResolveMedia(id="r1", kind="video", params=FILM))
            assert isinstance(resolved, MediaResolved), resolved
            assert (resolved.params["frame_rate"], resolved.params["generate_audio"]) == (24.0, True)
            assert resolved.expected_bytes > 0
            wrong = await engine.ask(ResolveMedia(id="r2", kind="video", params=FILM | {"num_frames": 10}))
            assert isinstance(wrong, Failed)
            assert (wrong.status, wrong.param) == (400, "num_frames")

            film = await desk.create(engine, "video", resolved.params)
            picture = await desk.create(engine, "image", PICTURE | {"output_format": "webp"})
            sound = await desk.create(engine, "audio", {"prompt": "rain", "num_frames": 9, "num_inference_steps": 2})
            jobs = {name: await desk.final(job_id) for name, job_id in (("f", film), ("p", picture), ("s", sound))}
            for job in jobs.values():
                assert job.status is JobStatus.COMPLETED, job.error
            names = {name: {stored.name for stored in job.files} for name, job in jobs.items()}
            assert names["f"] == {"video", "thumbnail", "spritesheet", "first_frame", "audio"}
            assert names["p"] == {"image", "thumbnail"}
            assert names["s"] == {"audio"}
            clip = read_video(desk.path(jobs["f"], "video"))
            assert clip.frames.shape == (9, 64, 64, 3)
            assert clip.sound is not None
            assert load_image(desk.path(jobs["f"], "first_frame")).shape == (64, 64, 3)
            assert load_image(desk.path(jobs["f"], "spritesheet")).shape == (3 * 64, 4 * 64, 3)
            assert load_image(desk.path(jobs["p"], "image")).shape == (64, 64, 3)
            assert load_sound(desk.path(jobs["s"], "audio")).samples.shape[0] == 2
            assert jobs["f"].facts["num_threads"] == 2

            progress = engine.progress_of(film)
            assert {event.stage for event in progress} >= {"encode_prompt", "stage_1", "decode", "write_file"}
            assert any(event.preview is not None and event.preview[:2] == b"\xff\xd8" for event in progress)
            percents = [event.progress for event in progress]
            assert percents == sorted(percents)
            assert percents[-1] > 90
            estimated = await engine.ask(ResolveMedia(id="r3", kind="video", params=FILM))
            assert estimated.estimate_s is not None and estimated.estimate_s > 0

            extension = FILM | {"pipeline": "extend", "video": {"job": film, "file": "video"}, "num_frames": 17}
            longer = await desk.final(await desk.create(engine, "video", extension))
            assert longer.status is JobStatus.COMPLETED, longer.error
            broken = await desk.final(await desk.create(engine, "video", FILM | {"num_frames": 10}))
            assert broken.error is not None
            assert (broken.status, broken.error.param) == (JobStatus.FAILED, "num_frames")

    run(test)


@pytest.mark.soak  # a sample of it: test_serve_films
def test_a_killed_engine_goes_on_from_a_checkpoint_to_the_same_bits(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder) as (engine, desk):
            undisturbed = await desk.final(await desk.create(engine, "video", LONG_FILM))
            assert undisturbed.status is JobStatus.COMPLETED, undisturbed.error
            job_id = await desk.create(engine, "video", LONG_FILM)
            await until(lambda: any(event.step > 12 for event in engine.progress_of(job_id)))
            await engine.kill()
            killed = await desk.get(job_id)
            assert killed.status is JobStatus.IN_PROGRESS
            assert killed.checkpoints
            engine.told.clear()
            await engine.start()
            job = await desk.final(job_id)
            assert job.status is JobStatus.COMPLETED, job.error
            first = next(event for event in engine.progress_of(job_id) if event.stage.startswith("stage"))
            assert first.step > 0
            assert contents(desk, job) == contents(desk, undisturbed)
            assert not job.notes

    run(test)


@pytest.mark.soak  # a sample of it: tests/diffusion/jobs/test_runner.py
def test_a_stopped_engine_puts_its_job_back_with_its_newest_state(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, checkpoint_interval_s=1000.0) as (engine, desk):
            job_id = await desk.create(engine, "video", LONG_FILM)
            await until(lambda: any(event.step > 10 for event in engine.progress_of(job_id)))
            assert await engine.stop() == 0
            stopped = await desk.get(job_id)
            assert stopped.status is JobStatus.QUEUED
            assert len(stopped.checkpoints) == 1
            engine.told.clear()
            await engine.start()
            await until(lambda: bool(engine.progress_of(job_id)))
            first = next(event for event in engine.progress_of(job_id) if event.stage.startswith("stage"))
            assert first.step > 10
            await desk.cancel(engine, job_id)
            assert (await desk.final(job_id)).status is JobStatus.CANCELLED

    run(test)


def test_a_cancelled_job_ends_at_once_and_leaves_nothing_and_chat_goes_on_beside_two(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder) as (engine, desk):
            jobs = [await desk.create(engine, "video", LONG_FILM | {"seed": seed}) for seed in (1, 2)]
            await until(lambda: all(engine.progress_of(job_id) for job_id in jobs))
            started = time.monotonic()
            told = []
            done = asyncio.Event()

            def hear(event: Any) -> None:
                told.append(event)
                if not isinstance(event, TextDelta) and type(event).__name__ in ("Finished", "Failed"):
                    done.set()

            sampling = SamplingParams(max_tokens=20, temperature=0.0)
            engine.live.submit(GenerateRequest(id="chat", prompt="The fox", sampling=sampling), hear)
            await asyncio.wait_for(done.wait(), 60)
            assert sum(isinstance(event, TextDelta) for event in told) > 5
            activity = await engine.ask(ActivityRequest(id="a", seconds=time.monotonic() - started))
            assert isinstance(activity, Activity)
            assert {step["workload"] for step in activity.steps} >= {"diffusion", "language"}

            await desk.cancel(engine, jobs[0])
            started = time.monotonic()
            await until(lambda: engine.has_ended(jobs[0]))
            assert time.monotonic() - started < 2.0
            cancelled = await desk.final(jobs[0])
            assert cancelled.status is JobStatus.CANCELLED
            assert not cancelled.files
            assert not list(desk.storage.directory.job_folder(jobs[0]).glob("*"))
            assert (await desk.final(jobs[1])).status is JobStatus.COMPLETED

    run(test)
