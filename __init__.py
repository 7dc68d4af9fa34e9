"""Braid: one server for one machine that chats, draws images and films video with sound.

The public names load on first use, because importing torch takes seconds and much of the package does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braid.config import BraidConfig, LoraConfig, VideoConfig
    from braid.diffusion.params import GenerationParams
    from braid.errors import BraidError
    from braid.factory import LLM
    from braid.llm_core.engine.messages import SamplingParams
    from braid.video_factory import Braid, DiffGenerator

__all__ = [
    "LLM",
    "Braid",
    "BraidConfig",
    "BraidError",
    "DiffGenerator",
    "GenerationParams",
    "LoraConfig",
    "SamplingParams",
    "VideoConfig",
]
__version__ = "0.1.0"

_HOMES = {
    "LLM": "braid.factory",
    "Braid": "braid.video_factory",
    "BraidConfig": "braid.config",
    "BraidError": "braid.errors",
    "DiffGenerator": "braid.video_factory",
    "GenerationParams": "braid.diffusion.params",
    "LoraConfig": "braid.config",
    "SamplingParams": "braid.llm_core.engine.messages",
    "VideoConfig": "braid.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'braid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
