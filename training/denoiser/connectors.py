"""Hidden states of many captions to the contexts of both streams, in a way that gradients can go through.

The same maths as `diffusion.models.ltx2.text_projection`, version 2, which serves one prompt at a time without
gradients; a test holds the two together. Source: specs of LTX-2, sections a.2 and a.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.attention import AttentionShape, make_attention
from braid.diffusion.models.ltx2.rope import Rotation, make_rotation
from braid.diffusion.models.ltx2.text_projection import EPS
from braid.training.denoiser.configs import Shape

STREAMS = {"video": "", "audio": "audio_"}
"""And what the config puts in front of a stream's keys."""


@dataclass(frozen=True)
class Text:
    """Hidden states of some captions, text first."""

    hidden_states: Tensor
    """(B, T, D, L), T being that of the longest caption."""
    lengths: Tensor
    """(B,) tokens of each; 0 is an empty prompt."""


class Connectors:
    """The config's part of the maths; weights come with each call."""

    def __init__(self, shape: Shape) -> None:
        self._section: Mapping[str, Any] = shape.section
        self._length = shape.text.max_length
        self._rotations: dict[tuple[str, torch.device, torch.dtype], Rotation] = {}

    def __call__(self, weights: Mapping[str, Tensor], text: Text) -> AudioVideo[Tensor]:
        """(B, max_length, width) of each stream, in the dtype of the weights, by official names without prefix."""
        return AudioVideo(*(self._context(weights, text, stream) for stream in STREAMS))

    def _context(self, weights: Mapping[str, Tensor], text: Text, stream: str) -> Tensor:
        name = f"{stream}_embeddings_connector"
        features = self._features(weights, text, stream)
        x = _with_registers(features, text.lengths, weights[f"{name}.learnable_registers"], self._length)
        rotation = self._rotation(stream, x)
        for index in range(self._section["connector_num_layers"]):
            x = self._block(weights, f"{name}.transformer_1d_blocks.{index}", stream, x, rotation)
        return functional.rms_norm(x, x.shape[-1:], None, EPS)

    def _features(self, weights: Mapping[str, Tensor], text: Text, stream: str) -> Tensor:
        name = f"text_embedding_projection.{stream}_aggregate_embed"
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        hidden_states = text.hidden_states
        normalised = hidden_states * torch.rsqrt(hidden_states.square().mean(dim=2, keepdim=True) + EPS)
        scale = math.sqrt(weight.shape[0] / hidden_states.shape[2])
        return functional.linear((normalised.flatten(2) * scale).to(weight.dtype), weight, bias)

    def _block(self, weights: Mapping[str, Tensor], name: str, stream: str, x: Tensor, rotation: Rotation) -> Tensor:
        width = x.shape[-1]
        shape = AttentionShape(width, width, width, self._heads(stream))
        attention = make_attention(weights, f"{name}.attn1", shape, EPS, x.dtype)
        normed = functional.rms_norm(x, (width,), None, EPS)
        queries, keys = attention.queries(normed, rotation), attention.keys(normed, rotation)
        attended = attention.attend(queries, keys, attention.to_v(normed), None)
        x = x + attention.project(attended, attention.gates(normed))
        normed = functional.rms_norm(x, (width,), None, EPS)
        hidden = _linear(weights, f"{name}.ff.net.0.proj", normed)
        return x + _linear(weights, f"{name}.ff.net.2", functional.gelu(hidden, approximate="tanh"))

    def _rotation(self, stream: str, x: Tensor) -> Rotation:
        """Positions are all alike, so it is computed once."""
        key = (stream, x.device, x.dtype)
        if key not in self._rotations:
            places = torch.arange(self._length, device=x.device).float()
            positions = places[None, None, :, None].expand(1, 1, -1, 2)
            (longest,) = self._section["connector_positional_embedding_max_pos"]
            theta = self._section["positional_embedding_theta"]
            rotation = make_rotation(positions, x.shape[-1], self._heads(stream), (longest,), theta=theta)
            self._rotations[key] = rotation.to(x.dtype)
        return self._rotations[key]

    def _heads(self, stream: str) -> int:
        heads: int = self._section[f"{STREAMS[stream]}connector_num_attention_heads"]
        return heads


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _with_registers(features: Tensor, lengths: Tensor, registers: Tensor, length: int) -> Tensor:
    """(B, length, width): text, then registers, chosen by position."""
    padded = functional.pad(features, (0, 0, 0, length - features.shape[1]))
    is_text = torch.arange(length, device=features.device) < lengths[:, None].to(features.device)
    return torch.where(is_text[..., None], padded, registers.repeat(length // len(registers), 1))
