"""The transformer section of a checkpoint's config: versions, defaults, and values that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from braid.diffusion.models.ltx2.transformer_config import (
    FIXED_VALUES,
    TransformerConfig,
    expected_tensors,
    modalities_of,
    optional_tensors,
)
from braid.errors import ModelFileError

V23: dict[str, Any] = {
    **FIXED_VALUES,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}


def test_absent_keys_have_the_official_defaults() -> None:
    config = TransformerConfig.from_metadata({})
    assert config.rope_type == "interleaved"
    assert not config.has_double_precision_rope
    assert config.cross_gate_timestep_scale == 1.0
    assert config.caption_channels == 3840
    assert config.num_modulation_rows == 6


def test_a_2_3_section_is_the_released_network() -> None:
    config = TransformerConfig.from_metadata(V23)
    shapes = expected_tensors(config)
    assert shapes["adaln_single.linear.weight"] == (9 * 4096, 4096)
    assert shapes["transformer_blocks.47.audio_to_video_attn.to_q.weight"] == (2048, 4096)
    assert shapes["transformer_blocks.0.attn2.to_gate_logits.weight"] == (32, 4096)
    assert not any("caption_projection" in name for name in shapes)
    total = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert 18e9 < total < 23e9


@pytest.mark.parametrize("modalities", [("video",), ("audio",), ("video", "audio")])
def test_streams_are_recognised_by_their_tensors(modalities: tuple[str, ...]) -> None:
    shapes = expected_tensors(TransformerConfig.from_metadata(V23, modalities=modalities))
    assert modalities_of(shapes) == modalities
    assert any("av_ca_" in name for name in shapes) == (len(modalities) == 2)


def test_scales_may_stand_beside_linear_weights_only() -> None:
    optional = optional_tensors(TransformerConfig.from_metadata(V23))
    assert optional["transformer_blocks.0.attn1.to_q.weight_scale"] == ((), (1,))
    assert "transformer_blocks.0.attn1.q_norm.weight_scale" not in optional


@pytest.mark.parametrize("key", sorted(FIXED_VALUES))
def test_a_key_of_fixed_value_with_another_is_named(key: str) -> None:
    with pytest.raises(ModelFileError, match=f"{key}='other' is not supported; it must be"):
        TransformerConfig.from_metadata(V23 | {key: "other"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 must be a positive integer"),
        ({"num_layers": "8"}, "num_layers='8' must be a positive integer"),
        ({"norm_eps": True}, "norm_eps=True must be a positive number"),
        ({"apply_gated_attention": 1}, "apply_gated_attention=1 must be true or false"),
        ({"rope_type": "spiral"}, "rope_type='spiral' must be one of"),
        ({"positional_embedding_max_pos": [20]}, "must be 3 positive numbers"),
        ({"caption_proj_input_norm": True}, "neither the caption projection of 2.0"),
        ({"cross_attention_dim": 2048}, "cross_attention_dim=2048 must equal the stream's width 4096"),
        ({"audio_num_attention_heads": 16}, "must equal"),
    ],
)
def test_a_value_that_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        TransformerConfig.from_metadata(V23 | changes)


def test_a_transformer_without_streams_is_refused() -> None:
    with pytest.raises(ModelFileError, match="it has neither"):
        TransformerConfig.from_metadata(V23, modalities=())
