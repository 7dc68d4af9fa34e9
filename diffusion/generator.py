"""The Python face of the video model: films, pictures and sound; at once, step by step, or awaited.

A thin face over an engine; whoever builds the engine (the package root) gives it one. Everything that can be wrong with
a request is found before it is submitted.
"""

from __future__ import annotations

import asyncio
import queue
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self, overload

from braid.diffusion.arguments import number, numbers, switch, text, whole
from braid.diffusion.delivery import Delivery
from braid.diffusion.generation import GeneratedMedia, StageClock, Update, as_media
from braid.diffusion.job import Job
from braid.diffusion.judging import judged
from braid.diffusion.media_files import check_path
from braid.diffusion.params import AdapterChoice
from braid.diffusion.workload import Diffusion
from braid.errors import InvalidRequest
from braid.llm_core.core import RequestClass
from braid.llm_core.engine.engine import WorkRequest
from braid.llm_core.engine.face import EngineFace
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.messages import Failed
from braid.llm_core.pipeline import Completed, Progressed

Event = Progressed | Completed | Failed


class FilmEngine(Protocol):
    """An engine of this process that has a video model."""

    def submit(self, request: WorkRequest, on_event: Callable[[Any], None]) -> None: ...

    def cancel(self, request_id: str, reason: str = ...) -> None: ...

    def close(self) -> None: ...


class Generation:
    """A generation under way: iterate for its `Update`s, ask `result()` for what it gives, `cancel()` it.

    As a context manager, and when an iteration is left early, it is cancelled unless it has ended.
    """

    def __init__(self, engine: FilmEngine, request: WorkRequest) -> None:
        self.id = request.id
        self._engine = engine
        self._path: Path | None = request.work.path
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._clock = StageClock()
        self._end: Completed | Failed | None = None
        engine.submit(request, self._events.put)

    def __iter__(self) -> Iterator[Update]:
        """Raises: RequestFailed: the generation failed or was cancelled."""
        try:
            while self._end is None:
                event = self._events.get()
                if isinstance(event, Progressed):
                    yield self._clock.update(event)
                else:
                    self._end = event
        finally:
            self._cancel_unless_ended()
        if isinstance(self._end, Failed):
            raise RequestFailed(self._end)

    def result(self) -> GeneratedMedia:
        """Wait for the end.

        Raises:
            RequestFailed: with the status, code and field that HTTP would give.
        """
        for _ in self:
            pass
        assert isinstance(self._end, Completed)
        return as_media(self._end.result, self._path)

    def cancel(self) -> None:
        """Ask for the end; `result()` then raises `RequestFailed`, unless the generation was quicker."""
        self._engine.cancel(self.id)

    def _cancel_unless_ended(self) -> None:
        if self._end is None:
            self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_unless_ended()


