"""How much memory a forward of the transformer needs beside the weights, found by running it without data.

One block is run: all of them need the same, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.entry import Stream
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.transformer import MAX_PIECE_MACS, LTX2Transformer
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig, expected_tensors

LIBRARY_BYTES = {"cuda": 48 << 20}
"""What libraries of matrix products keep for themselves, by type of device."""
MAX_PIECES = 16
"""Of one operation while it is predicted: finer ones take minutes to count, and what they hold differs by little."""
NUM_TIMESTEPS = 3
"""Distinct ones: generated, kept and softly held tokens."""


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What of a stream decides how much memory it takes."""

    num_tokens: int
    num_text_tokens: int
    has_attention_mask: bool = False


@lru_cache(maxsize=256)
def forward_bytes(
    config: TransformerConfig,
    shapes: AudioVideo[StreamShape],
    dtype: torch.dtype,
    *,
    device_type: str,
    is_fp8_cast: bool = False,
    max_piece_macs: int | None = None,
) -> int:
    """The peak of one forward of one sample, inputs and result included, weights not.

    Args:
        device_type: "cpu" or "cuda": pieces differ, and what libraries take.
        is_fp8_cast: products upcast their weights.
    """
    config = replace(config, num_layers=1)
    weights = {
        name: torch.empty(shape, dtype=_stored(name, dtype, is_fp8_cast=is_fp8_cast), device="meta")
        for name, shape in expected_tensors(config).items()
    }
    max_piece_macs = max_piece_macs or MAX_PIECE_MACS.get(device_type, MAX_PIECE_MACS["cpu"])
    max_piece_macs = max(max_piece_macs, _largest_macs(config, shapes) // MAX_PIECES)
    transformer = LTX2Transformer(config, weights, max_piece_macs=max_piece_macs)

    def run() -> None:
        streams = AudioVideo(
            _stream(config.streams.video, shapes.video, config, dtype),
            _stream(config.streams.audio, shapes.audio, config, dtype),
        )
        with torch.inference_mode():
            transformer.forward(streams)

    return peak_bytes(run) + _attention_bytes(config, shapes) + LIBRARY_BYTES.get(device_type, 0)


def _stored(name: str, dtype: torch.dtype, *, is_fp8_cast: bool) -> torch.dtype:
    from braid.diffusion.models.ltx2.fp8_cast import is_cast
    from braid.diffusion.models.ltx2.linear import FP8

    return FP8 if is_fp8_cast and is_cast(name) else dtype


def _stream(
    stream: StreamConfig | None, shape: StreamShape | None, config: TransformerConfig, dtype: torch.dtype
) -> Stream | None:
    """Inputs on the meta device; timesteps have data, for their distinct values are looked for."""
    if stream is None or shape is None:
        return None
    num_tokens = shape.num_tokens

    def empty(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    return Stream(
        latents=empty(1, num_tokens, stream.in_channels),
        sigma=torch.ones(1),
        timesteps=(torch.arange(num_tokens) % NUM_TIMESTEPS).float()[None],
        positions=empty(1, len(stream.max_pos), num_tokens, 2, dtype=torch.float32),
        context=empty(1, shape.num_text_tokens, config.caption_channels or stream.context_dim),
        attention_mask=empty(1, num_tokens, num_tokens, dtype=torch.float32) if shape.has_attention_mask else None,
    )


def _largest_macs(config: TransformerConfig, shapes: AudioVideo[StreamShape]) -> int:
    """Of one operation: an attention over all tokens or a feed-forward's half."""
    pairs = ((config.streams.video, shapes.video), (config.streams.audio, shapes.audio))
    return max(
        stream.width * shape.num_tokens * max(2 * shape.num_tokens, 4 * stream.width)
        for stream, shape in pairs
        if stream is not None and shape is not None
    )


def _attention_bytes(config: TransformerConfig, shapes: AudioVideo[StreamShape]) -> int:
    """What a fused attention keeps beside its result: a float32 for each row and head."""
    pairs = ((config.streams.video, shapes.video), (config.streams.audio, shapes.audio))
    return sum(
        4 * stream.num_heads * shape.num_tokens for stream, shape in pairs if stream is not None and shape is not None
    )
