"""The file that is shipped: transformer, connectors and autoencoders as one official checkpoint, matrices in 8 bits.

`python -m braid.training.denoiser.shipping SHARDS AUTOENCODERS OUT.safetensors`; the upsampler stays a file of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from braid.training.denoiser.configs import Shape
from braid.training.denoiser.shards import read_shards

TEXT_PREFIX = "text_embedding_projection."
NETWORK_PREFIX = "model.diffusion_model."
MODEL_VERSION = "2.3.0"
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
    save_file(tensors, path, metadata=metadata)


def presets() -> dict[str, Any]:
    """Sizes, steps and guidance that braid-tiny was looked at with."""
    guided = {"video": _guidance(3.0), "audio": _guidance(3.0), "num_inference_steps": 30}
    small = {"height": 64, "width": 64, "num_frames": 25, "negative_prompt": "", "image_crf": 0}
    large = {**small, "height": 128, "width": 128}
    one_stage = {key: {**small, **guided} for key in ("one_stage", "retake", "extend", "text_to_audio")}
    two_stages = {key: {**large, **guided} for key in ("two_stage", "keyframe_interpolation", "a2vid")}
    return {**one_stage, **two_stages, "two_stage_hq": {**large, **guided, "num_inference_steps": 15}}


def _guidance(scale: float) -> dict[str, float | list[int]]:
    return {"guidance_scale": scale, "stg_scale": 0.0, "stg_blocks": [], "modality_scale": 1.0, "rescale": 0.0}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="write braid-tiny's checkpoint")
    parser.add_argument("shards", type=Path, help="a folder that a training run wrote")
    parser.add_argument("autoencoders", type=Path, help="a folder of trained autoencoders")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    saved = read_shards(options.shards)
    write_checkpoint(options.out, saved.weights, saved.shape, options.autoencoders, presets())
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
