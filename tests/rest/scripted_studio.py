"""A scripted engine that makes media, too, out of words in prompts, with a real store of jobs: for tests of protocols.

Words of a prompt: `!refuse` is refused when judged, `!fail` fails at work, `!wait` goes on until cancelled, `!steps`
shows four previews slowly. Every file's bytes are its name and the job's seed, and so checkable.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripted_engine import READY, ScriptedEngine, failed

from braid.diffusion.jobs.failures import JobCancelled, JobIsFinal, LeaseLost
from braid.diffusion.jobs.messages import (
    Activity,
    ActivityRequest,
    CancelJob,
    JobEnded,
    JobEvent,
    JobProgress,
    MediaResolved,
    Nudge,
    ResolveMedia,
)
from braid.diffusion.jobs.records import REWRITTEN_PROMPT, JobError, Lease
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.worker import JobWorker
from braid.errors import BraidError, InvalidRequest
from braid.llm_core.engine.messages import EngineReady

DEFAULTS = {"height": 64, "width": 96, "num_frames": 25, "frame_rate": 24.0, "num_inference_steps": 4}


def pipeline(name: str, multiple: int) -> dict[str, Any]:
    return {"name": name, "num_stages": 1, "makes_video": True, "needs": [], "size_multiple": multiple,
            "has_guidance": True, "defaults": DEFAULTS}  # fmt: skip


STUDIO = {
    "id": "scripted-film",
    "aliases": ["film"],
    "architecture": "none",
    "capabilities": ["image", "video", "audio"],
    "generation": {
        "default_pipeline": "one_stage",
        "pipelines": [
            *(pipeline(name, 32) for name in ("one_stage", "extend", "retake", "text_to_audio")),
            pipeline("two_stage_hq", 64),
        ],
        "frame_multiple": 8,
    },
}
STEP = {"number": 1, "workload": "video", "kind": "denoise", "lane": 0, "start_s": 7.0, "ms": 20.0}
FILES = {
    "video": {
        "video": "video.mp4", "thumbnail": "thumbnail.webp", "spritesheet": "spritesheet.jpg",
        "first_frame": "first_frame.png", "audio": "audio.wav",
    },
    "image": {"image": "image.png"},
    "audio": {"audio": "audio.wav"},
}  # fmt: skip


def content(name: str, seed: int) -> bytes:
    return f"{name} {seed} ".encode() * 50


class ScriptedStudio(ScriptedEngine):
    """Works on jobs of a data directory, one after the other, on a thread."""

    content = staticmethod(content)

    def __init__(self, root: Path) -> None:
        modalities = {"chat": "", "image": "", "video": "", "audio": ""}
        super().__init__(EngineReady((*READY.models, STUDIO), modalities=modalities))
        self.storage = JobStorage.open(root, seat="engine", limits=JobLimits(heartbeat_s=0.001))
        self.tell: Callable[[JobEvent], None] = lambda event: None
        self.busy_with = ["video_1"]
        self.resolved: list[ResolveMedia] = []
        self.uploads: list[dict[str, bytes]] = []
        self.estimate_s: float | None = 8.0
        self.is_paused = threading.Event()
        self._worker = JobWorker(self.storage)
        self._awake = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, request: Any, on_event: Callable[[Any], None]) -> None:
        if isinstance(request, ActivityRequest):
            on_event(Activity(request.id, 7.5, ({**STEP, "requests": self.busy_with},)))
        elif isinstance(request, ResolveMedia):
            on_event(self._judged(request))
        else:
            super().submit(request, on_event)

    def send(self, nudge: Nudge) -> None:
        if isinstance(nudge, CancelJob):
            self.cancelled.put(nudge.id)
        self._awake.set()

    def close(self) -> None:
        super().close()
        self._is_closed = True
        self._awake.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.storage.close()

    def _judged(self, request: ResolveMedia) -> Any:
        self.resolved.append(request)
        self.uploads.append({name: Path(path).read_bytes() for name, path in request.inputs.items()})
        if "!refuse" in request.params["prompt"]:
            error: BraidError = InvalidRequest("height=9 must be a multiple of 32", param="height")
            return failed(request.id, error)
        decided = {**DEFAULTS, "seed": len(self.resolved), "pipeline": "one_stage", **request.params}
        if request.kind == "image":
            decided["num_frames"] = 1
        return MediaResolved(request.id, decided, 1000, self.estimate_s)

    def _work(self) -> None:
        while not self._is_closed:
            lease = None if self.is_paused.is_set() else self._worker.claim(["image", "video", "audio"])
            if lease is None:
                self._awake.wait(0.05)
                self._awake.clear()
                continue
            try:
                status = self._done(lease)
            except (LeaseLost, JobIsFinal):
                self._worker.abandon(lease)
                continue
            self.tell(JobEnded(lease.job_id, status))

    def _done(self, lease: Lease) -> str:
        try:
            return self._do(lease)
        except JobCancelled:
            return str(self._worker.acknowledge_cancel(lease).status)

    def _do(self, lease: Lease) -> str:
        prompt = lease.job.params["prompt"]
        self._worker.heartbeat(lease, progress=1, stage="stage_1")
        if "!fail" in prompt:
            self._worker.fail(lease, JobError("no_good", "the decoder met a NaN"))
            return "failed"
        if "!full" in prompt:
            self._worker.fail(lease, JobError("disk_full", "there is no room for the picture"))
            return "failed"
        while "!wait" in prompt and not self._is_closed:
            self._worker.heartbeat(lease, progress=2, stage="stage_1")
            time.sleep(0.01)
        for step in range(1, 5):
            self._show(lease, step)
            if "!steps" in prompt:
                time.sleep(0.15)
        suffix = {"webp": "webp", "jpeg": "jpg"}.get(lease.job.params.get("output_format", ""), "png")
        outputs = {}
        for name, file in FILES[lease.job.kind].items():
            file = f"image.{suffix}" if name == "image" else file
            path = self._worker.output(lease, file)
            path.write_bytes(self.content(name, lease.job.params["seed"]))
            outputs[name] = (path, file)
        is_rewritten = lease.job.params.get("enhance_prompt")
        self._worker.finish(lease, outputs, facts={REWRITTEN_PROMPT: f"{prompt}, rewritten"} if is_rewritten else None)
        return "completed"

    def _show(self, lease: Lease, step: int) -> None:
        self._worker.heartbeat(lease, progress=step * 20, stage="stage_1")
        preview = b"\xff\xd8 preview %d" % step
        self.tell(JobProgress(lease.job_id, "stage_1", step, 4, step * 20, 4.0 - step, preview))


def telling(loop: asyncio.AbstractEventLoop, on_event: Callable[[JobEvent], None]) -> Callable[[JobEvent], None]:
    """From the studio's thread to the loop."""

    def tell(event: JobEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(on_event, event)

    return tell
