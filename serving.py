"""What an engine child serves: chat at once; pictures, films and sound as soon as their model is loaded beside it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from braid.config import ServeConfig
from braid.diffusion.jobs.messages import Activity, ActivityRequest, Nudge, ResolveMedia
from braid.errors import DiskFull, NotReady
from braid.factory import KeepSpans, build_engine
from braid.job_storage import open_jobs
from braid.llm_core.core import JournalEntry
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.failure import as_braid_error, failed
from braid.llm_core.engine.messages import EngineReady
from braid.rest.wire_messages import OwnEvent, WireSubmission
from braid.tracing.engine_tracing import told
from braid.tracing.span import Span
from braid.tracing.trace_context import TraceContext

if TYPE_CHECKING:
    from braid.diffusion.jobs.runner import JobRunner
    from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint
    from braid.video_factory import LoadedVideo

logger = logging.getLogger("braid.engine")

MEDIA = ("image", "video", "audio")
NO_VIDEO_MODEL = "the server was started without a video model; start it with --video and the path of a checkpoint"

_LOAD_AGAIN_S = 2.0
"""Where the store of jobs had no room, or somebody held it."""

Tell = Callable[[OwnEvent], None]


def build_serving(config: ServeConfig, tell: Tell, *, on_crash: Callable[[], None] = lambda: None) -> Serving:
    """Load the language model and serve it; a video model follows on a thread of its own.

    Args:
        tell: given what happens to jobs, what more was loaded, and spans; from any thread.
        on_crash: called if the engine's loop fails, or if another process does the work of this one.
    Raises:
        BraidError: the language model cannot be loaded; of the video model, what its headers tell.
    """
    if config.video is None:
        return Serving(build_engine(config.engine, on_crash=on_crash, keep_spans=_sent(tell)))
    from braid.video_factory import check_language, language_of, open_video

    checkpoint = open_video(config.video)
    engine_config = config.engine
    if config.takes_language_of_video:
        engine_config = msgspec.structs.replace(engine_config, model=language_of(checkpoint))
    engine = build_engine(engine_config, on_crash=on_crash, keep_spans=_sent(tell), open_spans=_open_spans(config))
    try:
        check_language(checkpoint, engine.parts.language)
    except BaseException:
        engine.close()
        raise
    serving = Serving(engine, why_no_media="the video model is loading")
    serving.load(lambda: _with_jobs(config, checkpoint, engine, tell, on_crash), tell)
    return serving


class Serving:
    """A `MediaEngine` in this process.

    Args:
        why_no_media: why pictures, films and sound cannot be asked for.
    """

    def __init__(self, engine: Engine, *, why_no_media: str = NO_VIDEO_MODEL) -> None:
        self._engine = engine
        self._why_no_media = why_no_media
        self._runner: JobRunner | None = None
        self._loading: threading.Thread | None = None
        self._is_hopeless = False
        """It makes no sense to try once more to load it."""
        self._stops = threading.Event()
        self._closing = threading.Lock()
        self._is_closed = False

    def load(self, load: Callable[[], JobRunner], tell: Tell) -> None:
        """Load what is needed for media, on a thread of its own."""
        self._loading = threading.Thread(target=self._load, args=(load, tell), name="braid-video-load", daemon=True)
        self._loading.start()

    def _load(self, load: Callable[[], JobRunner], tell: Tell) -> None:
        while (runner := self._loaded(load, tell)) is None:
            if self._is_hopeless or self._stops.wait(_LOAD_AGAIN_S):
                return
        with self._closing:
            if not self._is_closed:
                self._runner = runner
                tell(self.ready)
                return
        runner.close()

    def _loaded(self, load: Callable[[], JobRunner], tell: Tell) -> JobRunner | None:
        """None where it cannot be loaded; chat goes on without."""
        from braid.diffusion.jobs.failures import StoreBusy, StoreUnavailable

        try:
            return load()
        except Exception as error:
            problem = as_braid_error(error, "loading the video model")
        self._is_hopeless = not isinstance(problem, StoreBusy | StoreUnavailable | DiskFull)
        if problem.message != self._why_no_media:
            self._why_no_media = problem.message
            logger.error("there is no video model: %s", problem.message)
            tell(self.ready)
        return None

    @property
    def ready(self) -> EngineReady:
        """What is loaded so far."""
        ready = self._engine.ready
        able = {name for model in ready.models for name in model["capabilities"]}
        why_not = {name: f"the video model makes no {name}" for name in MEDIA}
        if self._runner is None:
            able, why_not = able.difference(MEDIA), dict.fromkeys(MEDIA, self._why_no_media)
        modalities = {name: "" if name in able else why_not[name] for name in MEDIA}
        return msgspec.structs.replace(ready, modalities={"chat": ""} | modalities)

    def submit(self, request: WireSubmission, on_event: Callable[[Any], None]) -> None:
        """See `EngineHandle.submit`."""
        if isinstance(request, ActivityRequest):
            on_event(self._activity(request))
        elif not isinstance(request, ResolveMedia):
            self._engine.submit(request, on_event)
        elif self._runner is None:
            on_event(failed(request.id, NotReady(self._why_no_media)))
        else:
            self._runner.resolve(request, on_event)

    def trace_of(self, request_id: str) -> TraceContext | None:
        """Where one of the last requests is in its trace; None if nobody traces it."""
        place: TraceContext | None = self._engine.parts.tracing.trace_of(request_id)
        return place

    def send(self, nudge: Nudge) -> None:
        """Take what has no answer; what comes before the video model is there is found in the store."""
        if self._runner is not None:
            self._runner.send(nudge)

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        """See `EngineHandle.cancel`."""
        self._engine.cancel(request_id, reason)

    def close(self) -> None:
        """Put the jobs back in their queue, then stop the engine. Idempotent."""
        self._stops.set()
        with self._closing:
            self._is_closed = True
            runner = self._runner
        if runner is not None:
            runner.close()
        self._engine.close()

    def _activity(self, request: ActivityRequest) -> Activity:
        now = time.monotonic()
        entries = self._engine.scheduler.journal.since()
        return Activity(request.id, now, recent_steps(entries, since=now - request.seconds))


def _with_jobs(
    config: ServeConfig, checkpoint: LTX2Checkpoint, engine: Engine, tell: Tell, on_superseded: Callable[[], None]
) -> JobRunner:
    """The video model, and who does the stored jobs with it."""
    from braid.diffusion.jobs.runner import JobRunner, RunnerLimits
    from braid.diffusion.jobs.uploads import UploadLimits
    from braid.video_factory import add_video

    assert config.video is not None
    runner = JobRunner(
        open_jobs(config, "engine"),
        engine,
        tell,
        limits=RunnerLimits(max_films=config.max_films, max_pictures=config.max_pictures),
        uploads=UploadLimits(max_bytes=config.max_upload_bytes),
        on_superseded=on_superseded,
        give_span=engine.parts.tracing.give_away,
    )
    try:
        loaded = add_video(engine, config.video, checkpoint, on_checkpoint=runner.take_state)
        runner.begin(loaded.model, loaded.default_adapters, _facts(engine, loaded))
    except BaseException:
        runner.close()
        raise
    return runner


def _sent(tell: Tell) -> KeepSpans:
    """Spans go to HTTP, which keeps them."""

    def keep(spans: list[Span]) -> None:
        for event in told(spans):
            tell(event)

    return keep


def _open_spans(config: ServeConfig) -> Path:
    """Where this seat's engine notes what is under way, for its successor."""
    from braid.diffusion.jobs.durable import make_folder

    assert config.data_dir is not None
    folder = Path(config.data_dir) / "seats"
    make_folder(folder)
    return folder / f"{config.seat('engine')}.spans"


