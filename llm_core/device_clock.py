"""Time on a device, told when what it was given to do is done.

Calls to a GPU return before their work is done. A piece that ended with its calls would look short whatever it holds,
pieces would pile up in front of the next token of a chat, and costs would be learnt from the asking alone. So a clock
of pieces waits for the calling thread's stream first; other streams, such as those that copy weights, run on.
"""

from __future__ import annotations

import time

import torch

from braid.llm_core.core import Clock


def device_clock(device: str) -> Clock:
    """Seconds, for `cpu`, `cuda` or `cuda:N`: between two readings lies the time of a piece of work on the device."""
    place = torch.device(device)
    if place.type != "cuda":
        return time.perf_counter

    def settled() -> float:
        torch.cuda.current_stream(place).synchronize()
        return time.perf_counter()

    return settled
