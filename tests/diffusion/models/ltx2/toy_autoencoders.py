"""Toy configs of everything around the transformer, and seeded random weights under their official names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from braid.diffusion.models.ltx2 import video_network
from braid.diffusion.models.ltx2.config import Section

VIDEO: dict[str, Any] = {
    "latent_channels": 4,
    "patch_size": 2,
    "decoder_base_channels": 8,
    "encoder_blocks": [
        ["res_x", {"num_layers": 1}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 2}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 2}],
        ["compress_space", {"multiplier": 2}],
        ["compress_all", {"multiplier": 1, "residual": True}],
        ["res_x", {"num_layers": 1}],
    ],
    "timestep_conditioning": False,
}
"""2 frames and 8 pixels per latent."""

TEXT: dict[str, Any] = {
    "rope_type": "split",
    "frequencies_precision": "float64",
    "connector_positional_embedding_max_pos": [4096],
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 8,
    "connector_num_layers": 2,
    "connector_apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}

GENERATOR: dict[str, Any] = {
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "upsample_initial_channel": 8,
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}


def section(name: str, values: Mapping[str, Any]) -> Section:
    return Section(Path("toy.safetensors"), name, values)


def random_weights(module: nn.Module, prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    """Of the shapes of a module, scaled so that what comes out is of about size 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        prefix + key: torch.randn(tensor.shape, generator=generator) * 0.5 / max(1, tensor[0].numel() ** 0.5)
        if tensor.ndim
        else torch.tensor(1000.0)
        for key, tensor in module.state_dict().items()
    }


def statistics(num_values: int) -> dict[str, Tensor]:
    return {
        "per_channel_statistics.mean-of-means": torch.linspace(-0.5, 0.5, num_values),
        "per_channel_statistics.std-of-means": torch.linspace(0.5, 1.5, num_values),
    }


def video_weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    read = video_network.read_video_config(section("vae", config))
    return {
        **random_weights(video_network.EncoderNetwork(read), "encoder.", seed=1),
        **random_weights(video_network.DecoderNetwork(read), "decoder.", seed=2),
        **statistics(read.num_channels),
    }


def connector_weights(width: int, num_layers: int, num_registers: int) -> dict[str, Tensor]:
    """Of one connector, under official names, with gated attention of 2 heads."""
    generator = torch.Generator().manual_seed(width)
    shapes: dict[str, tuple[int, ...]] = {"learnable_registers": (num_registers, width)}
    for layer in range(num_layers):
        block = f"transformer_1d_blocks.{layer}"
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{block}.attn1.{name}.weight"] = (width, width)
            shapes[f"{block}.attn1.{name}.bias"] = (width,)
        shapes[f"{block}.attn1.q_norm.weight"] = shapes[f"{block}.attn1.k_norm.weight"] = (width,)
        shapes[f"{block}.attn1.to_gate_logits.weight"] = (2, width)
        shapes[f"{block}.attn1.to_gate_logits.bias"] = (2,)
        for name, (rows, columns) in {"0.proj": (4 * width, width), "2": (width, 4 * width)}.items():
            shapes[f"{block}.ff.net.{name}.weight"] = (rows, columns)
            shapes[f"{block}.ff.net.{name}.bias"] = (rows,)
    return {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}


def text_weights(hidden_size: int, num_layers: int) -> dict[str, Tensor]:
    """Of version 2, both streams 16 wide, 4 registers."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for stream in ("video", "audio"):
        name = f"text_embedding_projection.{stream}_aggregate_embed"
        weights[f"{name}.weight"] = torch.randn(16, hidden_size * num_layers, generator=generator) / hidden_size
        weights[f"{name}.bias"] = torch.randn(16, generator=generator)
        for key, tensor in connector_weights(16, 2, num_registers=4).items():
            weights[f"model.diffusion_model.{stream}_embeddings_connector.{key}"] = tensor
    return weights