def _facts(engine: Engine, loaded: LoadedVideo) -> dict[str, Any]:
    """What the bits of results depend on."""
    from braid.diffusion.jobs.bit_facts import bit_facts

    language = engine.parts.language
    model = {
        "name": loaded.model.checkpoint.path.name,
        "language": None if language is None else language.name,
        "dtype": str(loaded.model.facts.dtype).removeprefix("torch."),
        "quantization": loaded.config.quantization,
        "adapters": [adapter.name for adapter in loaded.model.adapters],
        "has_upsampler": loaded.model.facts.has_upsampler,
    }
    backend = engine.parts.backend
    return bit_facts(num_threads=backend.num_threads, device=backend.device, model=model)


def recent_steps(entries: list[JournalEntry], *, since: float) -> tuple[dict[str, Any], ...]:
    """The steps that ended after `since`, as `Activity` tells them."""
    return tuple(_step(entry) for entry in entries if entry.start + _ms(entry) / 1000 > since)


def _ms(entry: JournalEntry) -> float:
    return entry.device_ms + entry.host_ms


def _step(entry: JournalEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "workload": entry.workload,
        "kind": entry.kind,
        "lane": entry.lane,
        "requests": list(entry.request_ids),
        "start_s": entry.start,
        "ms": _ms(entry),
        "device_ms": entry.device_ms,
    }
