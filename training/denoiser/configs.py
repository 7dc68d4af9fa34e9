"""What braid-tiny's transformer and text connectors are, in the official config's words, and what they weigh.

Byte budget of the shipped file, matrices as int8 with a bfloat16 scale a row:

| component | parameters | MB |
|---|---|---|
| 6 blocks, video 384 wide and audio 192 wide | 20.5 M | 20.7 |
| timestep networks (AdaLN), entry and exit | 4.4 M | 4.4 |
| projections of 5 layers of SmolLM2 | 1.7 M | 1.7 |
| connectors, 2 blocks each | 4.5 M | 4.5 |
| distilled adapter, rank 16, bfloat16 | 1.8 M | 3.6 |
| two style adapters, rank 8, bfloat16 | 1.8 M | 3.6 |

Six blocks and not eight: in bfloat16 the whole is 62 MB, which is what a run of training hands to the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from braid.diffusion.models.ltx2.transformer_config import MOVED_CAPTION_PROJECTION

ConfigSection = dict[str, Any]


@dataclass(frozen=True)
class TextLayers:
    """What is taken of the language model; the `text_encoder` of the file's own metadata."""

    name: str = "smollm2"
    hidden_size: int = 576
    num_layers: int = 30
    layers: tuple[int, ...] = (2, 5, 8, 11, 14)
    """Words are known early, what belongs to what by the middle; the last half thinks about the next word."""
    max_length: int = 128

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.hidden_size * len(self.layers)

    def metadata(self) -> ConfigSection:
        """As `read_text_encoder` reads it."""
        return {
            "name": self.name, "hidden_size": self.hidden_size, "num_layers": self.num_layers,
            "layers": list(self.layers), "max_length": self.max_length, "padding_side": "left",
        }  # fmt: skip


def transformer_section(
    *,
    num_heads: int = 6,
    head_dims: tuple[int, int] = (64, 32),
    num_layers: int = 6,
    num_connector_layers: int = 2,
    channels: tuple[int, int] = (32, 128),
    max_length: int = 128,
) -> ConfigSection:
    """The section `transformer`, connectors included.

    Args:
        head_dims, channels: of video and audio.
        max_length: of prompts, which the connectors' positions are divided by.
    """
    video, audio = head_dims
    section: ConfigSection = {
        "_class_name": "AVTransformer3DModel",
        "num_layers": num_layers, "norm_eps": 1e-6,
        "num_attention_heads": num_heads, "attention_head_dim": video, "cross_attention_dim": num_heads * video,
        "in_channels": channels[0], "out_channels": channels[0],
        "audio_num_attention_heads": num_heads, "audio_attention_head_dim": audio,
        "audio_cross_attention_dim": num_heads * audio, "audio_in_channels": channels[1],
        "audio_out_channels": channels[1],
        "apply_gated_attention": True, "cross_attention_adaln": True, "use_prompt_adaln_single": True,
        "timestep_scale_multiplier": 1000, "av_ca_timestep_scale_multiplier": 1000.0,
        # pictures of up to 128 pixels and clips of up to 2 seconds, whose neighbours turn by 0.06 to 6 radians
        "positional_embedding_theta": 100.0, "positional_embedding_max_pos": [2, 128, 128],
        "audio_positional_embedding_max_pos": [2], "rope_type": "split", "frequencies_precision": "float64",
        "connector_num_attention_heads": num_heads, "connector_attention_head_dim": video,
        "audio_connector_num_attention_heads": num_heads, "audio_connector_attention_head_dim": audio,
        "connector_num_layers": num_connector_layers, "connector_apply_gated_attention": True,
        "connector_positional_embedding_max_pos": [max_length],
    }  # fmt: skip
    return {**section, **MOVED_CAPTION_PROJECTION}


@dataclass(frozen=True)
class Shape:
    """All that decides which tensors there are; the defaults are braid-tiny's."""

    section: Mapping[str, Any] = field(default_factory=transformer_section)
    text: TextLayers = TextLayers()
    num_registers: int = 32
