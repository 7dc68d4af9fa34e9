"""Adds a video model to an engine, and the Python faces of an engine that has one.

A server has one language model: it chats, and it encodes the prompts of films. So the language model in memory must
have the shape of the one that the video checkpoint was trained with; another one is refused, never loaded beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from braid.config import BraidConfig, LoraConfig, VideoConfig
from braid.diffusion.generator import DiffGenerator as DiffusionFace
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint, open_ltx2
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.presets import Preset
from braid.diffusion.models.ltx2.text_encoder import TextEncoderSpec
from braid.diffusion.params import AdapterChoice, GenerationParams
from braid.diffusion.pipelines.choice import PIPELINES, PipelineChoice
from braid.diffusion.pipelines.sampler_choice import SAMPLERS
from braid.diffusion.prompts import LanguageModelFacts
from braid.diffusion.validation import choose_pipeline
from braid.errors import InvalidRequest, ModelNotFound, Unsupported
from braid.factory import LLM, EngineParts, LoadedLanguage, build_engine, build_engine_without_language
from braid.llm_core.core import Request
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.handle import EngineHandle
from braid.video_names import DEFAULT_VIDEO, resolved

if TYPE_CHECKING:
    from braid.diffusion.workload import Diffusion

WITHOUT_LANGUAGE = "none"
"""In the place of a language model's name: prompts are then given as embeds."""
DEFAULT_LANGUAGE = "smollm2"
_DEFAULTS = ("height", "width", "num_frames", "frame_rate", "num_inference_steps", "negative_prompt")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, None: None}


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """The video model of an engine."""

    config: VideoConfig
    model: Diffusion
    default_adapters: tuple[AdapterChoice, ...]


def open_video(config: VideoConfig) -> LTX2Checkpoint:
    """Map and check the files; nothing is read yet.

    Raises:
        ModelNotFound: there is no such model; the message says what can be given.
        ModelFileError: the files are broken, or not those of a model that we run.
    """
    config = resolved(config)
    if not Path(config.model).exists():
        not_yet = f"; {DEFAULT_VIDEO} is not part of this installation yet" if config.model == DEFAULT_VIDEO else ""
        raise ModelNotFound(
            f"there is no video model {config.model!r}{not_yet}; give the safetensors file of an LTX-2 or LTX-2.3 "
            f"checkpoint, or its diffusers folder, or train {DEFAULT_VIDEO} as docs/braid-tiny.md says",
            param="model",
        )
    for name in ("upsampler", "distilled_lora"):
        _check_exists(name, getattr(config, name))
    for index, lora in enumerate(config.loras):
        _check_exists(f"loras.{index}", lora.path)
    return open_ltx2(config.model, upsampler=config.upsampler)


def _check_exists(param: str, path: str | None) -> None:
    if path is not None and not Path(path).exists():
        raise ModelNotFound(f"{param}={path!r} does not exist; give a safetensors file", param=param)


def language_of(checkpoint: LTX2Checkpoint) -> str:
    """The name of the language model that a checkpoint was trained with, or `WITHOUT_LANGUAGE`."""
    if not checkpoint.has(Part.TEXT_PROJECTION):
        return WITHOUT_LANGUAGE
    encoder = checkpoint.text_encoder()
    return encoder.folder or encoder.model


def check_language(checkpoint: LTX2Checkpoint, language: LoadedLanguage | None) -> None:
    """Refuse a language model whose hidden states are of no use to the checkpoint. Names cannot be compared: a copy on
    this machine has another one.

    Raises:
        Unsupported: it has another width, or fewer layers than are asked for.
    """
    if language is None or not checkpoint.has(Part.TEXT_PROJECTION):
        return
    encoder: TextEncoderSpec = checkpoint.text_encoder()
    width, num_layers = language.config.hidden_size, language.config.num_layers
    if width != encoder.hidden_size or max(encoder.layers) > num_layers:
        raise Unsupported(
            f"{checkpoint.path.name} was trained with the prompts of {encoder.model} (hidden states of "
            f"{encoder.hidden_size}, up to layer {max(encoder.layers)}), and the language model in memory is "
            f"{language.name} ({width}, {num_layers} layers). A server has one language model: give "
            f"llm={encoder.model!r} or a copy of it, or llm={WITHOUT_LANGUAGE!r} and prompt_embeds",
            param="llm",
        )


