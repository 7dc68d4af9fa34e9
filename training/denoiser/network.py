"""The transformer in training: the network that serves, with a noise level for each sample and a mask of what is held.

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

from braid.diffusion.latents import AudioVideo, each
from braid.diffusion.models.ltx2.adaln import AdaLayerNormSingle
from braid.diffusion.models.ltx2.entry import StreamEnds, make_ends
from braid.diffusion.models.ltx2.rope import make_rotation
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.training.denoiser.block import Rows, StreamInputs, Turns, run_whole_block

T = TypeVar("T")
BlockFunction = Callable[..., tuple[Tensor | None, Tensor | None]]
KnownTurns = dict[tuple[str, int, tuple[float, ...], torch.dtype], Turns]


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
    layout: str = ""
    """A name of the positions, for which rotations are computed once; a number brought to a GPU is waited for. Without
    a name they are computed each time."""


class TrainingNetwork:
    """The config's part of the maths; weights come with each call.

    Args:
        compiler: makes the function of one block faster; it is the same function for all of them.
    """

    def __init__(
        self, config: TransformerConfig, *, compiler: Callable[[BlockFunction], BlockFunction] | None = None
    ) -> None:
        self._config = config
        self._block: BlockFunction = run_whole_block if compiler is None else compiler(run_whole_block)
        self._known_turns: KnownTurns = {}

    def __call__(self, weights: Mapping[str, Tensor], streams: AudioVideo[NoisyStream]) -> AudioVideo[Tensor]:
        """Velocities (B, T, C) of each stream, in the dtype of the weights."""
        dtype = next(iter(weights.values())).dtype
        ends = make_ends(self._config, weights, dtype)
        entries = AudioVideo(
            self._entry(ends.video, streams.video, streams.audio), self._entry(ends.audio, streams.audio, streams.video)
        )
        embeddings = entries.map(lambda entry: entry.modulations(dtype))
        states = each(lambda entry, rows: entry.enter(rows[0], dtype), entries, embeddings)
        video, audio = states.video, states.audio
        num_heads = next(entries.present()).ends.config.num_heads
        for own in _blocks(weights, self._config.num_layers):
            video_x, audio_x = self._block(own, video, audio, num_heads, self._config.norm_eps)
            video = None if video is None else video._replace(x=_there(video_x))
            audio = None if audio is None else audio._replace(x=_there(audio_x))
        left = AudioVideo(video, audio)
        return each(lambda entry, state, rows: entry.leave(state, rows[1]), entries, left, embeddings)

    def _entry(self, ends: StreamEnds | None, stream: NoisyStream | None, other: NoisyStream | None) -> _Entry | None:
        return None if stream is None else _Entry(self._config, _there(ends), stream, other, self._known_turns)


def _blocks(weights: Mapping[str, Tensor], number: int) -> list[dict[str, Tensor]]:
    """The weights of each block, without prefix."""
    blocks: list[dict[str, Tensor]] = [{} for _ in range(number)]
    for name, value in weights.items():
        if name.startswith("transformer_blocks."):
            _, index, own = name.split(".", 2)
            blocks[int(index)][own] = value
    return blocks


@dataclass(frozen=True, slots=True)
class _Entry:
    """Takes one stream into the blocks and out of them; see `ltx2.entry`."""

    config: TransformerConfig
    ends: StreamEnds
    stream: NoisyStream
    other: NoisyStream | None
    known_turns: KnownTurns

    def modulations(self, dtype: torch.dtype) -> tuple[Rows, Rows]:
        """The rows of all blocks, and those of the exit."""
        return _rows(self.ends.adaln, self.stream.sigma * self.config.timestep_scale, dtype)

    def enter(self, rows: Rows, dtype: torch.dtype) -> StreamInputs:
        """What the first block is given."""
        ends, stream, config = self.ends, self.stream, self.config
        timesteps = stream.sigma * config.timestep_scale
        assert ends.prompt_adaln is not None
        inputs = StreamInputs(
            x=ends.patchify(stream.latents.to(dtype)),
            context=stream.context,
            is_free=stream.is_free,
            turns=self._turns(stream.positions, ends.config.width, ends.config.max_pos, dtype),
            rows=rows,
            prompt=ends.prompt_adaln(timesteps, dtype, timesteps.device)[0],
        )
        if self.other is None:
            return inputs
        assert ends.cross_adaln is not None and ends.cross_gate_adaln is not None
        others = self.other.sigma * config.cross_gate_timestep_scale
        return inputs._replace(
            cross_turns=self._turns(stream.positions[:, :1], config.cross_inner_dim, (config.cross_max_pos,), dtype),
            cross=_rows(ends.cross_adaln, timesteps, dtype)[0],
            gate=ends.cross_gate_adaln(others, dtype, others.device)[0],
        )

    def leave(self, inputs: StreamInputs, embeddings: Rows) -> Tensor:
        """The velocity (B, T, C) after the last block."""
        rows = embeddings.plus(self.ends.out_table)
        normed = functional.layer_norm(inputs.x, (self.ends.config.width,), eps=self.config.norm_eps)
        shift, scale = (rows.of_tokens(row, inputs.is_free) for row in (0, 1))
        return self.ends.proj_out(normed * (1 + scale) + shift)

    def _turns(self, positions: Tensor, width: int, max_pos: tuple[float, ...], dtype: torch.dtype) -> Turns:
        config, key = self.config, (self.stream.layout, width, max_pos, dtype)
        if key in self.known_turns:
            return self.known_turns[key]
        rotation = make_rotation(
            positions, width, self.ends.config.num_heads, max_pos,
            theta=config.rope_theta, rope_type=config.rope_type, is_double=config.has_double_precision_rope,
        ).to(dtype)  # fmt: skip
        turns = Turns(rotation.cos, rotation.sin)
        if self.stream.layout:
            self.known_turns[key] = turns
        return turns


def _there(value: T | None) -> T:
    assert value is not None, "the transformer has no such stream"
    return value


def _rows(unit: AdaLayerNormSingle, timesteps: Tensor, dtype: torch.dtype) -> tuple[Rows, Rows]:
    """The unit's rows of every sample and of level 0, and its embeddings as single rows."""
    rows, embeddings = unit(functional.pad(timesteps, (0, 1)), dtype, timesteps.device)
    embeddings = embeddings.unsqueeze(1)
    return Rows(rows[:-1], rows[-1:]), Rows(embeddings[:-1], embeddings[-1:])
