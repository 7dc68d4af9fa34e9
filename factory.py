"""Puts an engine with a language model together, and its Python face; `video_factory` adds a video model to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from braid.config import BraidConfig
from braid.errors import CannotFit, InvalidRequest
from braid.kernels.ops import Ops
from braid.llm_core.batching import BatchLimits
from braid.llm_core.core import StepLimits, Workload
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.handle import EngineHandle
from braid.llm_core.engine.intake import Intake
from braid.llm_core.engine.messages import EngineReady
from braid.llm_core.engine.sampling import Sampler
from braid.llm_core.language_workload import LanguageWorkload
from braid.llm_core.llm import LLM as LanguageFace
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.loading.weights import Checkpoint
from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.kv_pages import KVPages
from braid.llm_core.memory.prefix_cache import PrefixCache
from braid.llm_core.memory.residency import WeightResidency, default_budget_bytes, stored_bytes
from braid.llm_core.models.choice import (
    Backend,
    build_model,
    choose_device,
    choose_kernels,
    copied_bytes,
    usable_processors,
)
from braid.llm_core.models.config import ModelConfig
from braid.llm_core.models.model import LanguageModel
from braid.llm_core.scheduler.cost import CostModel
from braid.llm_core.scheduler.loop import Scheduler
from braid.llm_core.sequence_memory import SequenceMemory
from braid.llm_core.text.chat_template import ChatTemplate
from braid.llm_core.text.tokenizer import Tokenizer
from braid.llm_core.workspace import StepWorkspace
from braid.tracing.engine_metrics import METRICS
from braid.tracing.engine_tracing import EngineTracing
from braid.tracing.gpu_counters import GpuCounters, gpu_counters
from braid.tracing.span import Span
from braid.tracing.trace_store import TraceStore

KeepSpans = Callable[[list[Span]], None]
"""Gets spans as they end; on a thread that is not the engine's."""

SLAB_BYTES = 16 << 20
CPU_STEP_LIMITS = StepLimits(max_step_ms=60.0, idle_step_ms=250.0)
GPU_STEP_LIMITS = StepLimits(max_step_ms=30.0, idle_step_ms=120.0)
LANGUAGE_COST_PRIOR = (1.0, 1.0, 0.5, 1e-5)
"""Milliseconds of (a step, a decode token, a prefill token, a key attended to) before anything was measured."""


@dataclass(frozen=True, slots=True)
class LoadedLanguage:
    """The language model of an engine, for workloads that ask it something."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    context_length: int


@dataclass(slots=True)
class EngineParts:
    """What more models of the same engine share."""

    arena: Arena
    backend: Backend
    tracing: EngineTracing
    language: LoadedLanguage | None = None
    video: Any = None
    """The `video_factory.LoadedVideo`, once there is one."""
    gpu: GpuCounters = dict

    def counters(self) -> dict[str, Any]:
        """Of what all models share, and of the video model."""
        of_video = {} if self.video is None else {"video": self.video.model.counters()}
        return {"memory": asdict(self.arena.usage()), "gpu": self.gpu(), **of_video} | _traced(self.tracing)


def build_engine(
    config: BraidConfig,
    *,
    on_crash: Callable[[], None] = lambda: None,
    keep_spans: KeepSpans | None = None,
    open_spans: Path | None = None,
) -> Engine:
    """Load the language model and start an engine on a thread of this process.

    Args:
        on_crash: see `Engine`.
        keep_spans: None keeps the last traces in this process, and exports them from here.
        open_spans: see `EngineTracing`.
    Raises:
        BraidError: the model is unknown, broken, not supported or too large for the budget.
    """
    backend = backend_of(config)
    torch.set_num_threads(backend.num_threads)  # now: a thread keeps what holds when it first computes
    checkpoint = open_checkpoint(config.model)
    arena = Arena(config.memory_budget_bytes or default_budget_bytes(backend.device))
    context_length = _context_length(config, checkpoint.config.context_length)
    residency = WeightResidency(arena)
    model = _load(checkpoint, backend, residency)
    limits = BatchLimits()
    workspace = StepWorkspace(model, arena, limits)
    pages = _kv_pages(arena, model)
    prefix_cache = PrefixCache(pages, page_tokens=model.page_tokens)
    tokenizer = checkpoint.tokenizer()
    workload = LanguageWorkload(
        model,
        tokenizer,
        memory=SequenceMemory(
            pages, prefix_cache, max_sequences=limits.max_sequences, max_tokens=context_length
        ),
        sampler=Sampler(Ops(model.device, backend.kernels).sample),
        cost=CostModel({LanguageWorkload.name: LANGUAGE_COST_PRIOR}),
        workspace=workspace,
        limits=limits,
    )
    scheduler = _scheduler([workload], config, backend)
    tracing = _tracing(scheduler, keep_spans, open_spans)

    def release() -> None:
        model.close()
        workspace.close()
        prefix_cache.clear()
        pages.close()
        residency.drop(checkpoint.name)
        tracing.close()

    template = checkpoint.chat_template()
    language = LoadedLanguage(checkpoint.name, model.config, tokenizer, template, context_length)
    parts = EngineParts(arena, backend, tracing, language, gpu=gpu_counters(backend.device))
    return Engine(
        scheduler,
        ready=EngineReady((_describe(checkpoint, model, config, context_length),)),
        intake=Intake(model.config, context_length, tokenizer, template, pages),
        stats=_stats(scheduler, workload, pages, prefix_cache, parts),
        release=release,
        open_trace=tracing.open,
        shows_prompts=tracing.shows_prompts,
        on_crash=on_crash,
        parts=parts,
    )


def build_engine_without_language(config: BraidConfig) -> Engine:
    """An engine with nothing in it yet; `config.model` is not looked at."""
    backend = backend_of(config)
    arena = Arena(config.memory_budget_bytes or default_budget_bytes(backend.device))
    torch.set_num_threads(backend.num_threads)
    scheduler = _scheduler([], config, backend)
    tracing = _tracing(scheduler)
    parts = EngineParts(arena, backend, tracing, gpu=gpu_counters(backend.device))
    return Engine(
        scheduler,
        ready=EngineReady(()),
        intake=None,
        stats=parts.counters,
        release=tracing.close,
        open_trace=tracing.open,
        shows_prompts=tracing.shows_prompts,
        parts=parts,
    )


def _scheduler(workloads: Sequence[Workload], config: BraidConfig, backend: Backend) -> Scheduler:
    limits = CPU_STEP_LIMITS if backend.device == "cpu" else GPU_STEP_LIMITS
    return Scheduler(workloads, limits=limits, max_waiting_requests=config.max_waiting_requests)


def _tracing(scheduler: Scheduler, keep: KeepSpans | None = None, open_spans: Path | None = None) -> EngineTracing:
    """Who keeps the spans of an engine exports them, too."""
    tracing = EngineTracing(
        keep or TraceStore().add, os.environ, open_spans=open_spans, exports_spans=keep is None
    )
    scheduler.journal.subscribe(tracing.note_step)
    return tracing


def _traced(tracing: EngineTracing) -> dict[str, Any]:
    """Of the engine's counters; see `tracing.engine_metrics`."""
    return {"spans": tracing.num_spans, METRICS: msgspec.to_builtins(tracing.families())}


