"""The transformer: pieces and the whole, samples alone and together, its options, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.transformer import ISOLATED, LTX2Transformer, Perturbation, Stream, denoised
from braid.diffusion.models.ltx2.transformer_config import (
    CrossModalRule,
    StreamConfig,
    TransformerConfig,
    expected_tensors,
)
from braid.errors import InvalidRequest, ModelFileError

VIDEO = StreamConfig(6, 5, num_heads=2, head_dim=8, context_dim=16, max_pos=(20.0, 2048.0, 2048.0))
AUDIO = StreamConfig(4, 3, num_heads=2, head_dim=6, context_dim=12, max_pos=(20.0,))
CONFIG = TransformerConfig(AudioVideo(VIDEO, AUDIO), num_layers=2)
STG = Perturbation(video_self_attention=(0,), audio_self_attention=(1,))


def random_weights(config: TransformerConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)
        for name, shape in expected_tensors(config).items()
    }


def random_stream(config: StreamConfig, num_samples: int, num_tokens: int, num_text_tokens: int = 5) -> Stream:
    """Half of the tokens are kept, and each sample has a sigma of its own."""
    generator = torch.Generator().manual_seed(num_tokens)
    sigma = torch.linspace(0.9, 0.3, num_samples)
    mask = (torch.arange(num_tokens) % 2).float()[None, :, None]
    starts = torch.rand(num_samples, len(config.max_pos), num_tokens, 1, generator=generator) * 10
    return Stream(
        latents=torch.randn(num_samples, num_tokens, config.in_channels, generator=generator),
        sigma=sigma,
        timesteps=sigma[:, None, None] * mask,
        positions=torch.cat((starts, starts + 0.5), dim=-1),
        context=torch.randn(num_samples, num_text_tokens, config.context_dim, generator=generator),
    )


def random_streams(num_samples: int = 1, video_tokens: int = 21, audio_tokens: int = 3) -> AudioVideo[Stream]:
    return AudioVideo(random_stream(VIDEO, num_samples, video_tokens), random_stream(AUDIO, num_samples, audio_tokens))


def with_video(streams: AudioVideo[Stream], **changes: object) -> AudioVideo[Stream]:
    assert streams.video is not None
    return replace(streams, video=replace(streams.video, **changes))  # type: ignore[arg-type]


def assert_equal(ours: AudioVideo[Tensor], expected: AudioVideo[Tensor]) -> None:
    for one, other in zip(ours.present(), expected.present(), strict=True):
        assert torch.equal(one, other)


def is_close(ours: AudioVideo[Tensor], expected: AudioVideo[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.present(), expected.present(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3, 17, 63, 257])
def test_any_grouping_of_pieces_gives_the_bits_of_the_whole(num_tokens: int, dtype: torch.dtype) -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG, dtype), max_piece_macs=20_000)
    streams = random_streams(video_tokens=num_tokens)
    whole = transformer.forward(streams)
    for max_units in (0, 7_000, 100_000, 10**9):
        forward_pass = transformer.begin(streams)
        while forward_pass.advance(max_units):
            pass
        assert_equal(forward_pass.result(), whole)


def test_two_forwards_that_take_turns_do_not_change_each_other() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG), max_piece_macs=20_000)
    problems = [random_streams(video_tokens=num_tokens) for num_tokens in (33, 40)]
    alone = [transformer.forward(streams) for streams in problems]
    passes = [transformer.begin(streams) for streams in problems]
    while [forward_pass for forward_pass in passes if forward_pass.advance()]:
        pass
    for forward_pass, expected in zip(passes, alone, strict=True):
        assert_equal(forward_pass.result(), expected)


def test_pieces_stay_near_their_limit_and_say_what_they_did() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG), max_piece_macs=100_000)
    forward_pass = transformer.begin(random_streams(video_tokens=257))
    done = []
    while (expected := forward_pass.next_units) is not None:
        done.append(forward_pass.advance())
        assert done[-1] == expected
    assert len(done) > 20
    assert max(done) < 250_000  # 16 rows of feed-forward or attention are a little more than the limit


def test_cut_and_uncut_forwards_agree_to_rounding() -> None:
    weights, streams = random_weights(CONFIG), random_streams(video_tokens=257)
    cut = LTX2Transformer(CONFIG, weights, max_piece_macs=20_000).forward(streams)
    assert is_close(cut, LTX2Transformer(CONFIG, weights, max_piece_macs=10**12).forward(streams))


def test_a_sample_has_the_same_bits_alone_and_in_a_batch() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    streams, perturbations = random_streams(num_samples=4), [Perturbation(), STG, ISOLATED, Perturbation()]
    batch = transformer.forward(streams, perturbations)
    for index, perturbation in enumerate(perturbations):
        alone = transformer.forward(streams.map(lambda stream, at=index: stream.sample(at)), perturbation)  # type: ignore[misc]
        assert_equal(alone, batch.map(lambda tensor, at=index: tensor[at : at + 1]))  # type: ignore[misc]


def test_a_batch_computed_together_agrees_with_its_samples() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG), max_piece_macs=50_000)
    streams, perturbations = random_streams(num_samples=4), [Perturbation(), STG, ISOLATED, Perturbation()]
    together = transformer.forward(streams, perturbations, together=True)
    assert is_close(together, transformer.forward(streams, perturbations))


@pytest.mark.parametrize(
    "perturbation",
    [
        Perturbation(video_self_attention=(1,)),
        Perturbation(audio_self_attention=(0,)),
        Perturbation(audio_to_video="all"),
        Perturbation(video_to_audio=(0, 1)),
    ],
)
def test_each_perturbation_changes_the_result(perturbation: Perturbation) -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    assert not is_close(transformer.forward(random_streams(), perturbation), transformer.forward(random_streams()))


def test_isolated_streams_do_not_depend_on_each_other() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    streams = random_streams()
    both = transformer.forward(streams, ISOLATED)
    assert_equal(AudioVideo(both.video), transformer.forward(AudioVideo(streams.video), ISOLATED))
    assert_equal(AudioVideo(None, both.audio), transformer.forward(AudioVideo(None, streams.audio), ISOLATED))


def test_a_disabled_stream_is_frozen_and_still_seen() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    streams = random_streams()
    assert streams.audio is not None
    frozen = transformer.forward(replace(streams, audio=replace(streams.audio, enabled=False)))
    moving, alone = transformer.forward(streams), transformer.forward(AudioVideo(streams.video))
    assert not is_close(AudioVideo(frozen.video), AudioVideo(moving.video))
    assert not is_close(AudioVideo(frozen.video), alone)


def test_a_text_mask_hides_tokens() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    streams = random_streams()
    assert streams.video is not None
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    masked = transformer.forward(with_video(streams, context_mask=mask))
    cropped = transformer.forward(with_video(streams, context=streams.video.context[:, 2:]))
    assert is_close(masked, cropped)


def test_an_attention_mask_of_ones_changes_nothing_and_zeros_hide() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    streams, ones = random_streams(), torch.ones(1, 21, 21)
    plain = transformer.forward(streams)
    assert is_close(transformer.forward(with_video(streams, attention_mask=ones)), plain)
    half = ones.clone()
    half[..., :10] = 0.25
    assert not is_close(transformer.forward(with_video(streams, attention_mask=half)), plain)


def test_rules_of_cross_modal_adaln_agree_only_while_all_sigmas_are_one() -> None:
    weights, streams = random_weights(CONFIG), random_streams()
    rules: Sequence[CrossModalRule] = ("own_tokens_other_gate", "other_sigma", "own_tokens")
    models = [LTX2Transformer(replace(CONFIG, cross_modal_rule=rule), weights) for rule in rules]
    uniform = streams.map(lambda stream: replace(stream, timesteps=torch.full_like(stream.timesteps, 0.9)))
    today, other, own = (model.forward(uniform) for model in models)
    assert is_close(today, other)
    assert is_close(today, own)
    today, other, own = (model.forward(streams) for model in models)
    assert not is_close(today, other)
    assert not is_close(today, own)
    assert not is_close(other, own)


def test_options_of_2_5_have_their_tensors_and_run() -> None:
    config = replace(
        CONFIG,
        streams=AudioVideo(replace(VIDEO, ff_bias=False), AUDIO),
        has_prompt_adaln=False,
        has_keyframes_embedding=True,
    )
    shapes = expected_tensors(config)
    assert "transformer_blocks.0.ff.net.2.bias" not in shapes
    assert "transformer_blocks.0.audio_ff.net.2.bias" in shapes
    assert "prompt_adaln_single.linear.weight" not in shapes
    assert shapes["keyframes_abs_pos_embedding"] == (1, 16)
    transformer, streams = LTX2Transformer(config, random_weights(config)), random_streams()
    mask = torch.zeros(1, 21, 1)
    plain = transformer.forward(streams)
    assert_equal(transformer.forward(with_video(streams, keyframes_mask=mask)), plain)
    mask[:, 3] = 1
    assert not is_close(transformer.forward(with_video(streams, keyframes_mask=mask)), plain)


def test_an_audio_only_model_runs() -> None:
    config = replace(CONFIG, streams=AudioVideo(None, AUDIO))
    result = LTX2Transformer(config, random_weights(config)).forward(AudioVideo(None, random_stream(AUDIO, 2, 9)))
    assert result.video is None
    assert result.audio is not None
    assert result.audio.shape == (2, 9, 3)


def test_gradients_reach_the_weights_and_weights_are_not_written_to() -> None:
    weights = {name: tensor.requires_grad_() for name, tensor in random_weights(CONFIG).items()}
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    result = LTX2Transformer(CONFIG, weights).forward(random_streams(num_samples=2), together=True)
    sum(velocity.square().sum() for velocity in result.present()).backward()  # type: ignore[union-attr]
    assert [name for name, tensor in weights.items() if tensor.grad is None or not tensor.grad.isfinite().all()] == []
    assert all(torch.equal(tensor.detach(), before[name]) for name, tensor in weights.items())


def test_fp8_weights_of_the_blocks_are_upcast() -> None:
    weights = random_weights(CONFIG)
    blocks = {k: v.to(torch.float8_e4m3fn) for k, v in weights.items() if ".attn1.to_q." in k or ".ff.net." in k}
    rounded = {name: tensor.float() for name, tensor in blocks.items()}
    ours = LTX2Transformer(CONFIG, weights | blocks).forward(random_streams())
    assert_equal(ours, LTX2Transformer(CONFIG, weights | rounded).forward(random_streams()))


def test_beginning_computes_nothing_and_closing_ends_it() -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    forward_pass = transformer.begin(random_streams())
    forward_pass.advance()
    forward_pass.close()
    assert forward_pass.next_units is None
    assert forward_pass.advance() == 0
    with pytest.raises(AssertionError, match="pieces of the forward are left"):
        forward_pass.result()


def test_a_kept_token_keeps_its_value() -> None:
    latents, velocity = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    estimate = denoised(latents, torch.tensor([[[0.0], [0.5]]]), velocity)
    assert torch.equal(estimate[:, 0], latents[:, 0])
    assert torch.equal(estimate[:, 1], latents[:, 1] - 0.5 * velocity[:, 1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("latents", torch.zeros(1, 21, 7), r"video latents must be \(1, 21, 6\), not \(1, 21, 7\)"),
        ("latents", torch.zeros(1, 0, 6), r"none of them 0"),
        ("sigma", torch.zeros(2), r"video sigma must be \(1,\), not \(2,\)"),
        ("timesteps", torch.zeros(1, 20), r"video timesteps must be \(1, 21\) or \(1, 21, 1\), not \(1, 20\)"),
        ("positions", torch.zeros(1, 1, 21, 2), r"video positions must be \(1, 3, 21, 2\), not \(1, 1, 21, 2\)"),
        ("context", torch.zeros(1, 5, 12), r"video context must be \(1, 5, 16\), not \(1, 5, 12\)"),
        ("context_mask", torch.zeros(1, 4), "video context_mask must be"),
        ("attention_mask", torch.zeros(1, 21, 20), "video attention_mask must be"),
    ],
)
def test_a_wrong_shape_is_named(field: str, value: Tensor, message: str) -> None:
    transformer = LTX2Transformer(CONFIG, random_weights(CONFIG))
    with pytest.raises(InvalidRequest, match=message):
        transformer.begin(with_video(random_streams(), **{field: value}))


def test_streams_that_do_not_fit_the_model_are_refused() -> None:
    config = replace(CONFIG, streams=AudioVideo(VIDEO))
    transformer, streams = LTX2Transformer(config, random_weights(config)), random_streams()
    with pytest.raises(InvalidRequest, match="no audio stream"):
        transformer.begin(streams)
    with pytest.raises(InvalidRequest, match="no stream"):
        transformer.begin(AudioVideo())
    with pytest.raises(InvalidRequest, match="2 perturbations for a batch of 1"):
        transformer.begin(AudioVideo(streams.video), [STG, STG])
    both = LTX2Transformer(CONFIG, random_weights(CONFIG))
    with pytest.raises(InvalidRequest, match="one batch size"):
        both.begin(AudioVideo(random_stream(VIDEO, 1, 4), random_stream(AUDIO, 2, 4)))


def test_missing_and_misshapen_tensors_are_named() -> None:
    weights = random_weights(CONFIG)
    del weights["transformer_blocks.1.attn2.to_k.weight"]
    weights["proj_out.bias"] = torch.zeros(9)
    with pytest.raises(
        ModelFileError, match=r"proj_out\.bias is \(9,\) and must be \(5,\).*attn2\.to_k\.weight is missing"
    ):
        LTX2Transformer(CONFIG, weights)
