"""The parts of a checkpoint: which tensors belong to each, and whether they are those that the config implies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import get_args

from braid.diffusion.models.ltx2 import layout
from braid.diffusion.models.ltx2.config import CheckpointConfig
from braid.diffusion.models.ltx2.geometry import Geometry
from braid.diffusion.models.ltx2.stored_tensors import SCALE_SUFFIXES, StoredTensor, check_scales, renamed
from braid.diffusion.models.ltx2.transformer_config import (
    CrossModalRule,
    TransformerConfig,
    expected_tensors,
    modalities_of,
)
from braid.errors import ModelFileError

Tensors = dict[str, StoredTensor]
Expected = Mapping[str, layout.Shape]

MAX_SHOWN = 4
"""Names in a message, of each kind of mistake."""


class Part(StrEnum):
    """Something that is loaded and built as one."""

    TRANSFORMER = "transformer"
    TEXT_PROJECTION = "text projection"
    VIDEO_ENCODER = "video encoder"
    VIDEO_DECODER = "video decoder"
    AUDIO_ENCODER = "audio encoder"
    AUDIO_DECODER = "audio decoder"
    VOCODER = "vocoder"


SECTIONS = {
    Part.TRANSFORMER: "transformer", Part.TEXT_PROJECTION: "transformer", Part.VIDEO_ENCODER: "vae",
    Part.VIDEO_DECODER: "vae", Part.AUDIO_ENCODER: "audio_vae", Part.AUDIO_DECODER: "audio_vae",
    Part.VOCODER: "vocoder",
}  # fmt: skip
"""The section of the config that describes each part."""

_TRANSFORMER = "model.diffusion_model."
_PLACES: tuple[tuple[str, str, tuple[Part, ...]], ...] = (
    (f"{_TRANSFORMER}video_embeddings_connector.", _TRANSFORMER, (Part.TEXT_PROJECTION,)),
    (f"{_TRANSFORMER}audio_embeddings_connector.", _TRANSFORMER, (Part.TEXT_PROJECTION,)),
    (_TRANSFORMER, _TRANSFORMER, (Part.TRANSFORMER,)),
    ("text_embedding_projection.", "", (Part.TEXT_PROJECTION,)),
    ("vae.encoder.", "vae.", (Part.VIDEO_ENCODER,)),
    ("vae.decoder.", "vae.", (Part.VIDEO_DECODER,)),
    ("vae.per_channel_statistics.", "vae.", (Part.VIDEO_ENCODER, Part.VIDEO_DECODER)),
    ("audio_vae.encoder.", "audio_vae.", (Part.AUDIO_ENCODER,)),
    ("audio_vae.decoder.", "audio_vae.", (Part.AUDIO_DECODER,)),
    ("audio_vae.per_channel_statistics.", "audio_vae.", (Part.AUDIO_ENCODER, Part.AUDIO_DECODER)),
    ("vocoder.", "vocoder.", (Part.VOCODER,)),
)
"""Start of an official name; what of it is taken away; the parts that it belongs to."""

_UNUSED = re.compile(r"(audio_)?vae\.per_channel_statistics\.(?!(mean-of-means|std-of-means)$)|duration_head\.")
"""Statistics that only training reads, and a head that only 2.5 has."""
_STATISTICS = "per_channel_statistics."


def assign(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[Part, Tensors]:
    """The tensors of each part under their names in it; a part that the file has not is not in the result.

    Raises:
        ModelFileError: tensors that belong to no part.
    """
    found: dict[Part, Tensors] = {}
    strangers = []
    for name, tensor in tensors.items():
        if _UNUSED.match(name):
            continue
        place = next((place for place in _PLACES if name.startswith(place[0])), None)
        if place is None:
            strangers.append(name)
            continue
        _, prefix, parts = place
        for part in parts:
            own = name.removeprefix(prefix)
            found.setdefault(part, {})[own] = renamed(tensor, own)
    if strangers:
        raise ModelFileError(f"{path}: {_listed('unexpected', strangers)}; no part of LTX-2 has such names")
    return {part: own for part, own in found.items() if any(not name.startswith(_STATISTICS) for name in own)}


def transformer_config(config: CheckpointConfig, names: Iterable[str]) -> TransformerConfig:
    """Of the streams that the tensors have.

    Raises:
        ModelFileError: the section is wrong.
    """
    section = config.section("transformer")
    modalities = modalities_of(set(names)) or ("video", "audio")
    try:
        read = TransformerConfig.from_metadata(section.values, modalities=modalities)
    except ModelFileError as error:
        raise ModelFileError(f"{config.path}: {error.message}") from error
    own, rules = config.braid_section("transformer"), get_args(CrossModalRule)
    return replace(read, cross_modal_rule=own.choice("cross_modal_rule", rules, read.cross_modal_rule))


def check_parts(config: CheckpointConfig, geometry: Geometry, parts: Mapping[Part, Tensors]) -> None:
    """Compare every part with what its section implies.

    Raises:
        ModelFileError: a section is missing, the transformer is of another version than its config, or tensors are
            missing, unexpected or of another shape; one message names them all, or the first few.
    """
    mistakes = _Mistakes()
    for part, tensors in parts.items():
        if SECTIONS[part] not in config:
            raise ModelFileError(
                f"{config.path}: the config section {SECTIONS[part]!r} is missing, but the file has "
                f"{len(tensors):,} tensors of the {part.value}"
            )
        if part is Part.TRANSFORMER:
            _check_version(config, tensors)
        check_scales(config.path, tensors)
        names = {*tensors, *parts.get(Part.TRANSFORMER, ())} if part is Part.TEXT_PROJECTION else tensors
        mistakes.compare(expected_of(config, geometry, part, names), tensors)
    mistakes.raise_if_any(config.path)


def expected_of(config: CheckpointConfig, geometry: Geometry, part: Part, names: Iterable[str]) -> Expected:
    """Name to shape of every tensor of a part.

    Args:
        names: of the part's tensors, which tell the streams that it has. Those of the text projection tell it with the
            transformer's: it must serve the transformer's streams, and whatever it has of another must be whole.
    """
    section = config.section(SECTIONS[part])
    match part:
        case Part.TRANSFORMER:
            return dict(expected_tensors(transformer_config(config, names)))
        case Part.TEXT_PROJECTION:
            names = set(names)
            wanted = modalities_of(names) or tuple(layout.TEXT_STREAMS)
            streams = [s for s in layout.TEXT_STREAMS if s in wanted or s in layout.text_streams(names)]
            return layout.text_tensors(section, streams)
        case Part.VIDEO_ENCODER:
            return layout.video_encoder_tensors(section) | layout.video_statistics_tensors(section)
        case Part.VIDEO_DECODER:
            return layout.video_decoder_tensors(section) | layout.video_statistics_tensors(section)
        case Part.AUDIO_ENCODER:
            return layout.audio_encoder_tensors(section) | layout.audio_statistics_tensors(section)
        case Part.AUDIO_DECODER:
            return layout.audio_decoder_tensors(section) | layout.audio_statistics_tensors(section)
        case Part.VOCODER:
            channels = layout.audio_output_channels(config.section("audio_vae")) if "audio_vae" in config else None
            return layout.vocoder_tensors(section, None if channels is None else channels * geometry.audio.num_mel_bins)


def _check_version(config: CheckpointConfig, tensors: Tensors) -> None:
    """2.0 and 2.3 differ in whole families of tensors; say so rather than list hundreds of names."""
    section = config.section("transformer")
    described = "2.3" if section.boolean("cross_attention_adaln", False) else "2.0"
    signs = {
        "2.3": "transformer_blocks.0.prompt_scale_shift_table",
        "2.0": "caption_projection.linear_1.weight",
    }
    found = [version for version, name in signs.items() if name in tensors or f"audio_{name}" in tensors]
    if found and described not in found:
        raise ModelFileError(
            f"{config.path}: the transformer's tensors are those of LTX-{found[0]} (there is {signs[found[0]]!r}), but "
            f"its config describes LTX-{described} (cross_attention_adaln is {described == '2.3'}): weights and config "
            "are of different versions"
        )


def check_tensors(path: Path, expected: Expected, tensors: Tensors) -> None:
    """Compare one set of tensors with what its config implies; see `check_parts`."""
    mistakes = _Mistakes()
    mistakes.compare(expected, tensors)
    mistakes.raise_if_any(path)


class _Mistakes:
    """What is wrong with the tensors of a file, gathered so that one message can say it all."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.misshapen: list[str] = []

    def compare(self, expected: Expected, tensors: Tensors) -> None:
        self.missing += [name for name in expected if name not in tensors]
        extra = (name for name in tensors if name not in expected and not name.endswith(SCALE_SUFFIXES))
        self.unexpected += [tensors[name].file_name for name in extra]
        for name, shape in expected.items():
            if name in tensors and not _fits(tensors[name].shape, shape):
                self.misshapen.append(f"{tensors[name].file_name} is {tensors[name].shape}, not {_shown(shape)}")

    def raise_if_any(self, path: Path) -> None:
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.misshapen))
        said = [_listed(kind, names) for kind, names in kinds if names]
        if said:
            raise ModelFileError(f"{path}: the tensors are not those that the config implies: {'; '.join(said)}")


