"""A process that works until it is killed, and says on its standard output what it was promised.

    python doomed_worker.py ROOT SEAT [URL]

Each line is one acknowledgement: `created ID`, `claimed ID TOKEN STEP`, `checkpoint ID STEP`, `finished ID`.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from sqlalchemy import make_url

from braid.diffusion.jobs.failures import LeaseLost
from braid.diffusion.jobs.records import NewJob
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker

NUM_STEPS = 3
LIMITS = JobLimits(lease_s=1.0, heartbeat_s=0.000001, checkpoint_interval_s=0.000001, max_claims=1000)


def say(*words: object) -> None:
    print(*words, flush=True)


def film_of(prompt: str) -> bytes:
    return f"{prompt} after {NUM_STEPS} steps".encode()


def create(store: JobStore, number: int) -> None:
    prompt = f"film {random.random()}"
    new = NewJob(kind="video", params={"prompt": prompt}, inputs={"a.png": prompt.encode()})
    job = store.create(new).job
    say("created", job.id)
    if number % 5 == 0:
        store.delete(store.create(new).job.id)
    if number % 7 == 0:
        store.cancel(store.create(new).job.id)


def work(worker: JobWorker, store: JobStore) -> None:
    lease = worker.claim(["video"])
    if lease is None:
        return
    step = int(worker.resume(lease, lambda data: data.rstrip(b"."), state_version=1) or b"0")
    say("claimed", lease.job_id, lease.token, step)
    try:
        while step < NUM_STEPS:
            step += 1
            worker.heartbeat(lease, progress=100 * step // NUM_STEPS, stage="denoise")
            worker.checkpoint(lease, str(step).encode() + b"." * 100_000, state_version=1)
            say("checkpoint", lease.job_id, step)
        path = worker.output(lease, "video.mp4")
        path.write_bytes(film_of(lease.job.params["prompt"]))
        worker.finish(lease, {"video": (path, "video.mp4")})
        say("finished", lease.job_id)
    except LeaseLost:
        worker.abandon(lease)


def main(root: str, seat: str, url: str | None = None) -> None:
    where = None if url is None else make_url(url)
    say("opening")
    with JobStorage.open(
        Path(root), seat=seat, url=where, limits=LIMITS, busy_timeout_s=30, seat_timeout_s=10
    ) as storage:
        store, worker = JobStore(storage), JobWorker(storage)
        worker.recover()
        say("ready")
        number = 0
        while True:
            number += 1
            create(store, number)
            work(worker, store)


if __name__ == "__main__":
    main(*sys.argv[1:])
