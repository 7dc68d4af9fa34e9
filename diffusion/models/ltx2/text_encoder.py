"""Which language model a checkpoint was trained with, and what of it the text projection takes."""

from __future__ import annotations

from dataclasses import dataclass

from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.errors import ModelFileError

GEMMA_3_NAME = "google/gemma-3-12b-it-qat-q4_0-unquantized"
GEMMA_3_WIDTH = 3840
GEMMA_3_LAYERS = 48
DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class TextEncoderSpec:
    """How a prompt becomes what the text projection is given: hidden states of a language model, stacked.

    Hidden states are counted from the embeddings, which are number 0, to the output of the last layer.
    """

    model: str
    """A hub id, or a name that the server knows."""
    hidden_size: int
    layers: tuple[int, ...]
    """Which hidden states are stacked, in this order."""
    max_length: int = DEFAULT_MAX_LENGTH
    """Tokens of every prompt, after truncating and padding."""
    padding_side: str = "left"
    folder: str | None = None
    """Of the checkpoint, where it brings the language model itself."""

    @property
    def width(self) -> int:
        """Numbers of a token that the projection takes."""
        return self.hidden_size * len(self.layers)


def read_text_encoder(
    config: CheckpointConfig, projection_width: int, num_registers: int, *, folder: str | None = None
) -> TextEncoderSpec:
    """From the metadata; without it Gemma 3 12B, the encoder of all checkpoints of 2.0 and 2.3.

    Args:
        projection_width: columns of the projection's weight.
        num_registers: of the connectors; a prompt is a multiple of it.
    Raises:
        ModelFileError: what is named does not fit the projection.
    """
    section = config.braid_section("text_encoder")
    _check_gemma_version(config)
    spec = TextEncoderSpec(
        _text(section, "name", GEMMA_3_NAME),
        section.integer("hidden_size", GEMMA_3_WIDTH),
        _layers(section),
        section.integer("max_length", DEFAULT_MAX_LENGTH),
        section.choice("padding_side", ("left", "right"), "left"),
        folder,
    )
    if spec.width != projection_width:
        raise ModelFileError(
            f"{config.path}: the text projection takes {projection_width:,} numbers a token; the text encoder "
            f"{spec.model} gives {spec.width:,} ({len(spec.layers)} hidden states of {spec.hidden_size})"
        )
    if spec.max_length % num_registers:
        raise section.error("max_length", spec.max_length, f"a multiple of the {num_registers} learnable registers")
    return spec


def _layers(section: Section) -> tuple[int, ...]:
    """All hidden states, unless some are listed."""
    num_layers = section.integer("num_layers", GEMMA_3_LAYERS)
    if num_layers > 1024:
        raise section.error("num_layers", num_layers, "at most 1024")
    layers = section.value("layers", None)
    if layers is None:
        return tuple(range(num_layers + 1))
    if not isinstance(layers, list) or not layers:
        raise section.error("layers", layers, "a list of numbers of hidden states")
    if not all(type(layer) is int and 0 <= layer <= num_layers for layer in layers):
        raise section.error("layers", layers, f"a list of numbers from 0 (the embeddings) to {num_layers}")
    return tuple(layers)


def _text(section: Section, key: str, default: str) -> str:
    value = section.value(key, default)
    if not isinstance(value, str) or not value:
        raise section.error(key, value, "a name")
    return value


def _check_gemma_version(config: CheckpointConfig) -> None:
    """2.5 was trained with a fine-tuned Gemma 4 that only its own files have."""
    source = config.metadata.get("gemma_source_checkpoint")
    version = source.get("gemma_version") if isinstance(source, dict) else None
    if version is not None and "3" not in str(version).split(".")[0] and "text_encoder" not in _braid(config):
        raise ModelFileError(
            f"{config.path}: gemma_source_checkpoint.gemma_version is {version!r}; only Gemma 3 is supported as the "
            "text encoder of an official checkpoint"
        )


def _braid(config: CheckpointConfig) -> dict[str, object]:
    braid = config.metadata.get("braid")
    return braid if isinstance(braid, dict) else {}
