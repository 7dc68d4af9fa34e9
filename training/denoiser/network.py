"""The transformer in training: the blocks that serve, with a noise level for each sample and a mask of what is held.

`LTX2Transformer` looks for distinct timesteps and lets every token look its modulation up, which is right for one
request; for hundreds of samples, each at its own level, the gradient of that look-up is slow. Here a token has its
sample's level, or 0 where it is held. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.adaln import AdaLayerNormSingle, Modulation, modulate
from braid.diffusion.models.ltx2.block import StreamState, make_block
from braid.diffusion.models.ltx2.entry import StreamEnds, make_ends
from braid.diffusion.models.ltx2.rope import Rotation, make_rotation
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.training.denoiser.block import WHOLE, run_whole_block

T = TypeVar("T")
BlockFunction = Callable[..., tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True, slots=True)
class NoisyStream:
    """One stream of a batch, noised."""

    latents: Tensor
    """(B, T, C)."""
    sigma: Tensor
    """(B,) float32; 0 where the stream is given as a whole."""
    is_free: Tensor
    """(B, T, 1) bool; tokens that are not are held, at level 0."""
    positions: Tensor
    """(1, num_axes, T, 2), the same for all samples."""
    context: Tensor
    """(B, S, width)."""


@dataclass(frozen=True, slots=True)
class SampleModulation(Modulation):
    """Rows of each sample's level, and those of level 0 for tokens that are held."""

    held_rows: Tensor
    """(1, num_rows, width)."""
    is_free: Tensor | None
    """(B, T, 1); None where no token has another level than its sample."""

    def plus(self, table: Tensor) -> SampleModulation:
        return SampleModulation(self.rows + table, None, self.held_rows + table, self.is_free)

    def of_tokens(self, row: int, tokens: slice, *, plus: float = 0.0) -> Tensor:
        """See `Modulation`; (B, T' or 1, width)."""
        values = self.rows[:, row, None]
        if self.is_free is not None:
            values = torch.where(self.is_free[:, tokens], values, self.held_rows[:, row, None])
        return values + plus if plus else values


class TrainingNetwork:
    """The config's part of the maths; weights come with each call.

    Args:
        compiler: makes the function of one block faster; it is the same function for all of them.
    """

    def __init__(
        self, config: TransformerConfig, *, compiler: Callable[[BlockFunction], BlockFunction] | None = None
    ) -> None:
        self._config = config
        self._block: BlockFunction = self._run_block if compiler is None else compiler(self._run_block)

    def __call__(self, weights: Mapping[str, Tensor], streams: AudioVideo[NoisyStream]) -> AudioVideo[Tensor]:
        """Velocities (B, T, C) of each stream, in the dtype of the weights."""
        dtype = next(iter(weights.values())).dtype
        ends = make_ends(self._config, weights, dtype)
        video, audio = streams.video, streams.audio
        video_state = None if video is None else self._enter(_there(ends.video), video, audio, dtype)
        audio_state = None if audio is None else self._enter(_there(ends.audio), audio, video, dtype)
        for index in range(self._config.num_layers):
            prefix = f"transformer_blocks.{index}."
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            video_x, audio_x = self._block(own, video_state, audio_state)
            if video_state is not None and video_x is not None:
                video_state.x = video_x
            if audio_state is not None and audio_x is not None:
                audio_state.x = audio_x
        return AudioVideo(
            None if video_state is None else self._leave(_there(ends.video), video_state),
            None if audio_state is None else self._leave(_there(ends.audio), audio_state),
        )

    def _run_block(
        self, weights: Mapping[str, Tensor], video: StreamState | None, audio: StreamState | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Hidden states behind one block, whose weights have no prefix."""
        named = {f"transformer_blocks.0.{name}": value for name, value in weights.items()}
        dtype = next(iter(weights.values())).dtype
        return run_whole_block(make_block(self._config, named, 0, dtype), video, audio)

    def _enter(
        self, ends: StreamEnds, stream: NoisyStream, other: NoisyStream | None, dtype: torch.dtype
    ) -> StreamState:
        """See `entry.Entry.enter`."""
        config = self._config
        assert ends.prompt_adaln is not None
        levels, scale = stream.sigma, config.timestep_scale
        modulation, embeddings = _held(ends.adaln, levels * scale, stream.is_free, dtype)
        prompt = _of_samples(ends.prompt_adaln, levels * scale, dtype)
        cross, gate = None, None
        if other is not None:
            assert ends.cross_adaln is not None and ends.cross_gate_adaln is not None
            cross, _ = _held(ends.cross_adaln, levels * scale, stream.is_free, dtype)
            gate = _of_samples(ends.cross_gate_adaln, other.sigma * config.cross_gate_timestep_scale, dtype)
        return StreamState(
            x=ends.patchify(stream.latents.to(dtype)),
            context=stream.context,
            context_bias=None,
            self_bias=None,
            rotation=self._rotation(ends, stream.positions, ends.config.width, ends.config.max_pos).to(dtype),
            cross_rotation=None if other is None else self._cross_rotation(ends, stream.positions).to(dtype),
            modulation=modulation,
            prompt_modulation=prompt,
            cross_modulation=cross,
            cross_gate=gate,
            embeddings=embeddings,
            is_enabled=True,
        )

    def _cross_rotation(self, ends: StreamEnds, positions: Tensor) -> Rotation:
        return self._rotation(ends, positions[:, :1], self._config.cross_inner_dim, (self._config.cross_max_pos,))

    def _rotation(self, ends: StreamEnds, positions: Tensor, width: int, max_pos: tuple[float, ...]) -> Rotation:
        config = self._config
        return make_rotation(
            positions, width, ends.config.num_heads, max_pos,
            theta=config.rope_theta, rope_type=config.rope_type, is_double=config.has_double_precision_rope,
        )  # fmt: skip

    def _leave(self, ends: StreamEnds, state: StreamState) -> Tensor:
        """See `entry.Entry.leave`."""
        normed = functional.layer_norm(state.x, (ends.config.width,), eps=self._config.norm_eps)
        return ends.proj_out(modulate(normed, state.embeddings.plus(ends.out_table), WHOLE, shift=0, scale=1))


def _there(value: T | None) -> T:
    assert value is not None, "the transformer has no such stream"
    return value


def _held(
    unit: AdaLayerNormSingle, timesteps: Tensor, is_free: Tensor, dtype: torch.dtype
) -> tuple[SampleModulation, SampleModulation]:
    """The unit's rows of every sample and of level 0, and its embeddings as single rows."""
    rows, embeddings = unit(functional.pad(timesteps, (0, 1)), dtype, timesteps.device)
    embeddings = embeddings.unsqueeze(1)
    return (
        SampleModulation(rows[:-1], None, rows[-1:], is_free),
        SampleModulation(embeddings[:-1], None, embeddings[-1:], is_free),
    )


def _of_samples(unit: AdaLayerNormSingle, timesteps: Tensor, dtype: torch.dtype) -> SampleModulation:
    rows, _ = unit(timesteps, dtype, timesteps.device)
    return SampleModulation(rows, None, rows[:1], None)
