"""What the bits of a result depend on besides its request: stored with a job, and compared when it is gone on with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from braid.multimodal.h264 import NUM_THREADS


def bit_facts(*, num_threads: int, device: str, model: dict[str, Any]) -> dict[str, Any]:
    """As JSON.

    Args:
        model: which files were loaded, and how.
    """
    import av

    return {
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "num_threads": num_threads,
        "torch": str(torch.__version__),
        "diffusers": version("diffusers"),
        "encoder_threads": NUM_THREADS,
        "encoders": f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}",
        "pictures": f"Pillow {version('pillow')}",
        "model": model,
    }
