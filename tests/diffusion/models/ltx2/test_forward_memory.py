"""Predicted memory of a forward: without data, growing as it should, and at least what is surely needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.forward_memory import StreamShape, forward_bytes
from braid.diffusion.models.ltx2.transformer import LTX2Transformer
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.tests.diffusion.models.ltx2.test_transformer import (
    AUDIO,
    CONFIG,
    VIDEO,
    random_stream,
    random_weights,
)

BIG = replace(VIDEO, num_heads=8, head_dim=64, context_dim=512)
SMALL = replace(AUDIO, num_heads=8, head_dim=32, context_dim=256)


def predicted(num_tokens: int, config: TransformerConfig = CONFIG, device: str = "cpu", **options: bool) -> int:
    shapes = AudioVideo(StreamShape(num_tokens, 5), StreamShape(3, 5))
    return forward_bytes(config, shapes, torch.bfloat16, device_type=device, **options)


def test_the_number_of_blocks_does_not_matter_and_that_of_tokens_does() -> None:
    assert predicted(100) == predicted(100, replace(CONFIG, num_layers=40))
    assert 1.8 * predicted(5000) < predicted(10000) < 2.2 * predicted(5000)


def test_a_prediction_holds_the_hidden_states_of_the_widest_moment() -> None:
    # Hidden states, their queries, keys and values, and those being attended.
    assert predicted(4000) > 5 * 4000 * VIDEO.width * 2


def test_weights_in_8_bits_are_upcast_one_at_a_time() -> None:
    config = TransformerConfig(AudioVideo(BIG, SMALL), num_layers=2)
    plain, cast = predicted(8, config), predicted(8, config, is_fp8_cast=True)
    widest = 4 * BIG.width**2 * 2
    assert plain < cast <= plain + 2 * widest


def test_a_mask_over_all_pairs_of_tokens_counts() -> None:
    masked = AudioVideo(StreamShape(2000, 5, has_attention_mask=True), StreamShape(3, 5))
    num_bytes = forward_bytes(CONFIG, masked, torch.bfloat16, device_type="cpu")
    assert num_bytes > predicted(2000) + 4 * 2000**2


def test_libraries_on_a_gpu_keep_some_for_themselves() -> None:
    assert predicted(1, device="cuda") > 32 << 20


def test_many_small_pieces_are_predicted_by_a_few_that_take_about_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak() -> int:
        forward_bytes.cache_clear()
        shapes = AudioVideo(StreamShape(400, 5), None)
        return forward_bytes(CONFIG, shapes, torch.bfloat16, device_type="cpu", max_piece_macs=20_000)

    few = peak()
    monkeypatch.setattr("braid.diffusion.models.ltx2.forward_memory.MAX_PIECES", 1 << 40)
    many = peak()
    forward_bytes.cache_clear()
    assert few != many
    assert 0.97 * many < few < 1.1 * many


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [100, 1500, 9000])
def test_on_a_gpu_a_forward_stays_below_its_prediction(num_tokens: int) -> None:
    config = TransformerConfig(AudioVideo(BIG, SMALL), num_layers=3)
    weights = {name: tensor.cuda() for name, tensor in random_weights(config, torch.bfloat16).items()}
    transformer = LTX2Transformer(config, weights)
    streams = AudioVideo(random_stream(BIG, 1, num_tokens), random_stream(SMALL, 1, 9))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        transformer.forward(streams)
    peak = torch.cuda.max_memory_allocated() - before
    shapes = AudioVideo(StreamShape(num_tokens, 5), StreamShape(9, 5))
    assert peak <= forward_bytes(config, shapes, torch.bfloat16, device_type="cuda")