def add_video(
    engine: Engine,
    config: VideoConfig,
    checkpoint: LTX2Checkpoint,
    *,
    on_checkpoint: Callable[[Request, Any], None] = lambda request, state: None,
) -> LoadedVideo:
    """Load a video model into a running engine; from any thread, chat goes on meanwhile.

    Args:
        on_checkpoint: told each state of a generation; on the engine's thread.
    Raises:
        Unsupported: the engine has a video model, or its language model is of no use to this one.
        ModelFileError: a number in the files is not finite, or a LoRA is for another model.
        CannotFit: the memory budget is too small.
        EngineDied: the engine was closed meanwhile.
    """
    from braid.diffusion.workload import Diffusion

    config = resolved(config)
    parts: EngineParts = engine.parts
    if parts.video is not None:
        raise Unsupported(f"the engine has the video model {parts.video.config.model!r} already; it takes one")
    check_language(checkpoint, parts.language)
    _prepare(checkpoint)
    model = Diffusion(
        checkpoint,
        parts.arena,
        adapters=_adapter_files(config),
        distilled_adapter=None if config.distilled_lora is None else Path(config.distilled_lora).stem,
        language=_facts(parts.language),
        device=parts.backend.device,
        dtype=_DTYPES[config.dtype],
        offload=config.offload,
        quantization=config.quantization,
        on_checkpoint=on_checkpoint,
    )
    model.workload.delegate_to(engine.scheduler)
    engine.add(model.workload, _describe(model), release=model.close)
    choices = tuple(AdapterChoice(name=_name(lora), strengths=lora.strengths) for lora in config.loras)
    loaded = LoadedVideo(config, model, choices)
    parts.video = loaded
    return loaded


def _prepare(checkpoint: LTX2Checkpoint) -> None:
    """Read every number once: it takes seconds, and would otherwise be done by the first step that needs it, while chat
    waits. `Diffusion` imports what builds the networks, for the same reason.

    Raises:
        ModelFileError: a number is not finite.
    """
    checkpoint.check_finite(checkpoint.parts)
    if checkpoint.upsampler is not None:
        for tensor in checkpoint.upsampler.tensors.values():
            tensor.check_finite()


def _adapter_files(config: VideoConfig) -> dict[str, Path]:
    files = {} if config.distilled_lora is None else {Path(config.distilled_lora).stem: Path(config.distilled_lora)}
    for lora in config.loras:
        if _name(lora) in files:
            raise InvalidRequest(f"two LoRAs are called {_name(lora)!r}; give one of them a name", param="loras")
        files[_name(lora)] = Path(lora.path)
    return files


def _name(lora: LoraConfig) -> str:
    return lora.name or Path(lora.path).stem


def _facts(language: LoadedLanguage | None) -> LanguageModelFacts | None:
    if language is None:
        return None
    return LanguageModelFacts(language.tokenizer, language.chat_template, language.context_length)


def _describe(model: Diffusion) -> dict[str, Any]:
    facts = model.facts
    streams = [name for name, is_there in (("video", facts.has_video), ("audio", facts.has_audio)) if is_there]
    return {
        "id": model.checkpoint.path.stem,
        "aliases": [],
        "architecture": f"ltx-{model.checkpoint.model_version or 2}",
        "capabilities": [*(["image"] if facts.has_video else []), *streams],
        "device": facts.device,
        "generation": describe_generation(model),
    }


def describe_generation(model: Diffusion) -> dict[str, Any]:
    """What can be asked of a video model, as JSON, for those who have no model at hand."""
    facts = model.facts
    pipelines = [
        {
            "name": name,
            "size_multiple": facts.geometry.size_multiple(is_two_stage=choice.num_stages > 1),
            "needs": [need for need in ("video", "waveform", "images", "window") if getattr(choice, f"needs_{need}")],
            "makes_video": choice.makes_video,
            "defaults": _defaults(facts.presets[name]),
        }
        for name, choice in PIPELINES.items()
        if _is_there(choice, name, facts)
    ]
    return {
        "default_pipeline": choose_pipeline(GenerationParams(), facts),
        "frame_multiple": facts.geometry.video.time_factor,
        "pipelines": pipelines,
        "samplers": list(SAMPLERS),
        "adapters": [adapter.name for adapter in model.adapters if adapter.name != facts.distilled_adapter],
        "has_audio": facts.has_audio,
    }


def _defaults(preset: Preset) -> dict[str, Any]:
    """What a pipeline does where nothing is said, as it would be said."""
    guidance = {"video": preset.guidance.video, "audio": preset.guidance.audio}
    streams = {name: asdict(stream) for name, stream in guidance.items() if stream is not None}
    return {key: getattr(preset, key) for key in _DEFAULTS} | {"guidance": streams}


