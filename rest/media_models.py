"""The model that makes pictures, films and sound: found by name, and what `size`, `seconds` and `quality` mean to it.

OpenAI's sizes and lengths are wishes, and become the nearest that the model can make; `width`, `height` and
`num_frames` are meant exactly, and judged by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from braid.errors import InvalidRequest, ModelNotFound, NotReady, Unsupported
from braid.llm_core.engine.messages import EngineReady

LOW = ("low",)
HIGH = ("high", "hd", "xhigh", "max")
FAST_PIPELINE = "distilled"
BEST_PIPELINE = "two_stage_hq"


@dataclass(frozen=True, slots=True)
class MediaModel:
    """One model's entry of `EngineReady.models`."""

    card: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.card["id"])

    def pipeline_for(self, quality: str) -> str | None:
        """The pipeline that a quality means; None is the model's default."""
        wanted = FAST_PIPELINE if quality in LOW else BEST_PIPELINE if quality in HIGH else None
        return wanted if wanted in {pipeline["name"] for pipeline in self._generation("quality")["pipelines"]} else None

    def size(self, wanted: tuple[int, int], pipeline: str | None) -> dict[str, int]:
        """The nearest width and height that a pipeline can make."""
        multiple = int(self._pipeline(pipeline, "size")["size_multiple"])
        width, height = (max(multiple, (side + multiple // 2) // multiple * multiple) for side in wanted)
        return {"width": width, "height": height}

    def num_frames(self, seconds: float, pipeline: str | None, frame_rate: float | None) -> int:
        """The nearest number of frames, two latent frames at least."""
        rate = frame_rate or float(self._pipeline(pipeline, "seconds")["defaults"]["frame_rate"])
        multiple = int(self._generation("seconds")["frame_multiple"])
        return max(1, round(seconds * rate / multiple)) * multiple + 1

    def _pipeline(self, name: str | None, param: str) -> Mapping[str, Any]:
        generation = self._generation(param)
        wanted = name or generation["default_pipeline"]
        found = next((pipeline for pipeline in generation["pipelines"] if pipeline["name"] == wanted), None)
        if found is None:
            names = ", ".join(pipeline["name"] for pipeline in generation["pipelines"])
            raise InvalidRequest(f"pipeline={wanted!r}: {self.id} has {names}", param="pipeline")
        return found  # type: ignore[no-any-return]

    def _generation(self, param: str) -> Mapping[str, Any]:
        generation: Mapping[str, Any] | None = self.card.get("generation")
        if generation is None:
            raise Unsupported(f"{param}: {self.id} does not say what it can make; leave the field out", param=param)
        return generation


def media_model(ready: EngineReady, name: str | None, kind: str) -> MediaModel:
    """The model that makes a kind of thing.

    Raises:
        NotReady: there is none (yet).
        ModelNotFound: no model has this name, or the one that has it makes no such things.
    """
    able = [model for model in ready.models if kind in model.get("capabilities", ())]
    if not able:
        raise NotReady(ready.modalities.get(kind) or f"no model that makes {kind} is loaded")
    if name is None:
        return MediaModel(able[0])
    for model in able:
        if name in (model["id"], *model.get("aliases", ())):
            return MediaModel(model)
    names = ", ".join(model["id"] for model in able)
    raise ModelNotFound(f"model {name[:200]!r} is none that makes {kind} here; there is {names}", param="model")
