"""Guidance: how estimates are combined, and a guided evaluation of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.guidance import Guidance, GuidanceMemory, Pass, combine
from braid.diffusion.latents import AudioVideo, each
from braid.diffusion.models.ltx2.transformer import (
    ISOLATED,
    UNPERTURBED,
    LTX2Transformer,
    Perturbation,
    Stream,
    denoised,
)
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison, compare_all
from braid.tests.parity.runners.dit import load_transformer
from braid.tests.parity.runners.sampling import MODALITIES, by_name

COMBINE_TOLERANCE = 1e-5
BF16_ULP = 2.0**-8
"""Of the largest value: sums of float32 that differ in their last bit may round to neighbours."""
NETWORK_TOLERANCE = 2e-4
ESTIMATES = {
    Pass.CONDITIONAL: "in.cond",
    Pass.UNCONDITIONAL: "in.uncond_text",
    Pass.PERTURBED: "in.uncond_perturbed",
    Pass.ISOLATED: "in.uncond_modality",
}
Tensors = Mapping[str, Tensor]


def read_guidance(params: Mapping[str, Any]) -> Guidance:
    return Guidance(
        guidance_scale=params["cfg_scale"],
        stg_scale=params["stg_scale"],
        stg_blocks=tuple(params["stg_blocks"] or ()),
        modality_scale=params["modality_scale"],
        rescale=params["rescale_scale"],
        skip_step=params["skip_step"],
    )


def run_combine(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    estimates = {kind: tensors[name] for kind, name in ESTIMATES.items() if name in tensors}
    halves = {kind: estimate.bfloat16() for kind, estimate in estimates.items()}
    for name, params in case.info["params"].items():
        guidance = read_guidance(params)
        allowed = case.tolerance(COMBINE_TOLERANCE)
        yield Comparison(f"out.{name}", combine(guidance, estimates), tensors[f"out.{name}"], allowed)
        if f"out_bf16.{name}" in tensors:
            expected = tensors[f"out_bf16.{name}"]
            allowed = float(expected.abs().max()) * BF16_ULP
            yield Comparison(f"out_bf16.{name}", combine(guidance, halves), expected, allowed)


def make_stream(tensors: Tensors, name: str, sigma: Tensor, *, is_negative: bool, is_enabled: bool) -> Stream | None:
    if f"in.{name}.latent" not in tensors:
        return None
    latents = tensors[f"in.{name}.latent"]
    mask = tensors.get(f"in.{name}.denoise_mask", torch.ones(*latents.shape[:2], 1))
    return Stream(
        latents=latents,
        sigma=sigma.expand(latents.shape[0]),
        timesteps=mask * sigma,
        positions=tensors[f"in.{name}.positions"],
        context=tensors[f"in.{name}.{'negative_context' if is_negative else 'context'}"],
        attention_mask=tensors.get(f"in.{name}.attention_mask"),
        enabled=is_enabled,
    )


def perturbation(kind: Pass, guidance: AudioVideo[Guidance]) -> Perturbation:
    if kind is Pass.PERTURBED:
        blocks = guidance.map(lambda part: part.stg_blocks)
        return Perturbation(video_self_attention=blocks.video or (), audio_self_attention=blocks.audio or ())
    return ISOLATED if kind is Pass.ISOLATED else UNPERTURBED


@dataclass(frozen=True)
class Scene:
    """A case's model, inputs and guidance."""

    model: LTX2Transformer
    tensors: Tensors
    sigma: Tensor
    guidance: AudioVideo[Guidance]

    def run(self, kind: Pass, is_enabled: AudioVideo[bool]) -> dict[str, Tensor]:
        """The x0 estimates of one pass, by stream."""
        is_negative = kind is Pass.UNCONDITIONAL
        flags = zip(MODALITIES, (is_enabled.video, is_enabled.audio), strict=True)
        streams = AudioVideo(
            *(
                make_stream(self.tensors, name, self.sigma, is_negative=is_negative, is_enabled=bool(is_on))
                for name, is_on in flags
            )
        )
        velocities = self.model.forward(streams, perturbation(kind, self.guidance))
        return by_name(
            each(lambda stream, velocity: denoised(stream.latents, stream.timesteps, velocity), streams, velocities)
        )


def run_guided(case: Case) -> Iterator[Comparison]:
    """Every pass, the guided estimate, and the plain one: the conditional pass alone."""
    tensors, step_index = case.tensors(), int(case.info["step_index"])
    guidance = AudioVideo(
        *(read_guidance(case.info[f"{name}_params"]) if f"in.{name}.latent" in tensors else None for name in MODALITIES)
    )
    scene = Scene(load_transformer(case), tensors, tensors["in.sigmas"][step_index], guidance)
    # as if there were estimates to reuse, so that a stream which may skip does
    plan = GuidanceMemory(guidance.map(lambda part: torch.empty(0))).plan(guidance, step_index)
    found = {kind: scene.run(kind, plan.is_enabled) for kind in plan.passes}
    ours: dict[str, Tensor] = {}
    for kind, estimates in found.items():
        ours |= {f"out.{name}.{kind.value}": estimate for name, estimate in estimates.items()}
    simple = scene.run(Pass.CONDITIONAL, guidance.map(lambda part: True))
    ours |= {f"out.simple.{name}": estimate for name, estimate in simple.items()}
    for name, part in zip(MODALITIES, (guidance.video, guidance.audio), strict=True):
        if part is not None and found:
            ours[f"out.{name}.denoised"] = combine(part, {kind: pair[name] for kind, pair in found.items()})
    yield from compare_all(tensors, ours, case.tolerance(NETWORK_TOLERANCE))


RUNNERS = {"guidance combine": run_combine, "guided denoiser": run_guided}