def _is_there(choice: PipelineChoice, name: str, facts: ModelFacts) -> bool:
    """Whether the checkpoint has all parts for a pipeline."""
    has_streams = facts.has_video if choice.makes_video else facts.has_audio
    if not has_streams or (choice.needs_waveform and not facts.has_audio):
        return False
    # Second stages have few steps: those of a full model need its distilled LoRA to be any good.
    has_distilled = name == "distilled" or facts.distilled_adapter is not None
    return choice.num_stages == 1 or (facts.has_upsampler and has_distilled)


# -- the faces ---------------------------------------------------------------------------------------------------------


class DiffGenerator(DiffusionFace):
    """Films, pictures and sound from a video model in this process. Made by `from_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path = DEFAULT_VIDEO,
        *,
        device: str | None = None,
        loras: Sequence[LoraConfig | str | Path | tuple[str | Path, float]] = (),
        offload: str | None = None,
        quantization: str | None = None,
        upsampler: str | Path | None = None,
        distilled_lora: str | Path | None = None,
        llm: str | None = None,
        engine: EngineHandle | None = None,
        dtype: str | None = None,
        num_threads: int | None = None,
        memory_budget_bytes: int | None = None,
    ) -> DiffGenerator:
        """Load a video model, and the language model that it was trained with.

        Args:
            path_or_name: the safetensors file of an LTX-2 or LTX-2.3 checkpoint, or its diffusers folder.
            loras: files, (file, strength), or `LoraConfig`; used by generations that name no `adapters`.
            offload: `none`, `cpu` or `stream`; see `VideoConfig` and docs/memory.md. None is `none`: the transformer
                stays on the device, and other networks leave by themselves when memory is short.
            quantization: `fp8-cast` stores large products in 8 bits: half the memory of bfloat16, and other results.
            upsampler: the spatial latent upsampler, for pipelines of two stages.
            distilled_lora: the checkpoint's distilled LoRA, for the same.
            llm: None is the model that the checkpoint names; a copy of it may have any name; `none` loads none, and
                prompts are then given as embeds.
            engine: share this engine, its language model, device and memory, instead of building one; leave out `llm`,
                `device`, `num_threads` and `memory_budget_bytes` then.
            dtype, num_threads, memory_budget_bytes, device: see `VideoConfig` and `BraidConfig`.
        Raises:
            InvalidRequest, Unsupported: an argument is wrong, with what would be right.
            ModelNotFound, ModelFileError: a file is absent or broken.
            CannotFit: the memory budget is too small.
        """
        config = video_config(
            path_or_name, upsampler, distilled_lora, loras, dtype, offload=offload, quantization=quantization
        )
        if engine is not None:
            _refuse_beside_engine(
                llm=llm, device=device, num_threads=num_threads, memory_budget_bytes=memory_budget_bytes
            )
            return cls._sharing(_local(engine), config)
        checkpoint = open_video(config)
        base = BraidConfig(
            model=llm or language_of(checkpoint),
            device=device,
            num_threads=num_threads,
            memory_budget_bytes=memory_budget_bytes,
        )
        owned = _engine(base)
        try:
            return cls._of(owned, add_video(owned, config, checkpoint), owns_engine=True)
        except BaseException:
            owned.close()
            raise

    @classmethod
    def _sharing(cls, engine: Engine, config: VideoConfig) -> DiffGenerator:
        """On an engine that may have the very same video model already."""
        loaded: LoadedVideo | None = engine.parts.video
        if loaded is None or loaded.config != config:
            loaded = add_video(engine, config, open_video(config))
        return cls._of(engine, loaded)

    @classmethod
    def _of(cls, engine: Engine, loaded: LoadedVideo, *, owns_engine: bool = False) -> DiffGenerator:
        return cls(engine, loaded.model, default_adapters=loaded.default_adapters, owns_engine=owns_engine)


def _refuse_beside_engine(**given: object) -> None:
    """Raises: InvalidRequest: what an engine has decided already is asked for anew."""
    for name, value in given.items():
        if value is not None:
            raise InvalidRequest(f"{name}={value!r} belongs to the engine that is given; leave one out", param=name)


def video_config(
    path_or_name: str | Path,
    upsampler: str | Path | None = None,
    distilled_lora: str | Path | None = None,
    loras: Sequence[LoraConfig | str | Path | tuple[str | Path, float]] = (),
    dtype: str | None = None,
    *,
    offload: str | None = None,
    quantization: str | None = None,
) -> VideoConfig:
    """Raises: InvalidRequest: a LoRA is given in no way that we know, or an option can never be right."""
    config = VideoConfig(
        model=str(path_or_name),
        upsampler=None if upsampler is None else str(upsampler),
        distilled_lora=None if distilled_lora is None else str(distilled_lora),
        loras=tuple(_lora(index, lora) for index, lora in enumerate(loras)),
        dtype=dtype,
        offload="none" if offload is None else offload,
        quantization=quantization,
    )
    return resolved(config)


def _lora(index: int, lora: Any) -> LoraConfig:
    if isinstance(lora, LoraConfig):
        return lora
    if isinstance(lora, str | Path):
        return LoraConfig(path=str(lora))
    try:
        path, strength = lora
        return LoraConfig(path=str(path), strengths=(float(strength),))
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"loras.{index}={lora!r} must be a file, (file, strength) or LoraConfig", param=f"loras.{index}"
        ) from None


def _engine(config: BraidConfig) -> Engine:
    return build_engine_without_language(config) if config.model == WITHOUT_LANGUAGE else build_engine(config)


def _local(engine: EngineHandle) -> Engine:
    if not isinstance(engine, Engine) or not isinstance(engine.parts, EngineParts):
        raise Unsupported("a video model can only be added to an engine of this process", param="engine")
    return engine


class Braid:
    """A server's parts in one process: one engine, one memory budget, one language model, and the faces that share it.

    The language model is ready when this returns; the video model loads meanwhile, and `diffusion` waits for it.

    Args:
        llm: as `LLM`'s model. None is the one that the video model was trained with, or smollm2 without one; `none`
            loads none.
        video: a `VideoConfig`, or just the path of the checkpoint.
        engine: share this engine instead of building one; `llm`, `device` and the other options are then not looked at.
        device, kernels, num_threads, memory_budget_bytes: see `BraidConfig`.
    Raises:
        BraidError: a model is unknown, broken, not supported or too large; of the video model, what its headers tell.
    """

    def __init__(
        self,
        llm: str | None = None,
        *,
        video: VideoConfig | str | Path | None = None,
        engine: EngineHandle | None = None,
        device: str | None = None,
        kernels: str | None = None,
        num_threads: int | None = None,
        memory_budget_bytes: int | None = None,
    ) -> None:
        wanted = video if isinstance(video, VideoConfig) or video is None else video_config(video)
        checkpoint = None if wanted is None else open_video(wanted)
        self._owns_engine = engine is None
        if engine is None:
            engine = _engine(
                BraidConfig(
                    model=llm or (DEFAULT_LANGUAGE if checkpoint is None else language_of(checkpoint)),
                    device=device,
                    kernels=kernels,
                    num_threads=num_threads,
                    memory_budget_bytes=memory_budget_bytes,
                )
            )
        self.llm = LLM(engine=engine)
        self._loading: _Loading | None = None
        if wanted is not None and checkpoint is not None:
            try:
                local = _local(engine)
                check_language(checkpoint, local.parts.language)
            except BaseException:
                self.close()
                raise
            self._loading = _Loading(partial(add_video, local, wanted, checkpoint))

    @property
    def engine(self) -> EngineHandle:
        return self.llm.engine

    @property
    def is_video_ready(self) -> bool:
        """Whether `diffusion` will not have to wait."""
        return self._loading is not None and self._loading.is_done

    @property
    def diffusion(self) -> DiffGenerator:
        """The face of the video model; waits until it is loaded.

        Raises:
            Unsupported: there is none.
            BraidError: loading failed.
        """
        if self._loading is None:
            raise Unsupported("there is no video model: give Braid(video=...) the path of a checkpoint", param="video")
        return DiffGenerator._of(_local(self.engine), self._loading.result())

    def close(self) -> None:
        """Stop the engine, unless it was given."""
        if self._owns_engine:
            self.engine.close()
        if self._loading is not None:
            self._loading.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Loading:
    """A video model on its way, on a thread of its own."""

    def __init__(self, load: Callable[[], LoadedVideo]) -> None:
        self._loaded: Future[LoadedVideo] = Future()
        self._thread = threading.Thread(target=self._run, args=(load,), name="braid-video-load", daemon=True)
        self._thread.start()

    def _run(self, load: Callable[[], LoadedVideo]) -> None:
        try:
            self._loaded.set_result(load())
        except BaseException as error:  # whoever asks for the model gets it
            self._loaded.set_exception(error)

    @property
    def is_done(self) -> bool:
        return self._loaded.done()

    def result(self) -> LoadedVideo:
        return self._loaded.result()

    def wait(self) -> None:
        self._thread.join()
