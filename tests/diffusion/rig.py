"""A toy checkpoint on disk, opened, and driven by the real scheduler."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.job import GenerationResult, Job
from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.operations import PromptEmbeds, Waveform
from braid.diffusion.params import GenerationParams, ImageCondition
from braid.diffusion.state import PipelineState
from braid.diffusion.workload import Diffusion
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.engine.messages import Failed
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Completed, Resumed
from braid.llm_core.scheduler.loop import Scheduler
from braid.tests.tiny_ltx2 import write_checkpoint, write_distilled_lora, write_upsampler

BUDGET_BYTES = 1 << 30
PIECE_MACS = 400_000
"""So small that a forward has dozens of pieces."""
NUM_TEXT_TOKENS = 16


def write_files(folder: Path) -> Path:
    """A checkpoint, its upsampler and two adapters."""
    write_checkpoint(folder / "model.safetensors")
    write_upsampler(folder / "upsampler.safetensors")
    write_distilled_lora(folder / "distilled.safetensors")
    write_distilled_lora(folder / "style.safetensors", seed=7)
    return folder


def open_diffusion(folder: Path, arena: Arena | None = None, **options: Any) -> Diffusion:
    """The files of `write_files`, ready."""
    return Diffusion(
        open_ltx2(folder / "model.safetensors", upsampler=folder / "upsampler.safetensors"),
        arena or Arena(BUDGET_BYTES),
        adapters={name: folder / f"{name}.safetensors" for name in ("distilled", "style")},
        distilled_adapter="distilled",
        max_piece_macs=PIECE_MACS,
        **options,
    )


def embeds(seed: int) -> PromptEmbeds:
    """Of a prompt that nobody encoded."""
    generator = torch.Generator().manual_seed(seed)
    return PromptEmbeds(
        torch.randn(1, NUM_TEXT_TOKENS, 32, generator=generator),
        torch.randn(1, NUM_TEXT_TOKENS, 16, generator=generator),
    )


def film(seed: int = 1, **changes: Any) -> GenerationParams:
    """The least that there is: nine frames, two steps."""
    params = GenerationParams(
        pipeline="two_stage_hq",
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        seed=seed,
        prompt_embeds=embeds(seed),
        negative_prompt_embeds=embeds(99),
    )
    return replace(params, **changes)


def picture(seed: int = 5, frame_index: int = 0, **changes: Any) -> ImageCondition:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (50, 70, 3), generator=generator, dtype=torch.uint8)
    return ImageCondition(image=image, frame_index=frame_index, **changes)


def clip(num_frames: int = 9, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randint(0, 256, (num_frames, side, side, 3), generator=generator, dtype=torch.uint8)


def sound(seconds: float = 0.4) -> Waveform:
    generator = torch.Generator().manual_seed(12)
    return Waveform(torch.rand(2, int(16_000 * seconds), generator=generator) - 0.5, 16_000)


class World:
    """Jobs of one checkpoint on a scheduler, with whatever else is given."""

    def __init__(self, folder: Path, *others: Any, arena: Arena | None = None, **options: Any) -> None:
        self.states: dict[str, list[PipelineState]] = {}
        self.events: dict[str, list[Any]] = {}
        self.arena = arena or Arena(BUDGET_BYTES)
        self.diffusion = open_diffusion(folder, self.arena, on_checkpoint=self._keep, **options)
        self.scheduler = Scheduler([*others, self.diffusion.workload])
        self.diffusion.workload.delegate_to(self.scheduler)

    def _keep(self, request: Request, state: PipelineState) -> None:
        self.states.setdefault(request.id, []).append(state)

    def submit(self, name: str, params: Any, request_class: RequestClass = RequestClass.BATCH) -> None:
        """A film by its params, or anything else as it is."""
        work = self.diffusion.resolve(params) if isinstance(params, GenerationParams) else params
        self.scheduler.submit(Request(name, work, self.events.setdefault(name, []).append, request_class=request_class))

    def go_on(self, name: str, params: GenerationParams | Job, state: PipelineState) -> None:
        job = params if isinstance(params, Job) else self.diffusion.resolve(params)
        self.submit(name, Resumed(job, state))

    def run(self) -> None:
        while self.scheduler.run_once():
            pass
        assert self.scheduler.num_open_requests == 0

    def result(self, name: str) -> GenerationResult:
        event = self.events[name][-1]
        assert isinstance(event, Completed), event
        assert isinstance(event.result, GenerationResult)
        return event.result

    def error(self, name: str) -> Failed:
        event = self.events[name][-1]
        assert isinstance(event, Failed), event
        return event

    def generate(self, params: GenerationParams) -> GenerationResult:
        self.submit("film", params)
        self.run()
        return self.result("film")

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.scheduler.journal.since()]


def digest(result: GenerationResult) -> str:
    """Of every bit that a user gets."""
    found = hashlib.blake2b(digest_size=16)
    tensors = [result.frames, result.latents.video, result.latents.audio]
    tensors.append(None if result.waveform is None else result.waveform.samples)
    for tensor in tensors:
        found.update(b"-" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