def backend_of(config: BraidConfig) -> Backend:
    """What a configuration comes to on this machine.

    Raises:
        InvalidRequest: its device is not there, or no kernels have that name.
    """
    return Backend(
        device=choose_device(config.device),
        kernels=choose_kernels(config.kernels or os.environ.get("BRAID_KERNELS")),
        num_threads=config.num_threads or usable_processors(),
        exact=config.exact,
        dtype=config.dtype,
    )


def _load(checkpoint: Checkpoint, backend: Backend, residency: WeightResidency) -> LanguageModel:
    """Lease the weights' bytes, then load them: what cannot fit is refused before it is read."""
    stored = stored_bytes(checkpoint.weights)
    expected = copied_bytes(checkpoint, backend)
    residency.admit(checkpoint.name, mapped_bytes=stored, copied_bytes=expected)
    model = build_model(checkpoint, backend)
    residency.correct(checkpoint.name, copied_bytes=model.weight_bytes)
    return model


def _context_length(config: BraidConfig, of_model: int) -> int:
    if config.context_length is not None and config.context_length > of_model:
        raise InvalidRequest(
            f"context_length={config.context_length} is more than the {of_model} tokens that the model was made for",
            param="context_length",
        )
    return config.context_length or of_model


def _kv_pages(arena: Arena, model: LanguageModel) -> KVPages:
    slab_bytes = max(SLAB_BYTES, model.page_bytes)
    pages = KVPages(
        arena, page_bytes=model.page_bytes, page_tokens=model.page_tokens, slab_bytes=slab_bytes, device=model.device
    )
    if pages.max_pages < 1:
        raise CannotFit(
            "one slab of keys and values", needed_bytes=slab_bytes, budget_bytes=arena.available_bytes, param="memory"
        )
    return pages


def _describe(
    checkpoint: Checkpoint, model: LanguageModel, config: BraidConfig, context_length: int
) -> dict[str, Any]:
    return {
        "id": checkpoint.name,
        "aliases": list(config.aliases),
        "architecture": model.config.architecture,
        "context_length": context_length,
        "vocab_size": model.config.vocab_size,
        "capabilities": ["chat", "completions", "encode"],
        "device": model.device,
        "kernels": model.describe(),
    }


def _stats(
    scheduler: Scheduler,
    workload: LanguageWorkload,
    pages: KVPages,
    prefix_cache: PrefixCache,
    parts: EngineParts,
) -> Callable[[], Mapping[str, Any]]:
    def read() -> dict[str, Any]:
        return {
            "requests": {"open": scheduler.num_open_requests, "waiting": scheduler.num_waiting_requests},
            "language": asdict(workload.counters),
            "kv_pages": {
                "used": pages.used_pages,
                "cached": prefix_cache.cached_pages,
                "free": pages.free_pages,
                "slabs": pages.num_slabs,
                "page_bytes": pages.page_bytes,
                "evicted": prefix_cache.num_evicted_pages,
            },
        } | parts.counters()

    return read


class LLM(LanguageFace):
    """Chat, generate and encode with a language model in this process.

    Args:
        model: a folder, a GGUF file, `smollm2` or a hub id.
        engine: share this engine instead of building one; the other arguments are then not looked at.
        device, kernels, num_threads, memory_budget_bytes, dtype, exact, context_length: see `BraidConfig`.
    """

    def __init__(
        self,
        model: str = "smollm2",
        *,
        engine: EngineHandle | None = None,
        device: str | None = None,
        kernels: str | None = None,
        num_threads: int | None = None,
        memory_budget_bytes: int | None = None,
        dtype: str | None = None,
        exact: bool = True,
        context_length: int | None = None,
    ) -> None:
        config = BraidConfig(
            model=model,
            device=device,
            kernels=kernels,
            num_threads=num_threads,
            memory_budget_bytes=memory_budget_bytes,
            dtype=dtype,
            exact=exact,
            context_length=context_length,
        )
        super().__init__(build_engine(config) if engine is None else engine, owns_engine=engine is None)
