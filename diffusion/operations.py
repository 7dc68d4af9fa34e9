"""What pipelines ask for. Each operation is frozen data; its handler says how, where and in which pieces it is done.

Tensors in them belong to nobody: handlers and pipelines read them and never write to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from braid.diffusion.guidance import Guidance, passes_needed
from braid.diffusion.latents import AudioVideo, LatentState
from braid.lora.adapter import AdapterUse
from braid.tracing.request_trace import AttributeValue

UNGUIDED = AudioVideo(Guidance(), Guidance())
ALL = AudioVideo(True, True)


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """What the transformer is conditioned on; the output of the text connectors."""

    video: Tensor | None
    """(B, num_text_tokens, video context width)."""
    audio: Tensor | None
    """(B, num_text_tokens, audio context width)."""


@dataclass(frozen=True, slots=True)
class EncodePrompt:
    """A prompt through the language model in memory and the connectors. Gives `PromptEmbeds`; cached by prompt."""

    prompt: str
    kind = "encode_prompt"


@dataclass(frozen=True, slots=True)
class EncodeText:
    """The first half of `EncodePrompt`: what the language model makes of a prompt. Gives `TextHiddenStates`."""

    prompt: str
    kind = "encode_text"


@dataclass(frozen=True, slots=True)
class TextHiddenStates:
    """Of one prompt, padded to the left."""

    hidden_states: Tensor
    """(1, num_text_tokens, hidden size, num_layers + 1)."""
    attention_mask: Tensor
    """(1, num_text_tokens), 1 where there is text."""


@dataclass(frozen=True, slots=True)
class ProjectText:
    """The second half of `EncodePrompt`: hidden states through feature extractor and connectors."""

    prompt: str
    text: TextHiddenStates
    kind = "project_text"


@dataclass(frozen=True, slots=True)
class RewritePrompt:
    """Have the language model in memory say a prompt in more detail. Gives a str."""

    prompt: str
    seed: int
    kind = "rewrite_prompt"


@dataclass(frozen=True, slots=True)
class EncodeImage:
    """A conditioning image through the video encoder. Gives (1, C, 1, H', W') normalised latents."""

    image: Tensor
    """(H, W, 3) uint8, upright, sRGB."""
    height: int
    width: int
    crf: int = 0
    """Quality of the H.264 round trip before encoding; 0 is none."""
    kind = "encode_image"


@dataclass(frozen=True, slots=True)
class EncodeVideo:
    """A clip through the video encoder. Gives (1, C, F', H', W') normalised latents."""

    frames: Tensor
    """(F, H, W, 3) uint8; F = time_factor * k + 1."""
    kind = "encode_video"


@dataclass(frozen=True, slots=True)
class EncodeAudio:
    """A waveform through the audio encoder. Gives (1, C, T, M) normalised latents."""

    waveform: Tensor
    """(channels, samples) float32 in [-1, 1]."""
    sample_rate: int
    kind = "encode_audio"


@dataclass(frozen=True, slots=True)
class Denoise:
    """One evaluation of D(x, sigma), with all its guidance passes combined.

    Gives `AudioVideo[Tensor]` of (B, T, C): the x0 estimates in the dtype of the latents, not yet blended with
    `clean_latents` (samplers do that); or `Estimates`, if the unconditional ones are asked for too.
    """

    streams: AudioVideo[LatentState]
    sigma: float
    prompt_embeds: PromptEmbeds
    negative_prompt_embeds: PromptEmbeds | None = None
    guidance: AudioVideo[Guidance] = UNGUIDED
    adapters: tuple[AdapterUse, ...] = ()
    """Merged in this order."""
    is_enabled: AudioVideo[bool] = ALL
    """False for a stream that skips this step: its hidden states stay as they enter, and its estimate is of no use."""
    needs_unconditional: bool = False
    kind = "denoise"

    @property
    def trace_attributes(self) -> dict[str, AttributeValue]:
        """What is told of it."""
        passes = passes_needed(self.guidance, needs_unconditional=self.needs_unconditional)
        return {"sigma": float(self.sigma), "guidance_passes": len(passes)}


@dataclass(frozen=True, slots=True)
class UpsampleLatents:
    """Video latents through the latent upsampler: un-normalised, enlarged, normalised again."""

    latents: Tensor
    """(1, C, F', H', W')."""
    kind = "upsample"


@dataclass(frozen=True, slots=True)
class DecodeFrames:
    """The next temporal group of tiles of a clip. Gives `DecodedFrames`."""

    latents: Tensor
    """(1, C, F', H', W') normalised, of the whole clip."""
    group: int
    """Which temporal group, from 0."""
    carry: Tensor | None = None
    """What the group before left over for this one."""
    generator: Tensor | None = None
    """State of a torch generator at the beginning of the clip, for decoders that draw noise."""
    kind: str = "decode_tile"
    """`preview` for a look at a film under way."""


@dataclass(frozen=True, slots=True)
class DecodedFrames:
    """Frames that are final."""

    frames: Tensor
    """(F, H, W, 3) uint8 on the CPU."""
    carry: Tensor | None
    """Weighted pixels that the next group adds to, or None after the last one."""
    num_groups: int


@dataclass(frozen=True, slots=True)
class DecodeAudio:
    """Audio latents to a waveform: audio decoder, then vocoder, in float32. Gives `Waveform`."""

    latents: Tensor
    """(1, C, T, M) normalised."""
    kind = "decode_audio"


@dataclass(frozen=True, slots=True)
class Waveform:
    """Sound."""

    samples: Tensor
    """(channels, num_samples) float32 in [-1, 1] on the CPU."""
    sample_rate: int
