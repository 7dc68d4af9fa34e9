"""The files of a run: what is shipped, with averaged weights, and what a later run goes on from.

Shipped are official files that the loader opens. A `resume-` file has the weights as they were, by the same names; with
the shipped averages and the counts of steps in the metadata that is all that is kept, in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from braid.diffusion.models.ltx2.statistics import MEAN, STD, LatentStatistics
from braid.diffusion.models.ltx2.vocoder_module import KEY_NAMES
from braid.multimodal.atomic_file import AtomicFile
from braid.training.autoencoders.configs import Sections
from braid.training.autoencoders.trainee import Trainee

NETWORKS = ("video", "upsampler", "audio", "vocoder", "extension")
"""In the order in which they are trained."""
SHIPPED = {
    "video_vae.safetensors": ("video",),
    "audio.safetensors": ("audio", "vocoder", "extension"),
    "upsampler.safetensors": ("upsampler",),
}
RESUMED = {
    "resume-video.safetensors": ("video",),
    "resume-rest.safetensors": ("upsampler", "audio", "vocoder", "extension"),
}
_PREFIXES = {"video": "vae.", "audio": "audio_vae."}
MODEL_VERSION = "2.3.0"
STEPS = "num_steps"
"""The key of the metadata that counts the steps of each network."""


def official_name(network: str, name: str) -> str:
    """Of a tensor of a network of ours."""
    if network == "vocoder":
        return f"vocoder.vocoder.{KEY_NAMES.official(name.removeprefix('generator.'))}"
    if network == "extension":
        if name == "mel_basis":
            return f"vocoder.mel_stft.{name}"
        if name.endswith("_basis"):
            return f"vocoder.mel_stft.stft_fn.{name}"
        return f"vocoder.bwe_generator.{KEY_NAMES.official(name.removeprefix('generator.'))}"
    return f"{_PREFIXES.get(network, '')}{name}"


@dataclass(frozen=True)
class Saved:
    """What one network is resumed with."""

    state: dict[str, Tensor]
    averaged: dict[str, Tensor]
    num_steps: int


def write(
    folder: Path, sections: Sections, trainees: Mapping[str, Trainee], statistics: Mapping[str, LatentStatistics]
) -> None:
    """Write all files, each whole or not at all.

    Args:
        statistics: of `video` and `audio`.
    """
    steps = {name: trainee.num_steps for name, trainee in trainees.items()}
    configs = _configs(sections)
    for file, networks in SHIPPED.items():
        tensors: dict[str, Tensor] = {}
        for name in networks:
            tensors |= _official(name, trainees[name].averaged_state())
            if name in statistics:
                tensors |= _statistics(name, statistics[name])
        _write(folder / file, tensors, {"config": json.dumps(configs[file]), STEPS: json.dumps(steps)})
    for file, networks in RESUMED.items():
        tensors = {}
        for name in networks:
            tensors |= _official(name, dict(trainees[name].network.state_dict()))
        _write(folder / file, tensors, {STEPS: json.dumps(steps)})


def read(folder: Path, network: str, names: list[str]) -> Saved:
    """What `write` kept of one network.

    Args:
        names: of its tensors.
    """
    shipped = next(folder / file for file, networks in SHIPPED.items() if network in networks)
    resumed = next(folder / file for file, networks in RESUMED.items() if network in networks)
    averaged, _ = _read(shipped, network, names)
    state, metadata = _read(resumed, network, names)
    return Saved(state, averaged, json.loads(metadata[STEPS])[network])


def read_statistics_of(folder: Path, network: str) -> LatentStatistics:
    """Of `video` or `audio`, from its shipped file."""
    path = next(folder / file for file, networks in SHIPPED.items() if network in networks)
    with safe_open(path, framework="pt") as file:
        mean, std = (
            file.get_tensor(f"{_PREFIXES[network]}per_channel_statistics.{name}").float() for name in (MEAN, STD)
        )
    return LatentStatistics(mean, std, 2 if network == "audio" else 1)


def _configs(sections: Sections) -> dict[str, Any]:
    """What each shipped file says of its networks."""
    return {
        "video_vae.safetensors": {"vae": sections.video},
        "audio.safetensors": {"audio_vae": sections.audio, "vocoder": sections.vocoder},
        "upsampler.safetensors": sections.upsampler,
    }


def _official(network: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {official_name(network, name): _stored(tensor) for name, tensor in state.items()}


def _statistics(network: str, statistics: LatentStatistics) -> dict[str, Tensor]:
    prefix = f"{_PREFIXES[network]}per_channel_statistics."
    return {f"{prefix}{MEAN}": _stored(statistics.mean), f"{prefix}{STD}": _stored(statistics.std)}


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.bfloat16, copy=True).contiguous()


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with AtomicFile(path) as unfinished:
        save_file(tensors, unfinished, metadata={**metadata, "model_version": MODEL_VERSION})


def _read(path: Path, network: str, names: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(official_name(network, name)).float() for name in names}
        return tensors, dict(file.metadata())
