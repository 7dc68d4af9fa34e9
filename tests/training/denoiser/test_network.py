"""The network of training is the one that serves; its connectors too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.text_projection import TextProjection
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.diffusion.positions import VideoGrid, audio_positions, video_positions
from braid.training.denoiser import network
from braid.training.denoiser.configs import Shape, TextLayers, transformer_section
from braid.training.denoiser.connectors import Connectors, Text
from braid.training.denoiser.initial_weights import initial_weights
from braid.training.denoiser.network import NoisyStream, TrainingNetwork

SHAPE = Shape(
    transformer_section(num_heads=2, head_dims=(12, 8), num_layers=2, channels=(4, 6), max_length=16),
    TextLayers(hidden_size=10, num_layers=4, layers=(1, 3), max_length=16),
    num_registers=8,
)
CONFIG = TransformerConfig.from_metadata(SHAPE.section)
BATCH = 3


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = initial_weights(SHAPE, generator)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in first.items()}


def noisy(tokens: int, channels: int, width: int, positions: torch.Tensor) -> NoisyStream:
    generator = torch.Generator().manual_seed(tokens)
    return NoisyStream(
        latents=torch.randn(BATCH, tokens, channels, generator=generator),
        sigma=torch.tensor([0.2, 0.7, 1.0]),
        is_free=torch.rand(BATCH, tokens, 1, generator=generator) > 0.3,
        positions=positions,
        context=torch.randn(BATCH, 16, width, generator=generator),
    )


def both_streams() -> AudioVideo[NoisyStream]:
    grid = VideoGrid(3, 2, 2, 8, 8, 8)
    return AudioVideo(
        noisy(12, 4, 24, video_positions(grid, 24.0)), noisy(7, 6, 16, audio_positions(7))
    )


def served(stream: NoisyStream) -> Stream:
    return Stream(
        latents=stream.latents,
        sigma=stream.sigma,
        timesteps=stream.is_free * stream.sigma[:, None, None],
        positions=stream.positions.expand(BATCH, -1, -1, -1),
        context=stream.context,
    )


def same(ours: AudioVideo[torch.Tensor], theirs: AudioVideo[torch.Tensor]) -> None:
    for one, other in zip(ours.present(), theirs.present(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert float(other.std()) > 1e-2


def test_velocities_are_those_of_the_transformer_that_serves(weights):
    streams = both_streams()
    ours = TrainingNetwork(CONFIG)(weights, streams)
    same(ours, LTX2Transformer(CONFIG, weights).forward(streams.map(served), together=True))


@pytest.mark.parametrize("kept", ["video", "audio"])
def test_a_stream_alone_is_as_the_transformer_has_it(weights, kept):
    streams = both_streams()
    streams = AudioVideo(**{kept: getattr(streams, kept)})
    ours = TrainingNetwork(CONFIG)(weights, streams)
    same(ours, LTX2Transformer(CONFIG, weights).forward(streams.map(served), together=True))


def test_gradients_are_those_of_the_transformer_that_serves(weights):
    def gradients(forward: Any) -> list[torch.Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        sum(one.square().mean() for one in forward(leaves).present()).backward()
        return [leaves[name].grad for name in sorted(leaves) if leaves[name].grad is not None]

    streams = both_streams()
    ours = gradients(lambda leaves: TrainingNetwork(CONFIG)(leaves, streams))
    theirs = gradients(
        lambda leaves: LTX2Transformer(CONFIG, leaves).forward(streams.map(served), together=True)
    )
    assert len(ours) == len(theirs) > 100
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_traced_block_gives_the_same(weights):
    streams = both_streams()
    compiled = TrainingNetwork(CONFIG, compiler=lambda f: torch.compile(f, backend="eager", fullgraph=True))
    same(compiled(weights, streams), TrainingNetwork(CONFIG)(weights, streams))


@pytest.mark.parametrize("lengths", [(5, 16, 1), (0, 3, 7)])
def test_contexts_are_those_of_the_projection_that_serves(weights, lengths):
    generator = torch.Generator().manual_seed(3)
    longest = max(lengths)
    hidden_states = torch.randn(len(lengths), longest, 10, 2, generator=generator) * 3
    ours = Connectors(SHAPE)(weights, Text(hidden_states, torch.tensor(lengths)))
    projection = TextProjection(Section(Path("tiny"), "transformer", SHAPE.section), weights_of_text(weights))
    for row, length in enumerate(lengths):
        padded, mask = torch.zeros(1, 16, 10, 2), torch.zeros(1, 16, dtype=torch.int64)
        padded[0, 16 - length :] = hidden_states[row, :length]
        mask[0, 16 - length :] = 1
        theirs = projection(padded, mask)
        torch.testing.assert_close(ours.video[row : row + 1], theirs.video, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(ours.audio[row : row + 1], theirs.audio, rtol=1e-3, atol=1e-4)


def weights_of_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("text_embedding_projection.", "video_embeddings_connector.", "audio_embeddings_connector.")
    return {name: value for name, value in weights.items() if name.startswith(names)}


def test_rotations_of_a_layout_with_a_name_are_computed_once(weights, monkeypatch):
    calls = []
    real = network.make_rotation
    monkeypatch.setattr(network, "make_rotation", lambda *args, **options: calls.append(1) or real(*args, **options))
    streams, trained = both_streams(), TrainingNetwork(CONFIG)
    named = AudioVideo(replace(streams.video, layout="video"), replace(streams.audio, layout="audio"))
    first = trained(weights, named)
    num_first = len(calls)
    same(trained(weights, named), first)
    assert len(calls) == num_first > 0
    trained(weights, streams)
    assert len(calls) > num_first
