"""The options that 2.5 adds, beside diffusers' transformer with the same weights: no golden case has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.key_maps import official_transformer_name
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig, expected_tensors

VIDEO = StreamConfig(6, 6, num_heads=2, head_dim=12, context_dim=24, max_pos=(20.0, 2048.0, 2048.0))
AUDIO = StreamConfig(4, 4, num_heads=2, head_dim=6, context_dim=12, max_pos=(20.0,))
CONFIG = TransformerConfig(AudioVideo(VIDEO, AUDIO), num_layers=2, cross_modal_rule="other_sigma")
"""With the rule that diffusers has."""
OPTIONS = {
    "no bias in the feed-forward of video": {"streams": AudioVideo(replace(VIDEO, ff_bias=False), AUDIO)},
    "no bias in that of audio": {"streams": AudioVideo(VIDEO, replace(AUDIO, ff_bias=False))},
    "static prompt modulation": {"has_prompt_adaln": False},
    "marked keyframes": {"has_keyframes_embedding": True},
}


def stream(config: StreamConfig, num_tokens: int, sigma: float) -> Stream:
    """A third of the tokens is kept."""
    generator = torch.Generator().manual_seed(num_tokens)
    starts = torch.rand(1, len(config.max_pos), num_tokens, 1, generator=generator) * 10
    mask = (torch.arange(num_tokens) % 3 != 0).float()[None, :, None]
    return Stream(
        latents=torch.randn(1, num_tokens, config.in_channels, generator=generator),
        sigma=torch.tensor([sigma]),
        timesteps=sigma * mask,
        positions=torch.cat((starts, starts + 0.5), dim=-1),
        context=torch.randn(1, 5, config.context_dim, generator=generator),
    )


def diffusers_model(config: TransformerConfig, weights: dict[str, Tensor]) -> Any:
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    video, audio = config.streams.video, config.streams.audio
    assert video is not None and audio is not None
    widths = {
        f"{prefix}{name}": value
        for prefix, one in (("", video), ("audio_", audio))
        for name, value in (
            ("in_channels", one.in_channels),
            ("out_channels", one.out_channels),
            ("num_attention_heads", one.num_heads),
            ("attention_head_dim", one.head_dim),
            ("cross_attention_dim", one.context_dim),
            ("ff_bias", one.ff_bias),
            ("gated_attn", True),
            ("cross_attn_mod", True),
        )
    }
    model = LTX2VideoTransformer3DModel(
        **widths,
        num_layers=config.num_layers,
        rope_type="split",
        use_prompt_embeddings=False,
        perturbed_attn=True,
        use_prompt_adaln_single=config.has_prompt_adaln,
        use_keyframes_abs_pos_embedding=config.has_keyframes_embedding,
    ).eval()
    model.load_state_dict({name: weights[official_transformer_name(name)] for name in model.state_dict()})
    return model


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_an_option_of_2_5_is_what_diffusers_computes(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        for name, shape in expected_tensors(config).items()
    }
    video, audio = stream(VIDEO, 21, 0.8), stream(AUDIO, 5, 0.6)
    keyframes = (torch.arange(21) > 15).float()[None, :, None] if config.has_keyframes_embedding else None
    with torch.inference_mode():
        theirs = diffusers_model(config, weights)(
            hidden_states=video.latents,
            audio_hidden_states=audio.latents,
            encoder_hidden_states=video.context,
            audio_encoder_hidden_states=audio.context,
            timestep=video.timesteps.flatten(1) * 1000,
            audio_timestep=audio.timesteps.flatten(1) * 1000,
            sigma=video.sigma * 1000,
            audio_sigma=audio.sigma * 1000,
            video_coords=video.positions,
            audio_coords=audio.positions,
            use_cross_timestep=True,
            video_keyframes_mask=keyframes,
            return_dict=False,
        )
    ours = LTX2Transformer(config, weights).forward(AudioVideo(replace(video, keyframes_mask=keyframes), audio))
    plain = LTX2Transformer(config, weights).forward(AudioVideo(video, audio))
    assert ours.video is not None and ours.audio is not None and plain.video is not None
    assert torch.allclose(ours.video, theirs[0], atol=2e-5)
    assert torch.allclose(ours.audio, theirs[1], atol=2e-5)
    assert torch.equal(ours.video, plain.video) == (keyframes is None)
