"""What a guidance pass leaves out of the network.

Source: specs of LTX-2, section d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BlockSet = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """In which blocks what is left out. Self-attention left out hands its values on; cross-attention adds nothing."""

    video_self_attention: BlockSet = ()
    audio_self_attention: BlockSet = ()
    audio_to_video: BlockSet = ()
    video_to_audio: BlockSet = ()


UNPERTURBED = Perturbation()
ISOLATED = Perturbation(audio_to_video="all", video_to_audio="all")
"""The pass in which the streams do not see each other."""


def contains(blocks: BlockSet, index: int) -> bool:
    """Whether block `index` is one of `blocks`."""
    return blocks == "all" or index in blocks
