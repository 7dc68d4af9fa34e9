"""The files that are shipped: transformer, connectors and autoencoders as one official checkpoint, matrices in 8 bits;
beside it the upsampler and the adapters.

`python -m braid.training.denoiser.shipping SHARDS AUTOENCODERS OUT [--adapters FOLDER]` writes the folder OUT and
prints what each component weighs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from braid.multimodal.atomic_file import AtomicFile
from braid.training.denoiser.configs import Shape
from braid.training.denoiser.shards import read_shards

TEXT_PREFIX = "text_embedding_projection."
NETWORK_PREFIX = "model.diffusion_model."
MODEL_VERSION = "2.3.0"
CHECKPOINT, UPSAMPLER = "braid-tiny.safetensors", "upsampler.safetensors"
MOST_BYTES = 64_000_000
"""Of all files together."""
COMPONENTS = {
    f"{NETWORK_PREFIX}transformer_blocks.": "blocks",
    f"{NETWORK_PREFIX}video_embeddings_connector.": "connectors",
    f"{NETWORK_PREFIX}audio_embeddings_connector.": "connectors",
    NETWORK_PREFIX: "timesteps, entry and exit",
    TEXT_PREFIX: "text projections",
    "vae.": "video autoencoder",
    "audio_vae.": "audio autoencoder",
    "vocoder.": "vocoder",
}
"""What the table of bytes calls tensors, by the first prefix that fits."""
LARGEST_INTEGER = 127
NOT_QUANTISED = ("patchify_proj.weight", "proj_out.weight", "to_gate_logits.weight")
"""Small, and every number that is made goes through them."""


def official_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the official file; matrices as int8 with a scale a row, all else bfloat16."""
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        official = name if name.startswith(TEXT_PREFIX) else f"{NETWORK_PREFIX}{name}"
        if is_quantised(name, value):
            tensors[official], tensors[f"{official}_scale"] = quantised(value)
        else:
            tensors[official] = value.bfloat16().contiguous()
    return tensors


def is_quantised(name: str, value: Tensor) -> bool:
    """Whether a tensor is a large matrix."""
    return value.dim() == 2 and name.endswith(".weight") and not name.endswith(NOT_QUANTISED)


def quantised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) int8 and (rows,) bfloat16, whose product is about the matrix."""
    scales = (matrix.float().abs().amax(1) / LARGEST_INTEGER).clamp(min=1e-12).bfloat16()
    rounded = (matrix.float() / scales.float()[:, None]).round()
    return rounded.clamp(-LARGEST_INTEGER, LARGEST_INTEGER).to(torch.int8), scales


def write_checkpoint(
    path: Path, weights: Mapping[str, Tensor], shape: Shape, autoencoders: Path, presets: Mapping[str, Any]
) -> None:
    """The one file.

    Args:
        autoencoders: a folder with `video_vae.safetensors` and `audio.safetensors`.
        presets: of the file's own metadata; see docs/checkpoints.md.
    """
    tensors, sections = official_tensors(weights), {"transformer": dict(shape.section)}
    for name in ("video_vae.safetensors", "audio.safetensors"):
        with safe_open(autoencoders / name, framework="pt") as file:
            sections |= json.loads(file.metadata()["config"])
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, a file is no mapping
    metadata = {
        "config": json.dumps(sections), "model_version": MODEL_VERSION,
        "braid": json.dumps({"text_encoder": shape.text.metadata(), "presets": dict(presets)}),
    }  # fmt: skip
    with AtomicFile(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)


def presets() -> dict[str, Any]:
    """Sizes, steps and guidance that braid-tiny was looked at with."""
    guided = {"video": _guidance(3.0), "audio": _guidance(3.0), "num_inference_steps": 30}
    small = {"height": 64, "width": 64, "num_frames": 25, "negative_prompt": "", "image_crf": 0}
    large = {**small, "height": 128, "width": 128}
    one_stage = {key: {**small, **guided} for key in ("one_stage", "retake", "extend", "text_to_audio")}
    two_stages = {key: {**large, **guided} for key in ("two_stage", "keyframe_interpolation", "a2vid")}
    return {
        **one_stage,
        **two_stages,
        "two_stage_hq": {**large, **guided, "num_inference_steps": 15},
        # what is distilled is an adapter, which both of its stages need
        "distilled": {**large, "distilled_strengths": [1.0, 1.0]},
    }


def _guidance(scale: float) -> dict[str, float | list[int]]:
    return {"guidance_scale": scale, "stg_scale": 0.0, "stg_blocks": [], "modality_scale": 1.0, "rescale": 0.0}


def ship(out: Path, shards: Path, autoencoders: Path, adapters: Path | None = None) -> None:
    """Write a folder that `from_pretrained` takes.

    Args:
        adapters: a folder of `distilled-lora.safetensors` and `style-*-lora.safetensors`.
    Raises:
        ValueError: the files are too large to be shipped.
    """
    out.mkdir(parents=True, exist_ok=True)
    saved = read_shards(shards)
    write_checkpoint(out / CHECKPOINT, saved.weights, saved.shape, autoencoders, presets())
    (out / CHECKPOINT).chmod(0o644)  # whoever installs it is not who reads it
    shutil.copyfile(autoencoders / UPSAMPLER, out / UPSAMPLER)
    for path in sorted(adapters.glob("*-lora.safetensors")) if adapters else ():
        shutil.copyfile(path, out / path.name)
    total = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if total > MOST_BYTES:
        raise ValueError(f"{out}: {total:,} bytes are more than {MOST_BYTES:,}; ship fewer or smaller adapters")


def budget(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Component, numbers and bytes of everything in a shipped folder."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == CHECKPOINT:
            yield from _components(path)
        else:
            yield path.stem, *_weight(path)


def _components(path: Path) -> Iterator[tuple[str, int, int]]:
    left = dict.fromkeys(COMPONENTS.values(), (0, 0))
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, a file is no mapping
            tensor = file.get_tensor(name)
            component = next(component for prefix, component in COMPONENTS.items() if name.startswith(prefix))
            numbers, size = left[component]
            is_weight = not name.endswith("_scale")
            left[component] = numbers + tensor.numel() * is_weight, size + tensor.nbytes
    yield from ((component, *found) for component, found in left.items())


def _weight(path: Path) -> tuple[int, int]:
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118, no mapping
    return sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="write braid-tiny's files")
    parser.add_argument("shards", type=Path, help="a folder that a training run wrote")
    parser.add_argument("autoencoders", type=Path, help="a folder of trained autoencoders")
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--adapters", type=Path, help="a folder of adapters, which are all shipped")
    options = parser.parse_args()
    ship(options.out, options.shards, options.autoencoders, options.adapters)
    total = 0
    for component, numbers, size in budget(options.out):
        print(f"{component:24} {numbers:12,} numbers {size / 1e6:8.2f} MB")
        total += size
    print(f"{'all':24} {'':20} {total / 1e6:8.2f} MB of {MOST_BYTES / 1e6:g}")


if __name__ == "__main__":
    main()
