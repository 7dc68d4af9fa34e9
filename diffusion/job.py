"""A request with every open question answered: what a pipeline is started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from braid.diffusion.guidance import Guidance
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.geometry import Geometry
from braid.diffusion.operations import Waveform
from braid.diffusion.params import GenerationParams
from braid.diffusion.positions import VideoGrid
from braid.lora.adapter import AdapterUse
from braid.tracing.request_trace import AttributeValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Made by `validation.resolve`; nothing of it is None that a pipeline needs."""

    pipeline: str
    params: GenerationParams
    """As the user gave them: prompts, pictures, and what is handed over in place of something computed."""
    geometry: Geometry
    height: int
    width: int
    num_frames: int
    frame_rate: float
    seed: int
    num_inference_steps: int
    sigmas: tuple[float, ...] | None
    """Of the first stage; None computes them from the number of steps."""
    stage_2_sigmas: tuple[float, ...] | None
    sampler: str
    negative_prompt: str
    guidance: AudioVideo[Guidance]
    crf: int
    """Of conditioning images that name none."""
    adapters: tuple[tuple[AdapterUse, ...], ...]
    """Of each stage, in the order in which they are merged."""
    has_video: bool
    has_audio: bool
    dtype: torch.dtype
    """Of the latents."""
    device: str
    """Where the latents are."""
    model: str = ""
    """Its name, for whoever watches."""
    keep_frames: bool = True
    """False: whoever listens to the decoding takes them as they become final, and the result has none."""

    def grid(self, divisor: Fraction = Fraction(1)) -> VideoGrid:
        """The film's latents, at its size or at a smaller one."""
        video = self.geometry.video
        factor = video.space_factor
        return VideoGrid(
            frames=video.num_latent_frames(self.num_frames),
            height=int(self.height / divisor) // factor,
            width=int(self.width / divisor) // factor,
            time_factor=video.time_factor,
            height_factor=factor,
            width_factor=factor,
        )

    @property
    def small_grid(self) -> VideoGrid:
        """That of the first of two stages."""
        return self.grid(self.geometry.upscale)

    @property
    def num_audio_tokens(self) -> int:
        """As many as the film is long."""
        return self.geometry.audio.num_latents(self.num_frames, self.frame_rate)

    @property
    def trace_attributes(self) -> dict[str, AttributeValue]:
        """What the trace of a request for it says from the start."""
        size = f"{self.width}x{self.height}"
        said: dict[str, AttributeValue] = {"gen_ai.request.model": self.model} if self.model else {}
        return {**said, "size": size, "frames": self.num_frames, "seed": self.seed, "pipeline": self.pipeline}


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What a job gives."""

    frames: Tensor | None
    """(F, H, W, 3) uint8 on the CPU; None for sound alone, and where only latents were asked for or no frames kept."""
    waveform: Waveform | None
    latents: AudioVideo[Tensor]
    """Normalised: (1, C, F', H', W') and (1, C, T, M)."""
    frame_rate: float
    seed: int
    prompt: str
    """As it was encoded."""
    frames_shape: tuple[int, int, int, int] | None = None
    """(F, H, W, 3) of the frames that were decoded, kept or not."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds from the begin of each stage to that of the next, others' work in between included."""
