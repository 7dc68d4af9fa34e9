"""The shape of an LTX-2 transformer: read from a checkpoint's metadata, and the tensors that it must have.

Knows names and numbers, no arithmetic. Source: specs of LTX-2, sections a.4 and i.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from braid.diffusion.latents import AudioVideo
from braid.errors import ModelFileError

NUM_SHOWN = 3
"""Tensors that a message names."""
RopeType = Literal["split", "interleaved"]
CrossModalRule = Literal["own_tokens_other_gate", "other_sigma", "own_tokens"]
"""What the cross-modal modulation is computed from. `own_tokens_other_gate` (since 2026-05-28): scale and shift from
the stream's own timesteps, the gate from the other stream's sigma. `other_sigma` (from 2026-03): both from the other's
sigma. `own_tokens` (2.0 at its release): both from the own timesteps."""
Shape = tuple[int, ...]

NUM_SINUSOIDS = 256
FIXED_VALUES: Mapping[str, Any] = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
}
"""Keys that name variants of the network which no released model uses; they may be absent."""
MOVED_CAPTION_PROJECTION: Mapping[str, bool] = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
"""All four say so where the text connectors, not the transformer, project the captions (2.3 and later)."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """One stream: video or audio."""

    in_channels: int
    out_channels: int
    num_heads: int
    head_dim: int
    context_dim: int
    """Width of the prompt embeddings inside the blocks."""
    max_pos: tuple[float, ...]
    """By which positions are divided, per axis: seconds, then rows and columns in pixels."""
    ff_bias: bool = True

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The whole network. A stream that the checkpoint has not is None in `streams`."""

    streams: AudioVideo[StreamConfig]
    num_layers: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_type: RopeType = "split"
    has_double_precision_rope: bool = True
    timestep_scale: float = 1000.0
    cross_gate_timestep_scale: float = 1000.0
    has_gated_attention: bool = True
    has_text_adaln: bool = True
    """The query of the text cross-attention is modulated too, and so is the prompt (2.3)."""
    has_prompt_adaln: bool = True
    """The prompt's modulation follows sigma; else it is the static table alone. Only with `has_text_adaln`."""
    has_keyframes_embedding: bool = False
    caption_channels: int | None = None
    """Width of the captions where the transformer projects them itself (2.0)."""
    cross_modal_rule: CrossModalRule = "own_tokens_other_gate"

    def __post_init__(self) -> None:
        if not any(True for _ in self.streams.present()):
            raise ModelFileError("a transformer needs a video stream, an audio stream or both; it has neither")
        for stream in self.streams.present():
            self._check_stream(stream)
        video, audio = self.streams.video, self.streams.audio
        if video is not None and audio is not None and video.num_heads != audio.num_heads:
            raise ModelFileError(
                f"num_attention_heads={video.num_heads} must equal audio_num_attention_heads={audio.num_heads}"
            )

    def _check_stream(self, stream: StreamConfig) -> None:
        if self.rope_type == "split" and stream.head_dim % 2:
            raise ModelFileError(f"attention_head_dim={stream.head_dim} must be even with rope_type='split'")
        is_text_as_wide = self.has_text_adaln or self.caption_channels is not None
        if is_text_as_wide and stream.context_dim != stream.width:
            raise ModelFileError(
                f"cross_attention_dim={stream.context_dim} must equal the stream's width {stream.width} "
                f"({stream.num_heads} heads x {stream.head_dim})"
            )

    @property
    def num_modulation_rows(self) -> int:
        """Rows of a block's `scale_shift_table`."""
        return 9 if self.has_text_adaln else 6

    @property
    def has_both_streams(self) -> bool:
        return self.streams.video is not None and self.streams.audio is not None

    @property
    def cross_inner_dim(self) -> int:
        """Width inside the attention between the streams: that of the audio stream."""
        assert self.streams.audio is not None
        return self.streams.audio.width

    @property
    def cross_max_pos(self) -> float:
        """By which times are divided in the attention between the streams."""
        return max(stream.max_pos[0] for stream in self.streams.present())

    @classmethod
    def from_metadata(
        cls, section: Mapping[str, Any], *, modalities: Collection[str] = ("video", "audio")
    ) -> TransformerConfig:
        """Read the `transformer` section of the official config.

        Args:
            section: absent keys have the official code's defaults, which are not the released models' values.
            modalities: of `modalities_of`; the section is the same for models of one stream.
        Raises:
            ModelFileError: a value of the wrong type, or one that names a network which this is not.
        """
        _check_fixed_values(section)
        return cls(
            streams=AudioVideo(
                _read_stream(section, "", 128, 4096, (20.0, 2048.0, 2048.0)) if "video" in modalities else None,
                _read_stream(section, "audio_", 64, 2048, (20.0,)) if "audio" in modalities else None,
            ),
            num_layers=_integer(section, "num_layers", 48),
            norm_eps=_number(section, "norm_eps", 1e-6),
            rope_theta=_number(section, "positional_embedding_theta", 10000.0),
            rope_type=_rope_type(section),
            has_double_precision_rope=section.get("frequencies_precision") == "float64",
            timestep_scale=_number(section, "timestep_scale_multiplier", 1000.0),
            cross_gate_timestep_scale=_number(section, "av_ca_timestep_scale_multiplier", 1.0),
            has_gated_attention=_boolean(section, "apply_gated_attention", False),
            has_text_adaln=_boolean(section, "cross_attention_adaln", False),
            has_prompt_adaln=_boolean(section, "use_prompt_adaln_single", True),
            has_keyframes_embedding=_boolean(section, "use_keyframes_abs_pos_embedding", False),
            caption_channels=_caption_channels(section),
        )


