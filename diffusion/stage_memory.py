"""What each network of a checkpoint takes: its weights on the device, and the peak of one use of it.

Nothing is loaded: networks are built on tensors without memory, and run so (`peak_memory`). A peak is remembered by
its shape; the first of a network takes a second or so.
"""

from __future__ import annotations

from typing import Any

import torch

from braid.diffusion.components import builder
from braid.diffusion.guidance import Guidance, passes_needed
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.forward_memory import StreamShape, forward_bytes
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.weight_bytes import UPSAMPLER, WeightBytes

Shape3 = tuple[int, int, int]


class StageMemory:
    """Args:
    weights: of a checkpoint, as its networks compute with them.
    """

    def __init__(self, weights: WeightBytes, *, max_piece_macs: int | None = None) -> None:
        self.checkpoint = weights.checkpoint
        self.weights = weights
        self.device_type = weights.device_type
        self._dtype = weights.dtype
        self._max_piece_macs = max_piece_macs
        self._config = weights.checkpoint.transformer_config()
        self._networks: dict[Part | str, Any] = {}
        self._peaks: dict[tuple[object, ...], int] = {}

    # -- one use -------------------------------------------------------------------------------------------------------

    def project_text(self, dtype: torch.dtype) -> int:
        spec = self.checkpoint.text_encoder()
        shape = (1, spec.max_length, spec.hidden_size, len(spec.layers))
        return self._peak(Part.TEXT_PROJECTION, shape, self._dtype or dtype)

    def encode_frames(self, frames: Shape3, dtype: torch.dtype) -> int:
        """Of (F, H, W) pixels."""
        return self._peak(Part.VIDEO_ENCODER, *frames, self._dtype or dtype)

    def upsample(self, latents: Shape3, dtype: torch.dtype) -> int:
        return self._peak(UPSAMPLER, latents, self._dtype or dtype)

    def decode_tile(self, latents: Shape3, dtype: torch.dtype) -> int:
        return self._peak(Part.VIDEO_DECODER, latents, self._dtype or dtype)

    def decode_audio(self, num_latents: int) -> int:
        return self._peak(Part.AUDIO_DECODER, num_latents, torch.float32)

    def vocode(self, num_latents: int) -> int:
        decoder = self._network(Part.AUDIO_DECODER)
        return self._peak(Part.VOCODER, decoder.geometry.num_mel_frames(num_latents))

    def evaluation(self, shapes: AudioVideo[StreamShape], guidance: AudioVideo[Guidance], dtype: torch.dtype) -> int:
        """Of the transformer: one pass at a time, the estimates of the passes before, and their sum."""
        pairs = ((shapes.video, self._config.streams.video), (shapes.audio, self._config.streams.audio))
        num_values = sum(
            shape.num_tokens * stream.in_channels
            for shape, stream in pairs
            if shape is not None and stream is not None
        )
        num_estimates = 2 + len(passes_needed(guidance, needs_unconditional=True))
        return num_estimates * num_values * dtype.itemsize + self.forward(shapes, dtype)

    def forward(self, shapes: AudioVideo[StreamShape], dtype: torch.dtype) -> int:
        """Of the transformer, one sample."""
        return forward_bytes(
            self._config,
            shapes,
            self._dtype or dtype,
            device_type=self.device_type,
            is_fp8_cast=self.weights.is_fp8_cast,
            max_piece_macs=self._max_piece_macs,
        )

    def prepare(self) -> None:
        """Import and build now what predictions need, so that the first is not kept waiting for it."""
        for part in self.checkpoint.parts:
            if part is not Part.TRANSFORMER:
                self._network(part)
        if self.checkpoint.upsampler is not None:
            self._network(UPSAMPLER)

    # -- networks without memory ---------------------------------------------------------------------------------------

    def _peak(self, part: Part | str, *arguments: object) -> int:
        key = (part, *arguments)
        if key not in self._peaks:
            self._peaks[key] = self._network(part).predicted_bytes(*arguments)
        return self._peaks[key]

    def _network(self, part: Part | str) -> Any:
        if part not in self._networks:
            self._networks[part] = self._built(part)
        return self._networks[part]

    def _built(self, part: Part | str) -> Any:
        if isinstance(part, Part):
            return builder(part)(self.checkpoint.section(part), self.weights.loaded(part))
        from braid.diffusion.models.ltx2.statistics import LatentStatistics
        from braid.diffusion.models.ltx2.upsampler import LatentUpsampler

        assert self.checkpoint.upsampler is not None
        unit = torch.ones(self.checkpoint.geometry.video.num_channels)
        return LatentUpsampler(
            self.checkpoint.upsampler.section, self.weights.loaded(part), LatentStatistics(unit, unit)
        )
