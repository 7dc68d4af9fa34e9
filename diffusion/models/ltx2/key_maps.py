"""Names of tensors in a diffusers folder and in the official file.

Most differ in whole segments of the dotted name; the ladders of the video autoencoder are also counted differently: the
official list has residual blocks and resamplers in turn, diffusers puts a resampler with the residual blocks beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

TRANSFORMER_SEGMENTS = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}
"""diffusers to official."""

TEXT_SEGMENTS = {
    "video_connector": "video_embeddings_connector",
    "audio_connector": "audio_embeddings_connector",
    "text_proj_in": "text_embedding_projection.aggregate_embed",
    "video_text_proj_in": "text_embedding_projection.video_aggregate_embed",
    "audio_text_proj_in": "text_embedding_projection.audio_aggregate_embed",
    "transformer_blocks": "transformer_1d_blocks",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}

VOCODER_SEGMENTS = {
    "conv_in": "conv_pre",
    "conv_out": "conv_post",
    "upsamplers": "ups",
    "resnets": "resblocks",
    "act_out": "act_post",
}

STATISTICS = {
    "latents_mean": "per_channel_statistics.mean-of-means",
    "latents_std": "per_channel_statistics.std-of-means",
}

_VIDEO_LEAVES = (
    ("decoder.time_embedder.", "decoder.last_time_embedder."),
    ("decoder.scale_shift_table", "decoder.last_scale_shift_table"),
)
_RUNG = re.compile(
    r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(resnets|time_embedder|downsamplers\.0|upsamplers\.0)\."
)
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|time_embedder)\.")


def _by_segment(name: str, segments: Mapping[str, str]) -> str:
    return ".".join(segments.get(segment, segment) for segment in name.split("."))


def official_transformer_name(name: str) -> str:
    """A tensor of diffusers' `transformer`, without the prefix of the official file."""
    return _by_segment(name, TRANSFORMER_SEGMENTS)


def official_text_name(name: str) -> str:
    """A tensor of diffusers' `connectors`, with the names of the official modules."""
    return _by_segment(name, TEXT_SEGMENTS)


def official_audio_name(name: str) -> str:
    """A tensor of diffusers' `audio_vae`, without prefix."""
    return STATISTICS.get(name, name)


def official_vocoder_name(name: str) -> str:
    """A tensor of diffusers' `vocoder`, without the first `vocoder.`."""
    return _by_segment(name, VOCODER_SEGMENTS).replace(".downsample.filter", ".downsample.lowpass.filter")


def official_video_name(name: str, *, num_down_blocks: int) -> str:
    """A tensor of diffusers' `vae`, without prefix.

    Args:
        num_down_blocks: rungs of the encoder with a resampler; the middle of the encoder comes after them.
    """
    if name in STATISTICS:
        return STATISTICS[name]
    for theirs, official in _VIDEO_LEAVES:
        if name.startswith(theirs):
            return official + name[len(theirs) :]
    if match := _MIDDLE.match(name):
        half, kind = match[1], match[2]
        ladder = f"encoder.down_blocks.{2 * num_down_blocks}" if half == "encoder" else "decoder.up_blocks.0"
        return f"{ladder}.{_official_kind(kind)}{name[match.end() :]}"
    if match := _RUNG.match(name):
        ladder, index, kind = match[1], int(match[2]), match[3]
        # The encoder resamples after its residual blocks, the decoder before them and after its middle.
        is_resampler = kind.endswith("samplers.0")
        rung = 2 * index + int(is_resampler) if ladder.startswith("encoder") else 2 * index + 2 - int(is_resampler)
        return f"{ladder}.{rung}.{_official_kind(kind)}{name[match.end() :]}"
    return name


def _official_kind(kind: str) -> str:
    return {"resnets": "res_blocks.", "time_embedder": "time_embedder."}.get(kind, "")
