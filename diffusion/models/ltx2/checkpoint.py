"""Opening an LTX-2 checkpoint: the official file or a diffusers folder, checked whole before anything is built.

Opening maps the files and reads their headers; numbers are read when a part is first taken, and are then checked too:
a part with a NaN is refused before anything runs on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from braid.diffusion.models.ltx2 import layout
from braid.diffusion.models.ltx2.config import CheckpointConfig, Section, read_metadata
from braid.diffusion.models.ltx2.diffusers_folder import (
    PICKLES,
    official_upsampler_config,
    read_diffusers_folder,
    read_json,
    read_weights,
)
from braid.diffusion.models.ltx2.geometry import Geometry, read_geometry
from braid.diffusion.models.ltx2.parts import (
    SECTIONS,
    Part,
    Tensors,
    assign,
    bare_names,
    check_parts,
    check_tensors,
    part_names,
    transformer_config,
)
from braid.diffusion.models.ltx2.presets import Preset, read_presets
from braid.diffusion.models.ltx2.stored_tensors import StoredTensor, load, open_tensors
from braid.diffusion.models.ltx2.text_encoder import TextEncoderSpec, read_text_encoder
from braid.diffusion.models.ltx2.transformer_config import CrossModalRule, TransformerConfig
from braid.errors import ModelFileError
from braid.llm_core.loading.safetensors_file import SafetensorsFile, parse_json_object


@dataclass(frozen=True, slots=True)
class UpsamplerFile:
    """An opened latent upsampler."""

    section: Section
    tensors: Tensors
    scale: Fraction
    """In each direction of space; 1 for one that only enlarges time."""
    time_scale: int

    def weights(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """By official name, checked.

        Raises:
            ModelFileError: a number is not finite.
        """
        for tensor in self.tensors.values():
            tensor.check_finite()
        return load(self.tensors, dtype)


@dataclass(frozen=True)
class LTX2Checkpoint:
    """An opened and checked checkpoint; what it gives are views of the mapped files, which nobody may write.

    Raises:
        ModelFileError: by everything that reads a part which the files do not have, or whose numbers are not finite.
    """

    path: Path
    config: CheckpointConfig
    geometry: Geometry
    presets: Mapping[str, Preset]
    """By pipeline; see `presets.PIPELINES`."""
    parts: Mapping[Part, Tensors]
    upsampler: UpsamplerFile | None = None
    temporal_upsampler: UpsamplerFile | None = None
    _checked: set[Part] = field(default_factory=set, repr=False)

    @property
    def model_version(self) -> str | None:
        return self.config.model_version

    def has(self, part: Part) -> bool:
        """Whether the files have this part."""
        return part in self.parts

    def require(self, parts: Iterable[Part], *, upsampler: bool = False) -> None:
        """Refuse work that needs parts which are not there, before it starts."""
        missing = [part for part in parts if part not in self.parts]
        if missing:
            raise ModelFileError(f"{self.path} has no {part_names(missing)}; it has: {part_names(self.parts)}")
        if upsampler and self.upsampler is None:
            raise ModelFileError(f"{self.path} was opened without a latent upsampler, which a second stage needs")

    def section(self, part: Part) -> Section:
        """The official config section that describes a part."""
        return self.config.section(SECTIONS[part])

    def transformer_config(self) -> TransformerConfig:
        """Of the streams that the file has."""
        self.require((Part.TRANSFORMER,))
        return transformer_config(self.config, self.parts[Part.TRANSFORMER])

    def text_encoder(self) -> TextEncoderSpec:
        """The language model that prompts go through."""
        self.require((Part.TEXT_PROJECTION,))
        tensors = self.parts[Part.TEXT_PROJECTION]
        # Those of video and of audio, where both are there, take the same hidden states.
        projection = next(tensor for name, tensor in tensors.items() if name.endswith("aggregate_embed.weight"))
        registers = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith("learnable_registers")]
        folder = self.config.metadata.get("text_encoder_folder")
        return read_text_encoder(self.config, projection.shape[1], math.lcm(*registers), folder=folder)

    def weights(self, part: Part, dtype: torch.dtype | None = None, *, keep_float8: bool = False) -> dict[str, Tensor]:
        """The tensors of a part by official name without the prefix of its module; see `stored_tensors.load`.

        The first call for a part reads all its numbers and refuses those that are not finite.
        """
        self.check_finite((part,))
        return load(self.parts[part], dtype, keep_float8=keep_float8)

    def check_finite(self, parts: Iterable[Part]) -> None:
        """Look at every number of these parts, once."""
        parts = list(parts)
        self.require(parts)
        for part in parts:
            if part not in self._checked:
                for tensor in self.parts[part].values():
                    tensor.check_finite()
                self._checked.add(part)


def open_ltx2(
    path: Path | str,
    *,
    upsampler: Path | str | None = None,
    temporal_upsampler: Path | str | None = None,
    split_files: Sequence[Path | str] = (),
    cross_modal_rule: CrossModalRule | None = None,
) -> LTX2Checkpoint:
    """Open a checkpoint and check that it is, whole, a model that we run.

    Args:
        path: the official safetensors file, or a diffusers folder.
        upsampler: the spatial latent upsampler, a file or a diffusers folder of it; needed by second stages.
        temporal_upsampler: one that doubles frames.
        split_files: further official files with parts that `path` has not, such as 2.5's video autoencoder.
        cross_modal_rule: how the streams look at each other; None is today's official rule, unless the file names one.
    Raises:
        ModelFileError: a file is missing, broken or truncated, tensors are not those that the config implies, or the
            config contradicts itself.
        UnsupportedModel: a kind of network or number that we do not run.
    """
    path = Path(path)
    config, tensors = read_diffusers_folder(path) if _is_folder(path) else _read_file(path)
    for split in split_files:
        config = _join(config, tensors, *_read_file(Path(split)))
    if cross_modal_rule is not None:
        config = config.with_braid("transformer", cross_modal_rule=cross_modal_rule)
    spatial = None if upsampler is None else _open_upsampler(Path(upsampler))
    temporal = None if temporal_upsampler is None else _open_upsampler(Path(temporal_upsampler))
    geometry = read_geometry(config, upscale=_upscale(spatial))
    parts = assign(path, tensors)
    if not parts:
        raise ModelFileError(f"{path} has none of the parts of LTX-2")
    check_parts(config, geometry, parts)
    for found in (spatial, temporal):
        _check_upsampler(found, geometry)
    num_layers = config.section("transformer").integer("num_layers", 48) if "transformer" in config else 48
    presets = read_presets(config, geometry, num_layers)
    return LTX2Checkpoint(path, config, geometry, presets, parts, spatial, temporal)


def _is_folder(path: Path) -> bool:
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give the safetensors file of a checkpoint or a diffusers folder")
    if path.is_dir() and not (path / "model_index.json").is_file():
        files = sorted(file.name for file in path.glob("*.safetensors"))
        hint = f"; to open a file of it, name it: {', '.join(files[:3])}" if files else ""
        raise ModelFileError(f"{path} is no diffusers folder: it has no model_index.json{hint}")
    return path.is_dir()


def _read_file(path: Path) -> tuple[CheckpointConfig, dict[str, StoredTensor]]:
    _refuse_pickle(path)
    file = SafetensorsFile(path)
    config = read_metadata(path, file.metadata)
    return config, {tensor.name: tensor for tensor in bare_names(open_tensors(file), config)}


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLES:
        raise ModelFileError(f"{path} is a pickle by its name ({path.suffix}); only safetensors is read")


def _join(
    config: CheckpointConfig,
    tensors: dict[str, StoredTensor],
    other: CheckpointConfig,
    others: Mapping[str, StoredTensor],
) -> CheckpointConfig:
    """Add a split file to a checkpoint."""
    both = sorted(tensors.keys() & others.keys())
    if both:
        raise ModelFileError(f"{other.path}: tensor {both[0]!r} is also in {config.path}; {len(both):,} are in both")
    tensors.update(others)
    return CheckpointConfig(config.path, {**other.sections, **config.sections}, config.model_version, config.metadata)


def _open_upsampler(path: Path) -> UpsamplerFile:
    """From an official file, whose metadata is its config, or a diffusers folder of the model."""
    _refuse_pickle(path)
    if path.is_dir():
        values = official_upsampler_config(read_json(path / "config.json"))
        tensors = read_weights(path)
    else:
        file = SafetensorsFile(path)
        # Its config is flat, where that of a checkpoint has sections.
        values = dict(_upsampler_config(path, file.metadata))
        tensors = open_tensors(file)
    section = Section(path, "upsampler", values)
    check_tensors(path, layout.upsampler_tensors(section), tensors)
    return UpsamplerFile(section, tensors, *layout.upsampler_scale(section))


def _upsampler_config(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    """The flat config of an upsampler file.

    Raises:
        ModelFileError: it is missing, or is that of something else.
    """
    if "config" not in metadata:
        raise ModelFileError(f"{path}: the metadata has no 'config'; this is not a latent upsampler")
    values = parse_json_object(path, metadata["config"].encode())
    if "mid_channels" not in values:
        raise ModelFileError(f"{path}: the config has no 'mid_channels'; this is not a latent upsampler")
    return values


def _upscale(upsampler: UpsamplerFile | None) -> Fraction:
    return Fraction(2) if upsampler is None or upsampler.scale == 1 else upsampler.scale


def _check_upsampler(upsampler: UpsamplerFile | None, geometry: Geometry) -> None:
    if upsampler is None:
        return
    channels = upsampler.section.integer("in_channels", 128)
    if channels != geometry.video.num_channels:
        raise upsampler.section.error(
            "in_channels", channels, f"{geometry.video.num_channels}, the channels of the checkpoint's video latents"
        )