def _fits(found: tuple[int, ...], expected: layout.Shape) -> bool:
    return len(found) == len(expected) and all(want in (None, have) for have, want in zip(found, expected, strict=True))


def _shown(shape: layout.Shape) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _listed(kind: str, names: list[str]) -> str:
    noun = "tensor is" if len(names) == 1 else "tensors are"
    more = f" and {len(names) - MAX_SHOWN:,} more" if len(names) > MAX_SHOWN else ""
    return f"{len(names):,} {noun} {kind}: {', '.join(names[:MAX_SHOWN])}{more}"


def part_names(parts: Iterable[Part]) -> str:
    """For messages."""
    return ", ".join(part.value for part in parts) or "none"


def bare_names(tensors: Mapping[str, StoredTensor], config: CheckpointConfig) -> Iterator[StoredTensor]:
    """The tensors of a split file, which may have left the prefix of its only module away.

    2.5 ships the video autoencoder as `encoder.*`, `decoder.*` and `per_channel_statistics.*`.
    """
    is_video = "vae" in config and any(name.startswith(("encoder.", "decoder.")) for name in tensors)
    is_transformer = "patchify_proj.weight" in tensors or "audio_patchify_proj.weight" in tensors
    prefix = "vae." if is_video else _TRANSFORMER if is_transformer else ""
    for name, tensor in tensors.items():
        yield renamed(tensor, f"{prefix}{name}")
