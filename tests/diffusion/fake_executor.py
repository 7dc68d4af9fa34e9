"""The plainest executor: answers a pipeline's operations with arithmetic. No scheduler, no model, no pieces."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.guidance import Guidance
from braid.diffusion.job import GenerationResult
from braid.diffusion.latents import each
from braid.diffusion.model_facts import ModelFacts
from braid.diffusion.models.ltx2.audio_geometry import AudioGeometry
from braid.diffusion.models.ltx2.geometry import Geometry
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.presets import Preset, full_guidance
from braid.diffusion.models.ltx2.video_geometry import VideoGeometry
from braid.diffusion.operations import (
    DecodeAudio,
    DecodedFrames,
    DecodeFrames,
    Denoise,
    EncodeAudio,
    EncodeImage,
    EncodePrompt,
    EncodeVideo,
    PromptEmbeds,
    RewritePrompt,
    UpsampleLatents,
    Waveform,
)
from braid.diffusion.pipelines.choice import PIPELINES
from braid.diffusion.sampling_state import Estimates
from braid.diffusion.state import PipelineState
from braid.llm_core.pipeline import Checkpoint, Progress

GEOMETRY = Geometry(
    VideoGeometry(num_channels=4), AudioGeometry(num_channels=2, num_latent_bins=4), upscale=Fraction(2)
)
NUM_BLOCKS = 32


def facts(**changes: Any) -> ModelFacts:
    """A checkpoint that has everything."""
    preset = Preset(3, full_guidance(28), height=128, width=128, num_frames=9)
    values: dict[str, Any] = {
        "name": "toy",
        "geometry": GEOMETRY,
        "presets": dict.fromkeys(PIPELINES, preset),
        "parts": frozenset(Part),
        "has_video": True,
        "has_audio": True,
        "num_blocks": NUM_BLOCKS,
        "context_widths": (8, 4),
        "has_upsampler": True,
        "has_language_model": True,
        "dtype": torch.float32,
        "device": "cpu",
        "has_adapter": lambda name: name in ("distilled", "style"),
    }
    return ModelFacts(**(values | changes))


@dataclass
class Run:
    """What happened."""

    result: GenerationResult
    operations: list[Any] = field(default_factory=list)
    states: list[PipelineState] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        return [operation for operation in self.operations if type(operation) is kind]

    @property
    def kinds(self) -> list[str]:
        """Operations in their order, equal neighbours once."""
        kinds = [operation.kind for operation in self.operations]
        return [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]


def run(pipeline: Generator[Any, Any, Any]) -> Run:
    """Drive a pipeline to its end."""
    operations: list[Any] = []
    states: list[PipelineState] = []
    progress: list[Progress] = []
    answer: Any = None
    while True:
        try:
            asked = pipeline.send(answer)
        except StopIteration as stop:
            return Run(stop.value, operations, states, progress)
        answer = None
        if isinstance(asked, Checkpoint):
            states.append(asked.state)
        elif isinstance(asked, Progress):
            progress.append(asked)
        else:
            operations.append(asked)
            answer = answer_to(asked)


def answer_to(operation: Any) -> Any:
    match operation:
        case EncodePrompt(prompt=prompt):
            return PromptEmbeds(torch.full((1, 2, 8), float(len(prompt))), torch.full((1, 2, 4), float(len(prompt))))
        case RewritePrompt(prompt=prompt):
            return f"{prompt}, in more words"
        case EncodeImage(image=image, height=height, width=width):
            return torch.full((1, 4, 1, height // 32, width // 32), float(image.float().mean()) / 255)
        case EncodeVideo(frames=frames):
            num_frames, height, width = frames.shape[:3]
            return torch.full((1, 4, (num_frames - 1) // 8 + 1, height // 32, width // 32), 0.25)
        case EncodeAudio(waveform=waveform, sample_rate=rate):
            return torch.full((1, 2, round(waveform.shape[1] / rate * 25), 4), 0.125)
        case Denoise():
            return _denoised(operation)
        case UpsampleLatents(latents=latents):
            return latents.repeat_interleave(2, 3).repeat_interleave(2, 4)
        case DecodeFrames(latents=latents, group=group):
            frames = torch.full((1 if group == 0 else 8, 2, 2, 3), group, dtype=torch.uint8)
            num_groups = latents.shape[2]
            return DecodedFrames(frames, latents if group < num_groups - 1 else None, num_groups)
        case DecodeAudio(latents=latents):
            return Waveform(latents.flatten()[None], 100)
    raise TypeError(type(operation))


def _denoised(operation: Denoise) -> Any:
    """Depends on all that an estimate may depend on."""
    strength = sum(use.strength for use in operation.adapters)
    weight = 0.5 + operation.sigma / 4 + strength / 100
    context = operation.prompt_embeds.video
    shift = 0.0 if context is None else float(context.mean()) / 100

    def estimate(stream: Any, guidance: Guidance | None) -> Tensor:
        scale = 1.0 if guidance is None else guidance.guidance_scale
        return stream.latents * weight + shift * scale

    guided = each(estimate, operation.streams, operation.guidance)
    return Estimates(guided, guided) if operation.needs_unconditional else guided
