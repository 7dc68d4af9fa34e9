"""All that a pipeline needs to go on: what it offers with `Checkpoint` and can be started from.

Finished stages are told by their results, which are kept; so they are skipped, never replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from braid.diffusion.guidance import GuidanceMemory
from braid.diffusion.latents import AudioVideo, LatentState
from braid.diffusion.noise import NoiseState
from braid.diffusion.operations import PromptEmbeds
from braid.diffusion.sampling_state import SamplerState
from braid.diffusion.state_io import load_state, save_state

STATE_VERSION = 1
"""Of `PipelineState` and all that is in it: raise it with every change of their fields or of what they mean."""


@dataclass(frozen=True, slots=True)
class PipelineState:
    """Where a job is. Nobody writes to its tensors."""

    pipeline: str
    prompt: str
    """As it was encoded: rewritten, if that was asked for."""
    prompt_embeds: PromptEmbeds
    negative_prompt_embeds: PromptEmbeds | None
    noise: NoiseState
    results: dict[str, Tensor] = field(default_factory=dict)
    """Of finished stages and encoders: `stage_1.video`, `stage_1.audio`, `upsampled`."""
    stage: str = ""
    """The stage under way, or empty between two."""
    streams: AudioVideo[LatentState] | None = None
    """What the stage under way began with."""
    sampler: SamplerState | None = None
    guidance_memory: GuidanceMemory = field(default_factory=GuidanceMemory)
    """The latest guided x0 estimates, where some steps use them again."""
    version: int = STATE_VERSION

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save_state(self, version=STATE_VERSION)

    @staticmethod
    def from_bytes(data: bytes) -> PipelineState:
        """Raises:
        StateError: it is damaged or of another version.
        """
        state = load_state(data, version=STATE_VERSION, classes=_CLASSES)
        assert isinstance(state, PipelineState), type(state)
        return state


_CLASSES = (PipelineState, PromptEmbeds, AudioVideo, LatentState, NoiseState, SamplerState, GuidanceMemory)