class DiffGenerator(EngineFace[FilmEngine]):
    """Generate with the video model of an engine.

    Args:
        engine, owns_engine: see `EngineFace`.
        model: the engine's.
        default_adapters: used by generations that name no `adapters`.
    """

    def __init__(
        self,
        engine: FilmEngine,
        model: Diffusion,
        *,
        default_adapters: Sequence[AdapterChoice] = (),
        owns_engine: bool = False,
    ) -> None:
        super().__init__(engine, owns_engine=owns_engine)
        self.model = model
        self._default_adapters = list(default_adapters)

    # -- generating ----------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str = "", *, path: str | Path | None = None, keep_frames: bool = True, **params: Any
    ) -> GeneratedMedia: ...
    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], *, path: None = None, keep_frames: bool = True, **params: Any
    ) -> list[GeneratedMedia]: ...
    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...] = "",
        *,
        path: str | Path | None = None,
        keep_frames: bool = True,
        **params: Any,
    ) -> GeneratedMedia | list[GeneratedMedia]:
        """Make what a prompt says, or what each of a list of prompts says.

        Args:
            path: a file that the engine writes the result to, frames as they become final; only with one prompt.
            keep_frames: whether the result has `frames`, too. False needs a `path`: memory then does not grow with the
                number of frames.
            params: those of `arguments.ARGUMENTS`; what is not given comes from the checkpoint's presets.
        Raises:
            InvalidRequest: before any work, with what would be right.
            CannotFit: before any work, with what is needed and what there is.
            RequestFailed: the work failed; of several, the first that did, and the others are cancelled.
        """
        if isinstance(prompt, list | tuple):
            if path is not None or not keep_frames:
                given = "path names one file" if path is not None else f"{keep_frames=} needs the path of one file"
                param = "path" if path is not None else "keep_frames"
                raise InvalidRequest(f"{given}, and there is a list of prompts; save each result", param=param)
            return self._generate_all(prompt, params)
        return self._submit(_delivery(self._job(prompt, params), path, keep_frames, 0), None).result()

    def start(
        self,
        prompt: str = "",
        *,
        path: str | Path | None = None,
        keep_frames: bool = True,
        preview_every: int = 0,
        request_class: RequestClass | None = None,
        **params: Any,
    ) -> Generation:
        """As `generate`, without waiting for the end: gives the `Generation`.

        Args:
            preview_every: steps between two previews; 0 for none. One costs about what one frame does to decode.
            request_class: None is standard for a picture and batch for a film.
        """
        job = self._job(prompt, params)
        return self._submit(_delivery(job, path, keep_frames, preview_every), request_class)

    async def generate_async(
        self, prompt: str = "", *, path: str | Path | None = None, keep_frames: bool = True, **params: Any
    ) -> GeneratedMedia:
        """`generate` for coroutines; cancelling the coroutine cancels the generation."""
        delivery = _delivery(self._job(prompt, params), path, keep_frames, 0)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Completed | Failed] = loop.create_future()

        def finish(event: Completed | Failed) -> None:
            if not ended.done():
                ended.set_result(event)

        def on_event(event: Event) -> None:
            if not isinstance(event, Progressed):
                loop.call_soon_threadsafe(finish, event)

        request = _request(delivery, None)
        self.engine.submit(request, on_event)
        try:
            event = await ended
        finally:
            if not ended.done() or ended.cancelled():
                self.engine.cancel(request.id)
        if isinstance(event, Failed):
            raise RequestFailed(event)
        return as_media(event.result, delivery.path)

    def _generate_all(self, prompts: Sequence[str], params: dict[str, Any]) -> list[GeneratedMedia]:
        if not prompts:
            raise InvalidRequest("prompt is an empty list of prompts", param="prompt")
        jobs = [self._job(prompt, params) for prompt in prompts]  # all are judged before any begins
        pending = deque(self._submit(Delivery(job), None) for job in jobs)
        try:
            return [pending.popleft().result() for _ in jobs]
        finally:
            for generation in pending:  # what nobody is going to read
                generation.cancel()

    def _job(self, prompt: str, given: dict[str, Any]) -> Job:
        return judged(self.model, prompt, given, self._default_adapters)

    def _submit(self, delivery: Delivery, request_class: RequestClass | None) -> Generation:
        return Generation(self.engine, _request(delivery, request_class))

    # -- adapters ------------------------------------------------------------------------------------------------------

    def add_adapter(
        self, path: str | Path, *, name: str | None = None, strength: float | Sequence[float] | None = None
    ) -> str:
        """Load a LoRA; gives its name.

        Args:
            name: None is the file's, without its suffix.
            strength: of all stages, or of each; use it in every generation that names no `adapters`. None: only where
                it is named.
        Raises:
            InvalidRequest: the name is taken, or the strength is no number.
            ModelFileError: the file is broken, or is for another model.
        """
        name = Path(path).stem if name is None else text("name", name)
        choice = None if strength is None else default_choice(name, strength)
        self.model.adapters.add(name, Path(path))
        if choice is not None:
            self._default_adapters.append(choice)
        return name

    def remove_adapter(self, name: str) -> None:
        """Forget a LoRA. Generations under way that still need to merge it fail.

        Raises:
            NotFound: there is none of that name.
        """
        self.model.adapters.remove(name)
        self._default_adapters = [choice for choice in self._default_adapters if choice.name != name]

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all that are loaded."""
        return tuple(adapter.name for adapter in self.model.adapters)


def default_choice(name: str, strength: float | Sequence[float]) -> AdapterChoice:
    """Raises: InvalidRequest: a strength is no number."""
    if isinstance(strength, list | tuple):
        return AdapterChoice(name=name, strengths=numbers("strength", strength))
    return AdapterChoice(name=name, strengths=(number("strength", strength),))


def _delivery(job: Job, path: str | Path | None, keep_frames: bool, preview_every: int) -> Delivery:
    job = replace(job, keep_frames=switch("keep_frames", keep_frames))
    if whole("preview_every", preview_every) < 0:
        raise InvalidRequest(f"preview_every={preview_every} must be 0 or more steps", param="preview_every")
    if path is None:
        if not keep_frames:
            raise InvalidRequest("keep_frames=False needs a path: nothing would have the frames", param="keep_frames")
        return Delivery(job, None, preview_every)
    if not isinstance(path, str | Path):
        raise InvalidRequest(f"path is a {type(path).__name__}: it must be the name of a file", param="path")
    if job.params.output_type != "frames":
        raise InvalidRequest(f"output_type={job.params.output_type!r} leaves nothing to write to path", param="path")
    check_path(Path(path), num_frames=job.num_frames if job.has_video else 0, has_sound=job.has_audio)
    return Delivery(job, Path(path), preview_every)


def _request(delivery: Delivery, request_class: RequestClass | None) -> WorkRequest:
    is_picture = delivery.job.has_video and delivery.job.num_frames == 1
    usual = RequestClass.STANDARD if is_picture else RequestClass.BATCH
    return WorkRequest(
        id=uuid.uuid4().hex,
        work=delivery,
        request_class=usual if request_class is None else request_class,
        attributes=delivery.job.trace_attributes,
        prompt=delivery.job.params.prompt or "",
    )
