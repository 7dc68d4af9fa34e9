"""From the language model's hidden states to what the transformer is conditioned on.

A feature extractor normalises the hidden states of all layers and projects them; a connector for each stream, a small
transformer, makes the context of them. LTX-2.0 has one projection for both streams (version 1), LTX-2.3 one for each
(version 2).

Source: specs/ltx2.md, sections a.2 and a.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.layout import TEXT_STREAMS, is_connector_gated
from braid.diffusion.models.ltx2.modules import KeyNames, Pieces, build_module, finish, with_prefix, without_memory
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.operations import PromptEmbeds
from braid.errors import InvalidRequest, ModelFileError, UnsupportedModel

EPS = 1e-6
RANGE = 8.0
"""Version 1 scales what lies between a layer's smallest and largest value to a range of this length."""
VERSION_2_FLAGS: Mapping[str, bool] = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
_PREFIXES = ("model.diffusion_model.", "text_embedding_projection.")
_NAMES = KeyNames((("transformer_1d_blocks", "transformer_blocks"), ("q_norm", "norm_q"), ("k_norm", "norm_k")))


def is_version_2(config: Section) -> bool:
    """Whether each stream has its own projection.

    Raises:
        UnsupportedModel: the config describes neither version.
    """
    given = {key: config.value(key) for key in VERSION_2_FLAGS if key in config}
    if not given:
        return False
    if given != VERSION_2_FLAGS:
        right = ", ".join(f"{key}={value}" for key, value in VERSION_2_FLAGS.items())
        raise UnsupportedModel(
            f"{config.path}: config {config.name} has {given}; the projection of text must be described by none of "
            f"these keys or by {right}"
        )
    return True


@dataclass(frozen=True)
class ConnectorConfig:
    """The shape of one stream's connector."""

    num_heads: int
    head_dim: int
    num_layers: int
    num_registers: int | None
    is_gated: bool
    max_position: int
    theta: float
    rope_type: str
    has_float64_frequencies: bool


def read_connector_config(config: Section, stream: str, weights: Mapping[str, Tensor]) -> ConnectorConfig:
    """From the section `transformer`; what it does not say of audio is as it is for video.

    Args:
        weights: the connector's own, which tell how many registers there are.
    Raises:
        ModelFileError: a value is impossible.
    """

    def integer(key: str, default: int) -> int:
        general = config.integer(f"connector_{key}", default)
        return config.integer(f"audio_connector_{key}", general) if stream == "audio" else general

    registers = weights.get("learnable_registers")
    # The defaults are those of the official code, which differ from what released files say.
    max_positions = config.integers("connector_positional_embedding_max_pos", (1,))
    return ConnectorConfig(
        num_heads=integer("num_attention_heads", 30),
        head_dim=integer("attention_head_dim", 128),
        num_layers=integer("num_layers", 2),
        num_registers=None if registers is None else registers.shape[0],
        is_gated=is_connector_gated(config, TEXT_STREAMS[stream]),
        max_position=max_positions[0],
        theta=config.number("positional_embedding_theta", 10000.0),
        rope_type=config.choice("rope_type", ("interleaved", "split"), "interleaved"),
        has_float64_frequencies=config.choice("frequencies_precision", ("float32", "float64"), "float32") == "float64",
    )


def _make_connector(config: ConnectorConfig) -> Any:
    from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d

    return LTX2ConnectorTransformer1d(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        num_layers=config.num_layers,
        num_learnable_registers=config.num_registers,
        rope_base_seq_len=config.max_position,
        rope_theta=config.theta,
        rope_double_precision=config.has_float64_frequencies,
        eps=EPS,
        rope_type=config.rope_type,
        gated_attention=config.is_gated,
    )


