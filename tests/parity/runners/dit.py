"""Golden cases of the transformer, its rotary positions and its fp8 linear layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo, each
from braid.diffusion.models.ltx2.linear import make_linear
from braid.diffusion.models.ltx2.modules import with_prefix
from braid.diffusion.models.ltx2.rope import Rotation, make_rotation
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Perturbation, Stream, denoised
from braid.diffusion.models.ltx2.transformer_config import RopeType, TransformerConfig, modalities_of
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison, compare_all, results

MODALITIES = ("video", "audio")
DIT_TOLERANCE = 2e-4
ROPE_TOLERANCE = 2e-4
FP8_FLOAT32_TOLERANCE = 1e-5
SKIPS = {
    "SKIP_VIDEO_SELF_ATTN": "video_self_attention",
    "SKIP_AUDIO_SELF_ATTN": "audio_self_attention",
    "SKIP_A2V_CROSS_ATTN": "audio_to_video",
    "SKIP_V2A_CROSS_ATTN": "video_to_audio",
}


def load_transformer(case: Case, name: str | None = None) -> LTX2Transformer:
    """The transformer of a case's shared weights, or of its own."""
    shared = case.weights(name)
    weights = shared.tensors()
    for prefix in ("w.", "model.diffusion_model."):
        weights = with_prefix(weights, prefix) or weights
    section = shared.info["config"].get("transformer", shared.info["config"])
    return LTX2Transformer(TransformerConfig.from_metadata(section, modalities=modalities_of(weights)), weights)


def read_stream(tensors: dict[str, Tensor], modality: str, *, suffix: str = "", enabled: bool = True) -> Stream | None:
    """The stream of `in.<modality>.*`; a mask called with `suffix` goes before the one without."""
    prefix = f"in.{modality}."
    if f"{prefix}latent" not in tensors:
        return None

    def optional(name: str) -> Tensor | None:
        return tensors.get(f"{prefix}{name}{suffix}", tensors.get(f"{prefix}{name}"))

    return Stream(
        latents=tensors[f"{prefix}latent"],
        sigma=tensors[f"{prefix}sigma"],
        timesteps=tensors[f"{prefix}timesteps"],
        positions=tensors[f"{prefix}positions"],
        context=tensors[f"{prefix}context"],
        context_mask=optional("context_mask"),
        attention_mask=optional("attention_mask"),
        keyframes_mask=optional("keyframes_mask"),
        enabled=enabled,
    )


def read_perturbations(items: list[list[dict[str, Any]]] | None) -> list[Perturbation] | Perturbation:
    """One for each sample, of the lists that cases have; `blocks` null is all of them."""
    if items is None:
        return Perturbation()
    return [
        Perturbation(**{SKIPS[one["type"]]: "all" if one["blocks"] is None else tuple(one["blocks"]) for one in sample})
        for sample in items
    ]


def run_dit(case: Case) -> Iterable[Comparison]:
    """One forward for each set of masks that the case has; outputs of the second kind end in `_binary_mask`."""
    tensors = case.tensors()
    transformer = load_transformer(case)
    perturbations = read_perturbations(case.info.get("perturbations_per_sample"))
    ours: dict[str, Tensor] = {}
    for suffix in {name.partition("attention_mask")[2] for name in tensors if ".attention_mask" in name} | {""}:
        streams = AudioVideo(
            *(
                read_stream(tensors, modality, suffix=suffix, enabled=case.info.get(f"{modality}_enabled", True))
                for modality in MODALITIES
            )
        )
        estimates = each(_estimates, streams, transformer.forward(streams, perturbations))
        for modality, found in zip(MODALITIES, (estimates.video, estimates.audio), strict=True):
            ending = f"{suffix}_mask" if suffix else ""
            ours |= {f"out.{modality}.{kind}{ending}": tensor for kind, tensor in (found or {}).items()}
    yield from compare_all(tensors, ours, case.tolerance(DIT_TOLERANCE))


def _estimates(stream: Stream, velocity: Tensor) -> dict[str, Tensor]:
    return {"velocity": velocity, "x0": denoised(stream.latents, stream.timesteps, velocity)}


def run_rope(case: Case) -> Iterable[Comparison]:
    """The tables of each stream, and of video by time alone."""
    tensors, info = case.tensors(), case.info
    max_pos_video, max_pos_cross = tuple(info["max_pos_video"]), tuple(info["max_pos_audio_and_cross"])
    ours: dict[str, Tensor] = {}
    for name in sorted({name.split(".")[1] for name in tensors if name.startswith("out.")}):
        modality, _, is_cross = name.partition("_")
        positions = tensors[f"in.{modality}.positions"]
        is_full_video = modality == "video" and not is_cross
        rotation = make_rotation(
            positions[:, :1] if is_cross else positions,
            info["dim_video"] if is_full_video else info["dim_audio_and_cross"],
            info["heads"],
            max_pos_video if is_full_video else max_pos_cross,
            theta=info.get("theta", 10000.0),
            rope_type=info["rope_type"],
            is_double=info["double_precision"],
        )
        ours |= {f"out.{name}.{kind}": table for kind, table in recorded_layout(rotation).items()}
    yield from compare_all(tensors, ours, case.tolerance(ROPE_TOLERANCE))


def recorded_layout(rotation: Rotation) -> dict[str, Tensor]:
    """Heads before tokens, as goldens of the split type have them."""
    kind: RopeType = rotation.rope_type
    tables = {"cos": rotation.cos, "sin": rotation.sin}
    return {name: table.transpose(1, 2) if kind == "split" else table for name, table in tables.items()}


def run_fp8(case: Case) -> Iterable[Comparison]:
    """Both kinds of fp8 layer, made of one float32 layer; outputs name the kind and the dtype."""
    tensors = case.tensors()
    fp8 = torch.float8_e4m3fn
    scale = tensors["in.weight"].abs().max().reshape(1) / torch.finfo(fp8).max
    quantised = (tensors["in.weight"] / scale).to(fp8)
    made = {"out.weight_scale": scale, "out.weight_fp8": quantised}
    scaled = {"l.weight": quantised, "l.weight_scale": scale}
    kinds = {"fp8cast": {"l.weight": tensors["in.weight"].to(fp8)}, "fp8scaled": scaled}
    if "in.input_scale" in tensors:
        scaled["l.input_scale"] = tensors["in.input_scale"]
    if "in.bias" in tensors:
        kinds["fp8cast"]["l.bias"] = tensors["in.bias"].to(fp8)
        scaled["l.bias"] = tensors["in.bias"]
    dtypes = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    for name, expected in results(tensors).items():
        if name in made:
            yield Comparison(name, made[name], expected, 0)
            continue
        _, kind, dtype = name.split(".")
        ours = make_linear(kinds[kind], "l")(tensors["in.x"].to(dtypes[dtype]))
        yield Comparison(name, ours, expected, case.tolerance(FP8_FLOAT32_TOLERANCE if dtype == "f32" else 0.0))


RUNNERS = {"dit": run_dit, "rope": run_rope, "fp8 linears": run_fp8}
