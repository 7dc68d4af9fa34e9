"""Which implementation of a language model runs a checkpoint on a device, and why not the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from braid.errors import InvalidRequest
from braid.llm_core.loading.weights import Checkpoint
from braid.llm_core.models.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Backend:
    """How a model should run.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        kernels: None for the fastest that accepts the model, `cpp` or one of its variants, or `torch`.
        num_threads: of the CPU.
        exact: False allows 8-bit activations.
    """

    device: str
    kernels: str | None
    num_threads: int
    exact: bool


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
    item = 2 if backend.device.startswith("cuda") else 4
    return sum(math.prod(checkpoint.weights[name].shape) * item for name in checkpoint.weights)


def build_model(checkpoint: Checkpoint, backend: Backend) -> LanguageModel:
    """Load the weights into the fastest implementation that takes them.

    Raises:
        InvalidRequest: C++ kernels were asked for by name and cannot run this; with the reason.
        ModelFileError: the weights are broken.
    """
    reason = refusal_of_cpp(checkpoint, backend)
    if reason is None:
        from braid.llm_core.models.cpu_model import CpuModel

        return CpuModel(
            checkpoint.config,
            checkpoint.weights,
            num_threads=backend.num_threads,
            exact=backend.exact,
            variant=_variant(backend),
        )
    if backend.kernels not in (None, "torch"):
        raise InvalidRequest(f"kernels={backend.kernels!r} cannot run {checkpoint.name}: {reason}", param="kernels")
    from braid.llm_core.models.torch_model import TorchModel

    torch.set_num_threads(backend.num_threads)
    return TorchModel(checkpoint.config, checkpoint.weights, device=backend.device)


def _variant(backend: Backend) -> str | None:
    return None if backend.kernels in (None, "cpp", "torch") else backend.kernels