class TextProjection:
    """Feature extractor and connectors. One prompt at a time gives the bits that do not depend on others."""

    def __init__(self, config: Section, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: the section `transformer`.
            weights: `aggregate_embed.*` or `{video,audio}_aggregate_embed.*`, and
                `{video,audio}_embeddings_connector.*`, with or without the prefixes of the official file; others are
                left alone.
        Raises:
            ModelFileError: config and tensors are not those of a text projection.
        """
        for prefix in _PREFIXES:
            weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
        self.is_version_2 = is_version_2(config)
        self._projections: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._configs: dict[str, ConnectorConfig] = {}
        self._connectors: dict[str, Any] = {}
        for stream in TEXT_STREAMS:
            own = with_prefix(weights, f"{stream}_embeddings_connector.")
            if not own:
                continue  # a model of the other stream alone
            self._projections[stream] = self._projection(config, weights, stream)
            self._configs[stream] = read_connector_config(config, stream, own)
            make = partial(_make_connector, self._configs[stream])
            self._connectors[stream] = build_module(f"the {stream} connector", make, own, _NAMES)
        if not self._connectors:
            raise ModelFileError(f"{config.path}: there are no tensors of a text connector")

    def _projection(self, config: Section, weights: Mapping[str, Tensor], stream: str) -> tuple[Tensor, Tensor | None]:
        name = f"{stream}_aggregate_embed" if self.is_version_2 else "aggregate_embed"
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        if weight is None or (self.is_version_2 and bias is None):
            missing = f"{name}.weight" if weight is None else f"{name}.bias"
            raise ModelFileError(f"{config.path}: the text projection has no tensor {missing}")
        return weight, bias

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor) -> PromptEmbeds:
        """All of `pieces` at once."""
        return finish(self.pieces(hidden_states, attention_mask))

    def pieces(self, hidden_states: Tensor, attention_mask: Tensor) -> Pieces[PromptEmbeds]:
        """Project a prompt.

        Args:
            hidden_states: (B, T, D, L), of the embedding and every layer of the language model.
            attention_mask: (B, T), 1 where there is text; padding may be on either side.
        Raises:
            InvalidRequest: the hidden states are of another language model, or T does not fit the registers.
        """
        self._check(hidden_states)
        return self._run(self._connectors, hidden_states, attention_mask)

    def features(self, hidden_states: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """What each connector is given: (B, T, width of the stream)."""
        return {stream: self._features(stream, hidden_states, attention_mask) for stream in self._connectors}

    def predicted_bytes(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> int:
        """Peak of what `pieces` allocates for hidden states of (B, T, D, L), weights not counted."""
        connectors = {
            stream: without_memory(partial(_make_connector, self._configs[stream]), dtype)
            for stream in self._connectors
        }
        hidden_states = torch.empty(shape, dtype=dtype, device="meta")
        mask = torch.empty(shape[:2], dtype=torch.int64, device="meta")
        meta = {
            stream: (weight.to("meta"), None if bias is None else bias.to("meta"))
            for stream, (weight, bias) in self._projections.items()
        }
        return peak_bytes(lambda: finish(self._run(connectors, hidden_states, mask, meta)))

    def _check(self, hidden_states: Tensor) -> None:
        hidden_size, num_layers = hidden_states.shape[2:]
        width = next(iter(self._projections.values()))[0].shape[1]
        if hidden_size * num_layers != width:
            raise InvalidRequest(
                f"the text projection needs {width} values per token, but the language model gave hidden states of "
                f"{hidden_size} x {num_layers} layers: it is not the text encoder of this checkpoint"
            )
        for config in self._configs.values():
            if config.num_registers is not None and hidden_states.shape[1] % config.num_registers:
                raise InvalidRequest(
                    f"a prompt of {hidden_states.shape[1]} tokens must be padded to a multiple of "
                    f"{config.num_registers}, the number of the connector's registers"
                )

    def _run(
        self,
        connectors: Mapping[str, Any],
        hidden_states: Tensor,
        attention_mask: Tensor,
        projections: Mapping[str, tuple[Tensor, Tensor | None]] | None = None,
    ) -> Pieces[PromptEmbeds]:
        projections = projections or self._projections
        contexts: dict[str, Tensor] = {}
        num_rows = attention_mask.numel()
        for stream, connector in connectors.items():
            yield projections[stream][0].numel() * num_rows
            with torch.inference_mode():
                x = self._features(stream, hidden_states, attention_mask, projections)
                x = _with_registers(connector, x, attention_mask)
                mask = None if connector.learnable_registers is not None else _attention_bias(attention_mask, x.dtype)
                rotary = connector.rope(x.shape[0], x.shape[1], device=x.device)
                rotary = tuple(part.to(x.dtype) for part in rotary)
            num_parameters = sum(parameter.numel() for parameter in connector.parameters())
            for block in connector.transformer_blocks:
                yield num_parameters // len(connector.transformer_blocks) * num_rows
                with torch.inference_mode():
                    x = block(x, attention_mask=mask, rotary_emb=rotary)
            with torch.inference_mode():
                contexts[stream] = connector.norm_out(x)
        return PromptEmbeds(contexts.get("video"), contexts.get("audio"))

    @torch.inference_mode()
    def _features(
        self,
        stream: str,
        hidden_states: Tensor,
        attention_mask: Tensor,
        projections: Mapping[str, tuple[Tensor, Tensor | None]] | None = None,
    ) -> Tensor:
        weight, bias = (projections or self._projections)[stream]
        mask = attention_mask.bool()[:, :, None, None]  # (B, T, 1, 1)
        normalise = _rms_normalised if self.is_version_2 else _range_normalised
        normalised = torch.where(mask, normalise(hidden_states, mask), 0.0)
        scale = math.sqrt(weight.shape[0] / hidden_states.shape[2]) if self.is_version_2 else 1.0
        # Channels vary slower than layers: (B, T, D * L).
        return functional.linear((normalised.flatten(2) * scale).to(weight.dtype), weight, bias)


def _range_normalised(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Version 1: per sample and layer, over the valid tokens' channels: minus the mean, over the range."""
    num_values = mask.sum(dim=1, keepdim=True) * hidden_states.shape[2]
    mean = hidden_states.masked_fill(~mask, 0.0).sum(dim=(1, 2), keepdim=True) / (num_values + EPS)
    low = hidden_states.masked_fill(~mask, math.inf).amin(dim=(1, 2), keepdim=True)
    high = hidden_states.masked_fill(~mask, -math.inf).amax(dim=(1, 2), keepdim=True)
    return RANGE * (hidden_states - mean) / (high - low + EPS)


def _rms_normalised(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Version 2: per token and layer, over the root mean square of the channels."""
    return hidden_states * torch.rsqrt(hidden_states.square().mean(dim=2, keepdim=True) + EPS)


def _with_registers(connector: Any, features: Tensor, attention_mask: Tensor) -> Tensor:
    """Text first, in its order; then registers, chosen by position, in place of the padding."""
    if connector.learnable_registers is None:
        return features
    batch, num_tokens, width = features.shape
    valid = attention_mask.bool()
    order = torch.argsort((~valid).int(), dim=1, stable=True)
    front = torch.gather(features, 1, order[:, :, None].expand(batch, num_tokens, width))
    registers = connector.learnable_registers.to(features.dtype)
    repeated = registers.repeat(num_tokens // registers.shape[0], 1)  # (T, width)
    is_text = torch.arange(num_tokens, device=features.device) < valid.sum(dim=1, keepdim=True)
    return torch.where(is_text[:, :, None], front, repeated)


def _attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, T): 0 where there is text, the lowest number where there is padding."""
    return (attention_mask.to(dtype) - 1)[:, None, None, :] * torch.finfo(dtype).max