def modalities_of(names: Collection[str]) -> tuple[str, ...]:
    """Which streams a transformer with tensors of these names has: "video", "audio" or both."""
    entries = {"video": "patchify_proj.weight", "audio": "audio_patchify_proj.weight"}
    return tuple(modality for modality, name in entries.items() if name in names)


def _check_fixed_values(section: Mapping[str, Any]) -> None:
    for key, value in FIXED_VALUES.items():
        if key in section and section[key] != value:
            raise ModelFileError(f"transformer config: {key}={section[key]!r} is not supported; it must be {value!r}")


def _read_stream(
    section: Mapping[str, Any], prefix: str, head_dim: int, context_dim: int, max_pos: tuple[float, ...]
) -> StreamConfig:
    """The keys of one stream; `prefix` is "audio_" for audio."""
    return StreamConfig(
        in_channels=_integer(section, f"{prefix}in_channels", 128),
        out_channels=_integer(section, f"{prefix}out_channels", 128),
        num_heads=_integer(section, f"{prefix}num_attention_heads", 32),
        head_dim=_integer(section, f"{prefix}attention_head_dim", head_dim),
        context_dim=_integer(section, f"{prefix}cross_attention_dim", context_dim),
        max_pos=_max_pos(section, f"{prefix}positional_embedding_max_pos", max_pos),
        ff_bias=_boolean(section, f"{prefix}ff_bias", True),
    )


def _caption_channels(section: Mapping[str, Any]) -> int | None:
    """None where the connectors project the captions; in between is an error."""
    found = {key: section[key] for key in MOVED_CAPTION_PROJECTION if key in section}
    if not found:
        return _integer(section, "caption_channels", 3840)
    if found != MOVED_CAPTION_PROJECTION:
        raise ModelFileError(
            f"transformer config: {found!r} is neither the caption projection of 2.0 (none of these keys) "
            f"nor that of 2.3 ({dict(MOVED_CAPTION_PROJECTION)!r})"
        )
    return None


def _rope_type(section: Mapping[str, Any]) -> RopeType:
    value = section.get("rope_type", "interleaved")
    if value not in get_args(RopeType):
        raise ModelFileError(f"transformer config: rope_type={value!r} must be one of {get_args(RopeType)}")
    return "split" if value == "split" else "interleaved"


