"""A scripted engine that judges requests by the rules of a real model of toy size, with real files in place of results.

What it lets through is judged once more from what was decided, as it is when a job begins: that must change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from scripted_studio import ScriptedStudio

from braid.diffusion.jobs.estimate import WorkModel, expected_bytes
from braid.diffusion.jobs.messages import MediaResolved, ResolveMedia
from braid.diffusion.jobs.requests import read_media
from braid.diffusion.jobs.store import JobStore
from braid.llm_core.engine.failure import as_braid_error, failed
from braid.tests.diffusion.jobs.job_media import write_media
from braid.tests.diffusion.rig import open_diffusion, write_files
from braid.video_factory import describe_generation

FILE_OF = {"video": "clip.mp4", "audio": "sound.wav"}


class JudgingStudio(ScriptedStudio):
    """A studio whose answers to `ResolveMedia` are those of a server with the model in `folder`, which it writes."""

    def __init__(self, root: Path, folder: Path) -> None:
        super().__init__(root)
        self.files = {path.name: path.read_bytes() for path in write_media(folder).iterdir()}
        self._model = open_diffusion(write_files(folder))
        self._model.facts = replace(self._model.facts, has_language_model=True)
        self._judges = ThreadPoolExecutor(1)
        self._store = JobStore(self.storage)
        film = self.ready.models[-1] | {"generation": describe_generation(self._model)}
        self.ready = msgspec.structs.replace(self.ready, models=(*self.ready.models[:-1], film))

    def content(self, name: str, seed: int) -> bytes:  # type: ignore[override]
        return self.files[FILE_OF.get(name, "picture.png")]

    def submit(self, request: Any, on_event: Callable[[Any], None]) -> None:
        if isinstance(request, ResolveMedia):
            self._judges.submit(lambda: on_event(self._judged(request)))
        else:
            super().submit(request, on_event)

    def close(self) -> None:
        self._judges.shutdown()
        super().close()
        self._model.close()

    def _judged(self, request: ResolveMedia) -> Any:
        try:
            judge = partial(read_media, request.kind, locate=partial(self._located, request), model=self._model)
            media = judge(request.params)
            again = judge(msgspec.json.decode(msgspec.json.encode(media.params)))
            assert again.params == media.params, (media.params, again.params)
            estimate_s = WorkModel().seconds(media.job)
            return MediaResolved(request.id, media.params, expected_bytes(media.job), estimate_s)
        except Exception as error:
            return failed(request.id, as_braid_error(error, f"judging {request.params}"))

    def _located(self, request: ResolveMedia, name: str, reference: Mapping[str, Any]) -> Path:
        if "input" in reference:
            return Path(request.inputs[reference["input"]])
        return self._store.path(self._store.get(reference["job"]), reference["file"])
