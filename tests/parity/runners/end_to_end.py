"""Whole high-quality runs: from checkpoint files on disk, by the public pipeline, on the real scheduler, to latents.

The files of a case hold a transformer, an adapter and an upsampler; the statistics of latents are the case's, and the
autoencoder that a checkpoint has them in is a random one that nothing here uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from braid.diffusion.job import GenerationResult, Job
from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.config import CheckpointConfig
from braid.diffusion.models.ltx2.geometry import read_geometry
from braid.diffusion.models.ltx2.parts import Part, expected_of
from braid.diffusion.noise import RecordedNoise, SeededNoise
from braid.diffusion.operations import PromptEmbeds
from braid.diffusion.params import AdapterChoice, GenerationParams, ImageCondition
from braid.diffusion.pipelines.stages import guided_stage
from braid.diffusion.state import PipelineState
from braid.diffusion.workload import Diffusion
from braid.llm_core.core import Request
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Completed
from braid.llm_core.scheduler.loop import Scheduler
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison
from braid.tests.tiny_ltx2 import random_weight, tiny_config

BUDGET_BYTES = 1 << 30
ABSOLUTE = 2e-3
"""Of the README; a case says rel 2e-3, which counts where that is less."""


def end_to_end(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    with TemporaryDirectory() as folder:
        job, states, result = run(case, tensors, Path(folder))
    expected = {name: tensor for name, tensor in tensors.items() if name.startswith("out.")}
    found = _outputs(states[-1], result)
    assert found.keys() >= expected.keys(), expected.keys() - found.keys()
    for name, tensor in expected.items():
        relative = case.tolerance(ABSOLUTE) * float(tensor.abs().max())
        yield Comparison(name, found[name], tensor, min(ABSOLUTE, relative))
    sigmas = guided_stage(job, job.small_grid, num_schedule_tokens=job.small_grid.num_tokens).sigmas
    yield Comparison("in.stage1_sigmas", sigmas, tensors["in.stage1_sigmas"], 0.0)
    yield from _noise_comparisons(tensors, states[-1])


def _outputs(state: PipelineState, result: GenerationResult) -> dict[str, Tensor]:
    assert result.latents.video is not None
    found = {
        "out.stage1.video": state.results["stage_1.video"],
        "out.upsampled": state.results["upsampled"],
        "out.stage2.video": result.latents.video,
    }
    if result.latents.audio is not None:
        found["out.stage1.audio"] = result.latents.audio
        found["out.stage2.audio_discarded"] = state.results["stage_2.audio"]
    return found


def run(case: Case, tensors: Mapping[str, Tensor], folder: Path) -> tuple[Job, list[PipelineState], GenerationResult]:
    """The case as a job of the scheduler; also the states that its pipeline offered."""
    states: list[PipelineState] = []
    events: list[Any] = []
    diffusion = open_case(case, tensors, folder, lambda request, state: states.append(state))
    job = diffusion.resolve(params_of(case, tensors))
    scheduler = Scheduler([diffusion.workload])
    scheduler.submit(Request(case.name, job, events.append))
    while scheduler.run_once():
        pass
    diffusion.close()
    last = events[-1]
    assert isinstance(last, Completed), last
    return job, states, last.result


# -- the case as files -------------------------------------------------------------------------------------------------


def open_case(
    case: Case, tensors: Mapping[str, Tensor], folder: Path, on_checkpoint: Callable[[Request, Any], None]
) -> Diffusion:
    """Its three files, written with their metadata and opened."""
    checkpoint, lora, upsampler = (
        next(case.weights(name) for name in case.info["weights"] if name.endswith(kind))
        for kind in ("_ckpt", "_lora", "_upsampler")
    )
    sections = _with_autoencoder(checkpoint.info["config"])
    weights = checkpoint.tensors() | _autoencoder(sections, tensors)
    metadata = {"config": json.dumps(sections), "model_version": checkpoint.info.get("model_version", "2.3.0")}
    save_file(weights, folder / "checkpoint.safetensors", metadata=metadata)
    save_file(lora.tensors(), folder / "distilled.safetensors")
    save_file(
        upsampler.tensors(),
        folder / "upsampler.safetensors",
        metadata={"config": json.dumps(upsampler.info["config"])},
    )
    return Diffusion(
        open_ltx2(folder / "checkpoint.safetensors", upsampler=folder / "upsampler.safetensors"),
        Arena(BUDGET_BYTES),
        adapters={"distilled": folder / "distilled.safetensors"},
        distilled_adapter="distilled",
        on_checkpoint=on_checkpoint,
    )


def _with_autoencoder(sections: Mapping[str, Any]) -> dict[str, Any]:
    channels = sections["transformer"]["in_channels"]
    return {**sections, "vae": {**tiny_config()["vae"], "latent_channels": channels}}


def _autoencoder(sections: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    config = CheckpointConfig(Path("case"), sections)
    generator = torch.Generator().manual_seed(0)
    shapes = expected_of(config, read_geometry(config), Part.VIDEO_DECODER, ())
    made = {
        f"vae.{name}": random_weight(name, tuple(size or 1 for size in shape), generator)
        for name, shape in shapes.items()
    }
    given = {
        f"vae.per_channel_statistics.{name.removeprefix('stats.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith("stats.")
    }
    return made | given


# -- the case as a request ---------------------------------------------------------------------------------------------


def params_of(case: Case, tensors: Mapping[str, Tensor]) -> GenerationParams:
    info = case.info
    strengths = (info["lora_strength_stage1"], info["lora_strength_stage2"])
    return GenerationParams(
        pipeline="two_stage_hq",
        height=info["height"],
        width=info["width"],
        num_frames=info["frames"],
        frame_rate=info["fps"],
        num_inference_steps=info["steps"],
        seed=0,
        images=_images(case, tensors),
        generate_audio="in.audio.context" in tensors,
        distilled_adapter=AdapterChoice(name="distilled", strengths=strengths),
        prompt_embeds=PromptEmbeds(tensors["in.video.context"], tensors.get("in.audio.context")),
        negative_prompt_embeds=PromptEmbeds(
            tensors["in.video.negative_context"], tensors.get("in.audio.negative_context")
        ),
        stage_2_sigmas=tuple(info["stage2_sigmas"]),
        noise=lambda: recorded_noise(tensors),
        output_type="latents",
    )


def _images(case: Case, tensors: Mapping[str, Tensor]) -> tuple[ImageCondition, ...]:
    """A picture of the first latent frame, and one beside the last pixel frame, each where the case has it."""
    images = []
    told = re.compile(r"(last )?(?:latent|pixel frame) ?(\d*) strength (\d+(?:\.\d+)?)")
    for name, kind in (("image0", "image latent at "), ("keyframe", "keyframe at ")):
        stages = [key for key in sorted(tensors) if re.fullmatch(rf"in\.stage\d\.{name}_latent", key)]
        if stages:
            _, _, words = case.info["conditioning"].partition(kind)
            found = told.match(words)
            assert found is not None, case.info["conditioning"]
            place = case.info["frames"] - 1 if found[1] else int(found[2])
            latents = tuple(tensors[key] for key in stages)
            images.append(ImageCondition(latents=latents, frame_index=place, strength=float(found[3])))
    return tuple(images)


def recorded_noise(tensors: Mapping[str, Tensor]) -> RecordedNoise:
    """In each step the midpoint's draws of all streams come before those of its end."""
    num_streams = 2 if "in.audio.context" in tensors else 1
    substeps: list[Tensor] = []
    steps: list[Tensor] = []
    for stage in ("s1", "s2"):
        for index, name in enumerate(_sorted(tensors, f"rec.sde_noise.{stage}.")):
            (substeps if index % (2 * num_streams) < num_streams else steps).append(tensors[name])
    initial = [tensors[name] for name in _sorted(tensors, "rec.init_noise.")]
    return RecordedNoise(initial, step=steps, substep=substeps)


def _sorted(tensors: Mapping[str, Tensor], prefix: str) -> list[str]:
    return sorted((name for name in tensors if name.startswith(prefix)), key=lambda name: int(name.rpartition(".")[2]))


def _noise_comparisons(tensors: Mapping[str, Tensor], state: PipelineState) -> Iterator[Comparison]:
    """All recorded draws were drawn, and those of the sampler are what our own source draws."""
    num_initial = len(_sorted(tensors, "rec.init_noise."))
    yield Comparison("number of initial draws", state.noise.initial, torch.tensor(num_initial), 0.0)
    source = SeededNoise(0)
    num_streams = 2 if "in.audio.context" in tensors else 1
    for stage in ("s1", "s2"):
        source.begin_stage()
        for index, name in enumerate(_sorted(tensors, f"rec.sde_noise.{stage}.")):
            draw = source.substep if index % (2 * num_streams) < num_streams else source.step
            ours = draw(tensors[name].shape, device=torch.device("cpu"))
            yield Comparison(name, ours.float(), tensors[name], 1e-5)


RUNNERS = {"HQ end-to-end latents": end_to_end}