def _integer(section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFileError(f"transformer config: {key}={value!r} must be a positive integer")
    return value


def _number(section: Mapping[str, Any], key: str, default: float) -> float:
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ModelFileError(f"transformer config: {key}={value!r} must be a positive number")
    return float(value)


def _boolean(section: Mapping[str, Any], key: str, default: bool) -> bool:
    value = section.get(key, default)
    if not isinstance(value, bool):
        raise ModelFileError(f"transformer config: {key}={value!r} must be true or false")
    return value


def _max_pos(section: Mapping[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = section.get(key, default)
    is_list = isinstance(value, (list, tuple)) and len(value) == len(default)
    if not is_list or not all(isinstance(item, (int, float)) and item > 0 for item in value):
        raise ModelFileError(f"transformer config: {key}={value!r} must be {len(default)} positive numbers")
    return tuple(float(item) for item in value)


def expected_tensors(config: TransformerConfig) -> dict[str, Shape]:
    """The shape of every tensor that a checkpoint of this config must have, by its official name without prefix."""
    shapes: dict[str, Shape] = {}
    for prefix, own, other in _named_streams(config):
        shapes |= _stream_tensors(config, prefix, own, is_cross_modal=other is not None)
    for index in range(config.num_layers):
        shapes |= {f"transformer_blocks.{index}.{name}": shape for name, shape in _block_tensors(config).items()}
    return shapes


def check_tensors(
    config: TransformerConfig, weights: Mapping[str, Tensor], *, what: str, is_needed: Callable[[str], bool]
) -> None:
    """Those of `expected_tensors` that are needed must be there; unexpected ones are the loader's concern.

    Raises:
        ModelFileError: `what` does not fit: names the first tensors that are missing or of another shape.
    """
    wrong = []
    for name, shape in expected_tensors(config).items():
        if not is_needed(name):
            continue
        if name not in weights:
            wrong.append(f"{name} is missing")
        elif tuple(weights[name].shape) != shape:
            wrong.append(f"{name} is {tuple(weights[name].shape)} and must be {shape}")
    if wrong:
        more = f" and {len(wrong) - NUM_SHOWN} more" if len(wrong) > NUM_SHOWN else ""
        raise ModelFileError(f"{what} do not fit the config: {'; '.join(wrong[:NUM_SHOWN])}{more}")


def optional_tensors(config: TransformerConfig) -> dict[str, tuple[Shape, ...]]:
    """Tensors that a checkpoint with fp8 weights may have besides, and their allowed shapes."""
    linears = [name for name in expected_tensors(config) if name.endswith(".weight") and "_norm." not in name]
    suffixes = ("weight_scale", "input_scale")
    return {name.removesuffix("weight") + suffix: ((), (1,)) for name in linears for suffix in suffixes}


def _named_streams(config: TransformerConfig) -> list[tuple[str, StreamConfig, StreamConfig | None]]:
    """(prefix of names, stream, the other stream) of each stream that is there."""
    video, audio = config.streams.video, config.streams.audio
    pairs = (("", video, audio), ("audio_", audio, video))
    return [(prefix, own, other) for prefix, own, other in pairs if own is not None]


def _stream_tensors(
    config: TransformerConfig, prefix: str, stream: StreamConfig, *, is_cross_modal: bool
) -> dict[str, Shape]:
    """What a stream has outside the blocks."""
    width = stream.width
    shapes: dict[str, Shape] = {f"{prefix}scale_shift_table": (2, width)}
    shapes |= _linear(f"{prefix}patchify_proj", width, stream.in_channels)
    shapes |= _linear(f"{prefix}proj_out", stream.out_channels, width)
    shapes |= _adaln(f"{prefix}adaln_single", width, config.num_modulation_rows)
    if config.has_text_adaln and config.has_prompt_adaln:
        shapes |= _adaln(f"{prefix}prompt_adaln_single", width, 2)
    if config.caption_channels is not None:
        shapes |= _linear(f"{prefix}caption_projection.linear_1", width, config.caption_channels)
        shapes |= _linear(f"{prefix}caption_projection.linear_2", width, width)
    if config.has_keyframes_embedding and not prefix:
        shapes["keyframes_abs_pos_embedding"] = (1, width)
    if is_cross_modal:
        name, gate = ("audio", "v2a") if prefix else ("video", "a2v")
        shapes |= _adaln(f"av_ca_{name}_scale_shift_adaln_single", width, 4)
        shapes |= _adaln(f"av_ca_{gate}_gate_adaln_single", width, 1)
    return shapes


def _block_tensors(config: TransformerConfig) -> dict[str, Shape]:
    """What every block has."""
    shapes: dict[str, Shape] = {}
    for prefix, own, other in _named_streams(config):
        width = own.width
        shapes[f"{prefix}scale_shift_table"] = (config.num_modulation_rows, width)
        if config.has_text_adaln:
            shapes[f"{prefix}prompt_scale_shift_table"] = (2, width)
        shapes |= _attention(config, f"{prefix}attn1", width, width, width)
        shapes |= _attention(config, f"{prefix}attn2", width, own.context_dim, width)
        shapes |= _linear(f"{prefix}ff.net.0.proj", 4 * width, width, has_bias=own.ff_bias)
        shapes |= _linear(f"{prefix}ff.net.2", width, 4 * width, has_bias=own.ff_bias)
        if other is not None:
            name, attention = ("audio", "video_to_audio") if prefix else ("video", "audio_to_video")
            shapes[f"scale_shift_table_a2v_ca_{name}"] = (5, width)
            shapes |= _attention(config, f"{attention}_attn", width, other.width, config.cross_inner_dim)
    return shapes


def _linear(name: str, out_features: int, in_features: int, *, has_bias: bool = True) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (out_features, in_features)}
    return weight | {f"{name}.bias": (out_features,)} if has_bias else weight


def _adaln(name: str, width: int, num_rows: int) -> dict[str, Shape]:
    embedder = f"{name}.emb.timestep_embedder"
    return (
        _linear(f"{embedder}.linear_1", width, NUM_SINUSOIDS)
        | _linear(f"{embedder}.linear_2", width, width)
        | _linear(f"{name}.linear", num_rows * width, width)
    )


def _attention(config: TransformerConfig, name: str, query_dim: int, context_dim: int, inner: int) -> dict[str, Shape]:
    shapes = _linear(f"{name}.to_q", inner, query_dim) | _linear(f"{name}.to_out.0", query_dim, inner)
    shapes |= _linear(f"{name}.to_k", inner, context_dim) | _linear(f"{name}.to_v", inner, context_dim)
    shapes |= {f"{name}.q_norm.weight": (inner,), f"{name}.k_norm.weight": (inner,)}
    if config.has_gated_attention:
        num_heads = next(config.streams.present()).num_heads
        shapes |= _linear(f"{name}.to_gate_logits", num_heads, query_dim)
    return shapes
