"""Reading LoRA files: safetensors with two factors a module.

    diffusion_model.<module>.lora_A.weight   (rank, in_features)
    diffusion_model.<module>.lora_B.weight   (out_features, rank)

The official form, as ComfyUI writes it. Others that mean exactly the same are read too: PEFT's and diffusers' prefixes,
no prefix, PEFT's adapter name `default`. A file that asks for something the rule does not have is refused: it would
merge without an error, and wrongly. Factors stay in the mapped file. This module knows no model.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.mapped_weights import MappedTensor
from braid.llm_core.loading.quantization import DENSE_DTYPES
from braid.llm_core.loading.safetensors_file import SafetensorsFile, TensorEntry
from braid.llm_core.loading.weights import StorageType
from braid.lora.factors import Factors

_log = logging.getLogger(__name__)

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
"""Of module names, taken off in this order; each at most once."""
STORED_DTYPES = ("F32", "F16", "BF16")
Rename = Callable[[str], str]
"""From a module's name in a file, without prefix, to the model's."""

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
_OTHER_FORMS = (
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA, whose magnitudes this rule does not have"),
    (re.compile(r"\.lora[._](up|down)\."), "the lora_up / lora_down form, which is scaled by alpha"),
    (re.compile(r"\.(lora_bias|lora_[AB]\.bias|diff_b)$|\.bias$"), "a change of a bias"),
    (re.compile(r"lora_embedding_[AB]"), "a LoRA of an embedding"),
    (re.compile(r"\.(hada_|lokr_|oft_|boft_|diff$|set_weight|lora_mid)"), "another kind of adapter (LoHa, LoKr, ...)"),
)


@dataclass(frozen=True, slots=True)
class FactorPair:
    """The two factors of one module, on disk; their shapes fit each other."""

    a: MappedTensor
    """(rank, in_features)."""
    b: MappedTensor
    """(out_features, rank)."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.b.shape[0], self.a.shape[1]

    def factors(self, strength: float) -> Factors:
        """Views of the file, in the dtype that is stored."""
        a, b = (tensor.to_torch(DENSE_DTYPES[tensor.storage]) for tensor in (self.a, self.b))
        return Factors(a, b, strength)

    def check_finite(self) -> None:
        """Read every number; raises ModelFileError naming the first that is NaN or infinite."""
        self.a.check_finite()
        self.b.check_finite()


@dataclass(frozen=True, slots=True)
class ReferenceFactors:
    """How an IC-LoRA wants its reference video made smaller."""

    downscale: int
    temporal: int


