"""What a user asks for. What is None comes from the checkpoint's presets; `validation.resolve` makes a job of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from braid.diffusion.guidance import Guidance
from braid.diffusion.latents import AudioVideo
from braid.diffusion.noise import NoiseSource
from braid.diffusion.operations import PromptEmbeds, Waveform


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCondition:
    """A picture that the film shows at one of its frames."""

    image: Tensor | None = None
    """(H, W, 3) uint8, upright, sRGB, of any size."""
    latents: tuple[Tensor, ...] = ()
    """In place of `image`: (1, C, 1, H', W') normalised, one for each stage, of that stage's size."""
    frame_index: int = 0
    """Which pixel frame."""
    strength: float = 1.0
    """1 shows it exactly, 0 not at all."""
    crf: int | None = None
    """Quality of the H.264 round trip before encoding; 0 is none, None what the checkpoint was trained with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoice:
    """A LoRA of the adapter store, and how strongly it acts."""

    name: str
    strengths: tuple[float, ...] = (1.0,)
    """One for every stage, or one for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """A request for a picture, a film, or sound."""

    prompt: str = ""
    negative_prompt: str | None = None
    pipeline: str | None = None
    """A name of `pipelines.choice.PIPELINES`; None is the best one that the checkpoint has all parts for."""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    """1 is a picture."""
    frame_rate: float | None = None
    """Frames per second."""
    seed: int | None = None
    """None draws one."""
    num_inference_steps: int | None = None
    """Of the first stage."""
    sampler: str | None = None
    """A name of `sampling.SAMPLERS`, for every stage."""
    guidance: AudioVideo[Guidance] | None = None
    """Of the first stage; a second one is never guided."""
    images: tuple[ImageCondition, ...] = ()
    video: Tensor | None = None
    """(F, H, W, 3) uint8: the clip to retake or to extend."""
    waveform: Waveform | None = None
    """The sound to film, or that of the clip."""
    window: tuple[float, float] | None = None
    """What is made anew in a retake: from and to, in seconds."""
    num_context_frames: int | None = None
    """How many frames of the end of a clip its extension begins with; None is as many as fit half of it."""
    generate_audio: bool | None = None
    """None: where the checkpoint can, except for a picture."""
    adapters: tuple[AdapterChoice, ...] = ()
    distilled_adapter: AdapterChoice | None = None
    """Merged after all others. None is the checkpoint's own, with the pipeline's strengths."""
    enhance_prompt: bool = False
    """Have the language model rewrite the prompt first."""
    output_type: str = "frames"
    """`frames` decodes; `latents` does not."""

    prompt_embeds: PromptEmbeds | None = None
    """In place of `prompt`."""
    negative_prompt_embeds: PromptEmbeds | None = None
    sigmas: tuple[float, ...] | None = None
    """Of the first stage, in place of its schedule: descending."""
    stage_2_sigmas: tuple[float, ...] | None = None
    latents: AudioVideo[Tensor] | None = None
    """In place of the first stage's initial noise: (1, C, F', H', W') and (1, C, T, M)."""
    noise: Callable[[], NoiseSource] | None = None
    """Makes the source of all noise of one run; None is generators seeded as the official pipelines do."""
