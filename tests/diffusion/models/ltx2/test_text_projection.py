"""The text projection: padding leaves no trace, prompts are checked, pieces are the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from braid.diffusion.models.ltx2.layout import text_tensors
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.text_projection import TextProjection, is_version_2
from braid.diffusion.operations import PromptEmbeds
from braid.errors import InvalidRequest, ModelFileError, UnsupportedModel
from braid.tests.diffusion.models.ltx2.toy_autoencoders import TEXT, connector_weights, section, text_weights

HIDDEN_SIZE, NUM_LAYERS, NUM_TOKENS = 6, 3, 12
VERSION_1 = {key: value for key, value in TEXT.items() if not key.startswith("caption")}


def make_projection(version: int = 2) -> TextProjection:
    if version == 2:
        return TextProjection(section("transformer", TEXT), text_weights(HIDDEN_SIZE, NUM_LAYERS))
    generator = torch.Generator().manual_seed(0)
    weights = {"aggregate_embed.weight": torch.randn(16, HIDDEN_SIZE * NUM_LAYERS, generator=generator)}
    for stream in ("video", "audio"):
        for key, tensor in connector_weights(16, 2, num_registers=4).items():
            weights[f"{stream}_embeddings_connector.{key}"] = tensor
    return TextProjection(section("transformer", VERSION_1), weights)


def make_prompt(num_text: int, *, is_left: bool, padding: float = 0.0) -> tuple[Tensor, Tensor]:
    text = torch.randn(1, num_text, HIDDEN_SIZE, NUM_LAYERS, generator=torch.Generator().manual_seed(num_text))
    empty = torch.full((1, NUM_TOKENS - num_text, HIDDEN_SIZE, NUM_LAYERS), padding)
    mask = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
    mask[:, NUM_TOKENS - num_text :] = 1
    if is_left:
        return torch.cat([empty, text], dim=1), mask
    return torch.cat([text, empty], dim=1), mask.flip(1)


def assert_same(first: PromptEmbeds, second: PromptEmbeds) -> None:
    assert first.video is not None and second.video is not None and first.audio is not None
    assert second.audio is not None
    torch.testing.assert_close(first.video, second.video, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.audio, second.audio, rtol=0, atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_neither_the_side_nor_the_content_of_padding_matters(version: int) -> None:
    projection = make_projection(version)
    left = projection(*make_prompt(5, is_left=True))
    assert_same(left, projection(*make_prompt(5, is_left=False)))
    assert_same(left, projection(*make_prompt(5, is_left=True, padding=100.0)))
    assert not torch.equal(left.video, projection(*make_prompt(6, is_left=True)).video)  # type: ignore[arg-type]


def test_the_words_and_their_order_matter() -> None:
    projection = make_projection()
    hidden_states, mask = make_prompt(5, is_left=True)
    swapped = hidden_states.clone()
    swapped[:, [-1, -2]] = hidden_states[:, [-2, -1]]
    first, second = projection(hidden_states, mask).video, projection(swapped, mask).video
    assert first is not None and second is not None
    assert (first - second).abs().max() > 1e-3
    peak = projection.predicted_bytes((1, NUM_TOKENS, HIDDEN_SIZE, NUM_LAYERS), torch.float32)
    assert peak > hidden_states.nbytes


def test_prompts_that_take_turns_get_the_bits_they_get_alone() -> None:
    projection = make_projection()
    first, second = projection.pieces(*make_prompt(5, is_left=True)), projection.pieces(*make_prompt(9, is_left=True))
    for _ in range(4):
        next(first)
        next(second)
    alone = [projection(*make_prompt(count, is_left=True)) for count in (5, 9)]
    for pieces, expected in zip((first, second), alone, strict=True):
        embeds = finish(pieces)
        assert embeds.video is not None and expected.video is not None
        assert torch.equal(embeds.video, expected.video)


def test_hidden_states_of_another_language_model_are_refused_with_both_widths() -> None:
    hidden_states = torch.zeros(1, NUM_TOKENS, HIDDEN_SIZE, NUM_LAYERS + 1)
    with pytest.raises(InvalidRequest, match=r"needs 18 values per token.* 6 x 4"):
        make_projection()(hidden_states, torch.ones(1, NUM_TOKENS))


def test_a_prompt_must_be_padded_to_a_multiple_of_the_registers() -> None:
    with pytest.raises(InvalidRequest, match="10 tokens must be padded to a multiple of 4"):
        make_projection()(torch.zeros(1, 10, HIDDEN_SIZE, NUM_LAYERS), torch.ones(1, 10))


def test_a_config_between_the_versions_is_refused() -> None:
    assert is_version_2(section("transformer", TEXT))
    assert not is_version_2(section("transformer", VERSION_1))
    with pytest.raises(UnsupportedModel, match="caption_proj_before_connector"):
        is_version_2(section("transformer", {**TEXT, "caption_proj_input_norm": True}))


def test_a_checkpoint_of_video_alone_has_no_audio_context() -> None:
    weights = {key: tensor for key, tensor in text_weights(HIDDEN_SIZE, NUM_LAYERS).items() if "audio" not in key}
    embeds = TextProjection(section("transformer", TEXT), weights)(*make_prompt(5, is_left=True))
    assert embeds.audio is None and embeds.video is not None


def test_missing_tensors_are_named_as_in_the_file() -> None:
    weights = text_weights(HIDDEN_SIZE, NUM_LAYERS)
    del weights["text_embedding_projection.audio_aggregate_embed.bias"]
    with pytest.raises(ModelFileError, match=r"audio_aggregate_embed\.bias"):
        TextProjection(section("transformer", TEXT), weights)
    weights = text_weights(HIDDEN_SIZE, NUM_LAYERS)
    del weights["model.diffusion_model.video_embeddings_connector.transformer_1d_blocks.1.attn1.q_norm.weight"]
    with pytest.raises(ModelFileError, match=r"video connector.*missing transformer_1d_blocks\.1\.attn1\.q_norm"):
        TextProjection(section("transformer", TEXT), weights)


@pytest.mark.parametrize(
    ("keys", "gated"),
    [
        ({}, set()),
        ({"connector_apply_gated_attention": True}, {"video", "audio"}),
        ({"connector_apply_gated_attention": True, "audio_connector_apply_gated_attention": False}, {"video"}),
        ({"audio_connector_apply_gated_attention": True}, {"audio"}),
    ],
)
def test_the_gates_of_each_connector_are_what_the_config_says_of_it(keys: dict[str, bool], gated: set[str]) -> None:
    config = {key: value for key, value in TEXT.items() if key != "connector_apply_gated_attention"} | keys
    weights = {
        key: tensor
        for key, tensor in text_weights(HIDDEN_SIZE, NUM_LAYERS).items()
        if "to_gate_logits" not in key or any(f"{stream}_embeddings" in key for stream in gated)
    }
    TextProjection(section("transformer", config), weights)  # which takes no other tensors
    expected = text_tensors(section("transformer", config), ("video", "audio"))
    assert expected.keys() == {key.removeprefix("model.diffusion_model.") for key in weights}