@dataclass(frozen=True, slots=True)
class LoraFile:
    """An opened LoRA file."""

    path: Path
    modules: Mapping[str, FactorPair]
    """By the model's name of the module."""
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    """What a user should know: declared scales that the rule ignores."""
    stamp: tuple[int, int]
    """Size and time of the file when it was opened."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.raw().nbytes for pair in self.modules.values() for tensor in (pair.a, pair.b))

    @property
    def reference(self) -> ReferenceFactors:
        """Of the metadata; 1 where it says nothing. Raises ModelFileError."""
        return ReferenceFactors(
            downscale=self._factor("reference_downscale_factor"),
            temporal=self._factor("reference_temporal_scale_factor"),
        )

    def check_finite(self) -> None:
        """Read the whole file; raises ModelFileError naming the first number that is NaN or infinite."""
        for pair in self.modules.values():
            pair.check_finite()

    def check_unchanged(self) -> None:
        """Raise ModelFileError if somebody wrote to the file since it was opened: its numbers were not checked."""
        if _stamp(self.path) != self.stamp:
            raise ModelFileError(f"{self.path} has changed since it was opened; remove the adapter and add it again")

    def _factor(self, name: str) -> int:
        text = self.metadata.get(name, "1")
        if not text.strip().isdecimal() or int(text) < 1:
            raise ModelFileError(f"{self.path}: the metadata {name}={text!r} must be a whole number, at least 1")
        return int(text)


def open_lora(path: Path, *, rename: Rename | None = None) -> LoraFile:
    """Open a LoRA file and check its form; numbers are not read.

    Args:
        rename: for files that use other names of modules than the model, such as diffusers'.
    Raises:
        ModelFileError: damaged, no LoRA, a factor without its partner, shapes that do not fit.
        UnsupportedModel: another kind of adapter, or a dtype that is not read.
    """
    stamp = _stamp(path)
    file = SafetensorsFile(path)
    sides: dict[tuple[str, str], MappedTensor] = {}
    alphas: dict[str, TensorEntry] = {}
    for entry in file.tensors.values():
        if alpha := _ALPHA.fullmatch(entry.name):
            alphas[_module_name(alpha["module"], rename)] = entry
            continue
        module, side, tensor = _factor(file, entry, rename)
        if (module, side) in sides:
            other = sides[module, side].file_name
            raise ModelFileError(f"{path}: {other!r} and {entry.name!r} are the same factor of module {module!r}")
        sides[module, side] = tensor
    if not sides:
        raise ModelFileError(f"{path} has no LoRA factors; they end in .lora_A.weight and .lora_B.weight")
    modules = {module: _pair(path, module, sides) for module in dict.fromkeys(module for module, _ in sides)}
    notes = (*_alpha_notes(file, alphas, modules), *_metadata_notes(path, file.metadata))
    for note in notes:
        _log.warning("%s: %s", path, note)
    return LoraFile(path, modules, file.metadata, notes, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def _factor(file: SafetensorsFile, entry: TensorEntry, rename: Rename | None) -> tuple[str, str, MappedTensor]:
    """(module, A or B, where it is)."""
    path, match = file.file.path, _FACTOR.fullmatch(entry.name)
    if match is None:
        for pattern, what in _OTHER_FORMS:
            if pattern.search(entry.name):
                raise UnsupportedModel(f"{path}: tensor {entry.name!r} is {what}; only lora_A and lora_B are merged")
        raise ModelFileError(f"{path}: tensor {entry.name!r} is no LoRA factor (.lora_A.weight or .lora_B.weight)")
    if entry.dtype not in STORED_DTYPES:
        raise UnsupportedModel(
            f"{path}: tensor {entry.name!r} is stored as {entry.dtype}; supported are {', '.join(STORED_DTYPES)}"
        )
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise ModelFileError(
            f"{path}: tensor {entry.name!r} has the shape {entry.shape}; a factor has two sizes, not 0"
        )
    storage = StorageType(entry.dtype)
    tensor = MappedTensor(entry.name, storage, entry.shape, file.file, entry.offset, file_name=entry.name)
    return _module_name(match["module"], rename), match["side"], tensor


def _module_name(name: str, rename: Rename | None) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return rename(name) if rename else name


def _pair(path: Path, module: str, sides: Mapping[tuple[str, str], MappedTensor]) -> FactorPair:
    for side, other in (("A", "B"), ("B", "A")):
        if (module, side) not in sides:
            name = sides[module, other].file_name
            raise ModelFileError(f"{path}: module {module!r} has {name!r} and no lora_{side}.weight")
    a, b = sides[module, "A"], sides[module, "B"]
    if a.shape[0] != b.shape[1]:
        raise ModelFileError(
            f"{path}: the factors of module {module!r} have the shapes {a.shape} and {b.shape}; the rank, the first "
            "size of lora_A and the second of lora_B, must be one"
        )
    return FactorPair(a, b)


def _alpha_notes(
    file: SafetensorsFile, alphas: Mapping[str, TensorEntry], modules: Mapping[str, FactorPair]
) -> list[str]:
    """Alpha is ignored, as the official rule does; said where applying it would change something."""
    scales: dict[float, list[str]] = {}
    for module, entry in alphas.items():
        if module in modules:
            scales.setdefault(_alpha(file, entry) / modules[module].rank, []).append(module)
    scales.pop(1.0, None)
    return [
        f"alpha / rank is {scale:g} in {len(some)} modules, such as {some[0]!r}, and is ignored as the official rule "
        f"does; to apply it multiply the strength by {scale:g}"
        for scale, some in sorted(scales.items())
    ]


def _alpha(file: SafetensorsFile, entry: TensorEntry) -> float:
    path = file.file.path
    if entry.dtype not in STORED_DTYPES or entry.shape not in ((), (1,)):
        raise ModelFileError(f"{path}: {entry.name!r} is {entry.dtype} of shape {entry.shape}; an alpha is one number")
    tensor = MappedTensor(entry.name, StorageType(entry.dtype), (1,), file.file, entry.offset, file_name=entry.name)
    return float(tensor.to_torch(torch.float32))


def _metadata_notes(path: Path, metadata: Mapping[str, str]) -> list[str]:
    """What PEFT and diffusers say about scaling beside the tensors: in the header, or in a file of the folder."""
    fields = _json_object(metadata.get("lora_adapter_metadata", ""))
    if path.name == "adapter_model.safetensors":
        fields |= _json_object(_text(path.parent / "adapter_config.json"))
    known = {name.rpartition(".")[2]: value for name, value in fields.items()}
    if known.get("use_dora"):
        raise UnsupportedModel(f"{path} is a DoRA (use_dora), whose magnitudes this rule does not have")
    rank, alpha = known.get("r"), known.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        return []
    scale = alpha / rank**0.5 if known.get("use_rslora") else alpha / rank
    if scale == 1:
        return []
    return [
        f"its configuration asks for a scale of {scale:g} (lora_alpha={alpha}, r={rank}), which is ignored as the "
        f"official rule does; to apply it multiply the strength by {scale:g}"
    ]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() and path.stat().st_size < 1 << 20 else ""


def _json_object(text: str) -> dict[str, Any]:
    """Empty where the text is no JSON object: it is somebody's note, not a part of the format."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
