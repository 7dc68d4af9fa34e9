"""Puts the diffusion workload together: one checkpoint's networks behind pipelines, as jobs of the one scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from braid.diffusion.components import Components
from braid.diffusion.delivery import Delivery, WriteFile, delivered, write_file
from braid.diffusion.denoising import Denoiser
from braid.diffusion.expansion import Expansion, expanded
from braid.diffusion.held_memory import HoldMemory, Needs, hold_memory, holding
from braid.diffusion.job import Job
from braid.diffusion.media_files import import_encoders
from braid.diffusion.media_operations import MediaOperations
from braid.diffusion.memory_plan import (
    AdapterBytes,
    Offload,
    Terms,
    check,
    frame_bytes,
    in_effect,
    lasting_bytes,
    plan,
)
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.models.ltx2.block_layout import BLOCKS, entry_dtype
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.diffusion.operations import (
    DecodeAudio,
    DecodeFrames,
    Denoise,
    EncodeAudio,
    EncodeImage,
    EncodePrompt,
    EncodeText,
    EncodeVideo,
    ProjectText,
    RewritePrompt,
    UpsampleLatents,
)
from braid.diffusion.params import GenerationParams
from braid.diffusion.pieces import Meter
from braid.diffusion.pipelines.choice import run_job
from braid.diffusion.prompts import (
    LanguageModelFacts,
    PromptCache,
    encode_prompt,
    encode_text,
    rewrite_prompt,
    rewriting_token_ids,
)
from braid.diffusion.stage_memory import StageMemory
from braid.diffusion.storage_options import Quantization, read_offload, read_quantization
from braid.diffusion.transformer_source import choose_source
from braid.diffusion.validation import resolve
from braid.diffusion.weight_bytes import WeightBytes
from braid.llm_core.core import Clock, Request
from braid.llm_core.device_clock import device_clock
from braid.llm_core.device_timer import HostTimer, device_timer
from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.residency import default_budget_bytes
from braid.llm_core.pipeline import Delegate, InPieces, OperationHandler
from braid.llm_core.pipeline_workload import PipelineWorkload
from braid.llm_core.scheduler.cost import CostModel
from braid.lora.adapter import AdapterUse
from braid.lora.apply import changed, changed_bytes
from braid.lora.store import AdapterStore
from braid.lora.targets import Targets
from braid.lora.variants import MergedWeights

NAME = "diffusion"
COST_PRIORS = {
    "denoise": (0.5, 0.02), "decode_tile": (0.5, 0.05), "encode_video": (0.5, 0.05), "upsample": (0.5, 0.03),
    "decode_audio": (0.5, 0.05), "vocode": (0.5, 0.05), "encode_audio": (0.5, 0.05), "project_text": (0.5, 0.02),
    "merge": (0.2, 5e-6), "guide": (0.1, 5e-6), "to_pixels": (0.1, 0.05), "prepare_image": (1.0, 5e-6),
    "prepare_video": (0.1, 0.05), "recompress": (1.0, 3.0),
    "mel": (1.0, 1e-4), "write_frames": (1.0, 1e-5), "write_sound": (1.0, 1e-4),
    "write_delayed": (1.0, 1e-5), "write_end": (2.0, 0.002), "write_wav": (1.0, 1e-5),
    "write_picture.jpg": (1.0, 1e-5), "write_picture.jpeg": (1.0, 1e-5), "write_picture.webp": (1.0, 1e-4),
    "write_animation.gif": (1.0, 1e-4), "write_animation.webp": (1.0, 1e-4), "look": (0.2, 1e-6),
    "write_png": (0.5, 1e-4),
}  # fmt: skip
"""Milliseconds of (a piece, a unit of it) before anything was measured, on two CPU cores."""


class Diffusion:
    """One checkpoint, ready to generate.

    `workload` goes to the scheduler, which `workload.delegate_to` must then be told; `resolve` makes jobs of requests,
    and a `Request` whose params are a `Job` or a `Delivery` (or `Resumed` of one and a state) ends with `Completed` of
    a `GenerationResult`.

    Args:
        adapters: paths by name; loaded before any request.
        distilled_adapter: which of them is the checkpoint's distilled one.
        language: what prompts go through; None where only prompt embeds will be given.
        dtype: in which networks compute; None is that of the files.
        latent_dtype: of the latents; None is that of the transformer's first weight, float32 for quantised ones.
        costs: with `COST_PRIORS`, if None.
        clock: seconds; None is `device_clock`, with `device_timer` beside it.
        offload: what of the networks leaves the device while it is not used; on a CPU, `stream` reads blocks ahead and
            `cpu` does nothing. The results have the same bits.
        quantization: `fp8-cast` stores the transformer's large products in 8 bits, which changes results.
        host_arena: for what offloading keeps in the host's memory; None is one of a size that is learnt from the host.
        on_checkpoint: told each `PipelineState`; see `PipelineWorkload`.
    Raises:
        ModelFileError: the checkpoint has no transformer, or a weight or an adapter is broken.
        InvalidRequest: there is no such way to offload or to quantise.
    """

    def __init__(
        self,
        checkpoint: LTX2Checkpoint,
        arena: Arena,
        *,
        adapters: dict[str, Path] | None = None,
        distilled_adapter: str | None = None,
        language: LanguageModelFacts | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        latent_dtype: torch.dtype | None = None,
        costs: CostModel | None = None,
        clock: Clock | None = None,
        on_checkpoint: Callable[[Request, Any], None] = lambda request, state: None,
        max_piece_macs: int | None = None,
        offload: Offload | str = Offload.NONE,
        quantization: Quantization | str | None = None,
        host_arena: Arena | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self._arena = arena
        self.offload = read_offload(offload)
        self.quantization = read_quantization(quantization)
        config = checkpoint.transformer_config()
        sizes = WeightBytes(
            checkpoint,
            device_type=torch.device(device).type,
            dtype=dtype,
            is_fp8_cast=self.quantization is Quantization.FP8_CAST,
        )
        self._memory = StageMemory(sizes, max_piece_macs=max_piece_macs)
        self._memory.prepare()
        import_encoders()
        self._planned = in_effect(self.offload, self._memory)
        is_on_host = self._planned is not Offload.NONE
        if self._memory.device_type == "cpu":
            host_arena = arena
        elif host_arena is None:
            host_arena = Arena(default_budget_bytes())
        self._host_arena = host_arena
        variants_arena = host_arena if is_on_host else arena
        self._lasting_bytes = lasting_bytes(self._memory, self._planned)
        self._components = Components(sizes, arena, host_arena, device=device)
        try:
            self._weights = weights = self._components.transformer_weights(
                self._lasting_bytes, is_on_host=is_on_host
            )
            self._targets = Targets(weights)
            self.adapters = _open_adapters(adapters or {}, self._targets, arena)
        except BaseException:
            self._components.close()
            raise
        self._variants = MergedWeights(weights, self._targets, self.adapters, variants_arena, name=checkpoint.path.stem)
        self._source = choose_source(
            self.offload,
            self._memory,
            weights,
            arena,
            host_arena,
            device=device,
            max_piece_macs=max_piece_macs,
        )
        self._prompts = PromptCache(arena)
        self._language = language
        timer = device_timer(device) if clock is None else HostTimer(clock)
        clock = clock or device_clock(device)
        meter = Meter(costs or CostModel(COST_PRIORS), clock=clock)
        self.denoiser = Denoiser(
            self._source,
            self._variants,
            self._variant_bytes,
            self._memory,
            arena,
            meter,
            variants_arena=variants_arena,
        )
        self.facts = ModelFacts(
            name=checkpoint.path.name,
            geometry=checkpoint.geometry,
            presets=checkpoint.presets,
            parts=frozenset(checkpoint.parts),
            has_video=config.streams.video is not None,
            has_audio=config.streams.audio is not None,
            num_blocks=config.num_layers,
            context_widths=_context_widths(config),
            has_upsampler=checkpoint.upsampler is not None,
            has_language_model=language is not None,
            dtype=latent_dtype or entry_dtype(weights),
            device=device,
            distilled_adapter=distilled_adapter,
            has_adapter=lambda name: name in self.adapters,
        )
        run = holding(run_job, self._needs)
        self.workload = PipelineWorkload(
            NAME,
            {
                Job: expanded(run, self._expansions(), clock),
                Delivery: expanded(delivered(run), self._expansions(), clock),
            },
            self._handlers(MediaOperations(self._components, self._memory, arena, meter), meter),
            on_checkpoint=on_checkpoint,
            clock=clock,
            timer=timer,
        )

    def resolve(self, params: GenerationParams) -> Job:
        """A job for `workload`, found possible; see `validation.resolve`.

        Raises:
            CannotFit: it never will, whatever else is given back.
            ContextLengthExceeded: the prompt is to be rewritten, and is too long for that.
        """
        job = resolve(params, self.facts)
        if params.enhance_prompt and self._language is not None:
            rewriting_token_ids(params.prompt, self._language)
        check(job, self._memory, self._terms(job))
        return job

    def _terms(self, job: Job) -> Terms:
        return Terms(
            budget_bytes=self._arena.lasting_bytes + self._lasting_bytes,
            host_budget_bytes=None if self._host_arena is self._arena else self._host_arena.lasting_bytes,
            offload=self._planned,
            adapters=AdapterBytes(
                total=max(map(self._variant_bytes, job.adapters)),
                outside=max(map(self._variant_bytes_outside, job.adapters)),
            ),
        )

    def _needs(self, job: Job) -> list[tuple[Arena, Needs]]:
        """What a job keeps on the device, and on the host where that is another place."""
        found = plan(job, self._memory, self._terms(job))
        needs = [(self._arena, Needs(found.held_bytes, found.largest_bytes))]
        if self._host_arena is not self._arena:
            needs.append((self._host_arena, Needs(frame_bytes(job), found.host_bytes)))
        return needs

    def _variant_bytes(self, adapters: tuple[AdapterUse, ...]) -> int:
        """What merging copies, beside the base."""
        return changed_bytes(self._weights, self._targets, self.adapters.active(adapters))

    def _variant_bytes_outside(self, adapters: tuple[AdapterUse, ...]) -> int:
        """Of that, what belongs to no block."""
        replaced = changed(self._targets, self.adapters.active(adapters))
        return sum(
            target.stored(self._weights).num_bytes for target in replaced if not target.key.startswith(BLOCKS)
        )

    def counters(self) -> dict[str, Any]:
        """What was done since the start; from any thread."""
        return {
            "adapters": {"found": self._variants.num_found, "merged": self._variants.num_begun},
            "offload": {"copied_bytes": self._components.copied_bytes + self._source.copied_bytes},
        }

    def close(self) -> None:
        """Give all memory back; no job may be under way."""
        self._prompts.close()
        self._source.close()
        self._variants.close()
        self._components.close()
        for adapter in self.adapters:
            self.adapters.remove(adapter.name)

    def _expansions(self) -> dict[type, Expansion]:
        return {EncodePrompt: lambda operation: encode_prompt(operation, self._prompts)}

    def _handlers(self, media: MediaOperations, meter: Meter) -> dict[type, OperationHandler | Delegate]:
        handlers: dict[type, OperationHandler | Delegate] = {
            Denoise: InPieces(self.denoiser.run),
            EncodeImage: InPieces(media.encode_image),
            EncodeVideo: InPieces(media.encode_video),
            EncodeAudio: InPieces(media.encode_audio),
            UpsampleLatents: InPieces(media.upsample),
            DecodeFrames: InPieces(media.decode_frames),
            DecodeAudio: InPieces(media.decode_audio),
            ProjectText: InPieces(media.project_text),
            WriteFile: InPieces(partial(write_file, meter)),
            HoldMemory: InPieces(hold_memory),
        }
        if self._language is not None:
            handlers[RewritePrompt] = rewrite_prompt(self._language)
            if self.checkpoint.has(Part.TEXT_PROJECTION):
                handlers[EncodeText] = encode_text(self.checkpoint.text_encoder(), self._language.tokenizer)
        return handlers


def _open_adapters(paths: Mapping[str, Path], targets: Targets, arena: Arena) -> AdapterStore:
    """All of them, or none."""
    store = AdapterStore(targets, arena=arena)
    try:
        for name, path in paths.items():
            store.add(name, path)
    except BaseException:
        for adapter in store:
            store.remove(adapter.name)
        raise
    return store


def _context_widths(config: TransformerConfig) -> tuple[int, int]:
    """What prompt embeds must be wide: the captions' own width where the transformer projects them."""
    video, audio = config.streams.video, config.streams.audio
    return (
        0 if video is None else config.caption_channels or video.context_dim,
        0 if audio is None else config.caption_channels or audio.context_dim,
    )
