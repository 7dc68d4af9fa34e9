"""Which implementation of a language model runs a checkpoint on a device, and why not the other."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from braid.errors import InvalidRequest
from braid.kernels.cpu.library import VARIANTS
from braid.kernels.ops import CPU_PREFIX, Ops
from braid.kernels.registry import AUTO
from braid.llm_core.loading.weights import Checkpoint
from braid.llm_core.models.model import LanguageModel

SMALL_SHARE = 1 / 16
"""Of a GPU's memory: weights that take no more than this in float32 stay in float32."""


@dataclass(frozen=True, slots=True)
class Backend:
    """How a model should run.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        kernels: None for the fastest that accepts the model, `cpp` or one of its variants, or `torch`.
        num_threads: of the CPU.
        exact: False allows 8-bit activations.
        dtype: of weights and activations that are not quantised, `float32` or `bfloat16`; None chooses.
    """

    device: str
    kernels: str | None
    num_threads: int
    exact: bool
    dtype: str | None = None


def choose_device(wanted: str | None) -> str:
    """The device that a person named, or a GPU if there is one, or the CPU.

    Raises:
        InvalidRequest: CUDA was named and is not there.
    """
    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count()
        index = int(wanted.partition(":")[2] or 0)
        if index >= count:
            raise InvalidRequest(f"device={wanted!r}: this machine has {count} CUDA devices", param="device")
    return wanted


def usable_processors() -> int:
    """Processors that this process may use; all of the machine where the system does not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_kernels(wanted: str | None) -> str | None:
    """What a person named, as `Backend` holds it; `auto` is None, and `cpu_avx2` is `avx2`.

    Raises:
        InvalidRequest: there is no such thing; with what there is.
    """
    if wanted in (None, "", AUTO):
        return None
    name = wanted.removeprefix(CPU_PREFIX)
    known = ("torch", "cpp", *(variant.name for variant in VARIANTS))
    if name not in known:
        raise InvalidRequest(f"kernels={wanted!r} is none of {AUTO}, {', '.join(known)}", param="kernels")
    return name


def refusal_of_cpp(checkpoint: Checkpoint, backend: Backend) -> str | None:
    """Why the C++ kernels do not run this checkpoint here; None if they do."""
    if backend.device != "cpu":
        return f"they run on a CPU and the device is {backend.device}"
    if backend.kernels == "torch":
        return "kernels=torch was asked for"
    from braid.llm_core.models.cpu_model import can_run

    return can_run(checkpoint.config, checkpoint.weights, variant=_variant(backend))


def copied_bytes(checkpoint: Checkpoint, backend: Backend) -> int:
    """Bytes that loading is going to copy out of the mapped file: repacked as stored, or dequantised."""
    if refusal_of_cpp(checkpoint, backend) is None:
        return sum(checkpoint.weights[name].raw().nbytes for name in checkpoint.weights)
    return _num_weights(checkpoint) * compute_dtype(checkpoint, backend).itemsize


def compute_dtype(checkpoint: Checkpoint, backend: Backend) -> torch.dtype:
    """What the torch model computes in: the dtype that was asked for, float32 on a CPU, and on a GPU bfloat16 unless
    the weights are small. A small model flips near ties in bfloat16 (SmolLM2 forgets that Paris is a capital), and
    memory is no reason there."""
    if backend.dtype is not None:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[backend.dtype]
    if not backend.device.startswith("cuda"):
        return torch.float32
    _, total_bytes = torch.cuda.mem_get_info(backend.device)
    is_small = _num_weights(checkpoint) * torch.float32.itemsize <= total_bytes * SMALL_SHARE
    return torch.float32 if is_small else torch.bfloat16


def _num_weights(checkpoint: Checkpoint) -> int:
    return sum(math.prod(checkpoint.weights[name].shape) for name in checkpoint.weights)


def describe_choice(checkpoint: Checkpoint, backend: Backend) -> str:
    """What `build_model` would make, in words for people; without reading the weights.

    Raises:
        InvalidRequest: as `build_model`.
    """
    reason = _reason_for_torch(checkpoint, backend)
    if reason is None:
        from braid.kernels.cpu.library import load_library

        mode = "exact" if backend.exact else "fast"
        return f"the C++ kernels, {load_library(_variant(backend)).variant.name}, {mode} mode"
    dtype = str(compute_dtype(checkpoint, backend)).removeprefix("torch.")
    return f"plain torch operators in {dtype}; the C++ kernels do not: {reason}"


def build_model(checkpoint: Checkpoint, backend: Backend) -> LanguageModel:
    """Load the weights into the fastest implementation that takes them.

    Raises:
        InvalidRequest: C++ kernels were asked for by name and cannot run this; with the reason.
        ModelFileError: the weights are broken.
    """
    if _reason_for_torch(checkpoint, backend) is None:
        from braid.llm_core.models.cpu_model import CpuModel

        return CpuModel(
            checkpoint.config,
            checkpoint.weights,
            num_threads=backend.num_threads,
            exact=backend.exact,
            variant=_variant(backend),
        )
    from braid.llm_core.models.torch_model import TorchModel

    torch.set_num_threads(backend.num_threads)
    dtype = compute_dtype(checkpoint, backend)
    ops = Ops(backend.device, backend.kernels)
    return TorchModel(checkpoint.config, checkpoint.weights, device=backend.device, dtype=dtype, ops=ops)


def _reason_for_torch(checkpoint: Checkpoint, backend: Backend) -> str | None:
    """Why torch operators run this checkpoint; None if the C++ kernels do.

    Raises:
        InvalidRequest: C++ kernels were asked for by name and cannot run this; with the reason.
    """
    reason = refusal_of_cpp(checkpoint, backend)
    if reason is not None and backend.kernels not in (None, "torch"):
        raise InvalidRequest(f"kernels={backend.kernels!r} cannot run {checkpoint.name}: {reason}", param="kernels")
    return reason


def _variant(backend: Backend) -> str | None:
    return None if backend.kernels in (None, "cpp", "torch") else backend.kernels
