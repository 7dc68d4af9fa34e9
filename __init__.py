"""Braid: one server for one machine that chats, draws images and films video with sound.

The public names load on first use, because importing torch takes seconds and much of the package does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from braid.config import BraidConfig
    from braid.errors import BraidError
    from braid.factory import LLM, Braid
    from braid.llm_core.engine.messages import SamplingParams

__all__ = ["LLM", "Braid", "BraidConfig", "BraidError", "SamplingParams"]
__version__ = "0.1.0"

_HOMES = {
    "LLM": "braid.factory",
    "Braid": "braid.factory",
    "BraidConfig": "braid.config",
    "BraidError": "braid.errors",
    "SamplingParams": "braid.llm_core.engine.messages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'braid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
