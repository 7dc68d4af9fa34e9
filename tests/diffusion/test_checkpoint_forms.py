"""Every form of a checkpoint through the same pipelines: both versions, both layouts, another dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint, open_ltx2
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.operations import PromptEmbeds
from braid.diffusion.workload import Diffusion
from braid.llm_core.core import Request
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Completed
from braid.llm_core.scheduler.loop import Scheduler
from braid.tests.diffusion.rig import BUDGET_BYTES, World, digest, embeds, film, write_files
from braid.tests.tiny_ltx2 import write_checkpoint, write_diffusers_folder, write_upsampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("toy"))


def latents_of(checkpoint: LTX2Checkpoint, **changes: Any) -> str:
    """The bits of a film without any adapter."""
    diffusion = Diffusion(checkpoint, Arena(BUDGET_BYTES))
    events: list[Any] = []
    scheduler = Scheduler([diffusion.workload])
    scheduler.submit(Request("film", diffusion.resolve(film(1, output_type="latents", **changes)), events.append))
    while scheduler.run_once():
        pass
    assert isinstance(events[-1], Completed), events[-1]
    assert bool(torch.isfinite(events[-1].result.latents.video).all())
    return digest(events[-1].result)


def test_the_official_file_and_the_diffusers_folder_give_the_same_bits(folder: Path, tmp_path: Path) -> None:
    write_diffusers_folder(tmp_path / "folder")
    upsampler = folder / "upsampler.safetensors"
    official = open_ltx2(folder / "model.safetensors", upsampler=upsampler)
    other = open_ltx2(tmp_path / "folder", upsampler=upsampler)
    assert latents_of(official, pipeline="two_stage") == latents_of(other, pipeline="two_stage")


def test_a_checkpoint_of_2_0_makes_a_film(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "old.safetensors", version="2.0")
    write_upsampler(tmp_path / "upsampler.safetensors")
    old = open_ltx2(tmp_path / "old.safetensors", upsampler=tmp_path / "upsampler.safetensors")
    wide = PromptEmbeds(embeds(1).video, embeds(2).video)  # the transformer projects captions of one width for both
    assert latents_of(old, pipeline="two_stage", prompt_embeds=wide, negative_prompt_embeds=wide)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
@pytest.mark.parametrize("stream", ["video", "audio"])
def test_a_file_of_one_stream_makes_what_it_can_from_a_prompt(tmp_path: Path, stream: str, version: str) -> None:
    checkpoint = open_ltx2(write_checkpoint(tmp_path / "one.safetensors", version=version, streams=(stream,)))
    diffusion, spec = Diffusion(checkpoint, Arena(BUDGET_BYTES)), checkpoint.text_encoder()
    hidden_states = torch.randn(1, spec.max_length, spec.hidden_size, len(spec.layers))
    with diffusion._components.using(Part.TEXT_PROJECTION) as projection:
        projected = projection(hidden_states, torch.ones(1, spec.max_length, dtype=torch.int64))
    assert (projected.video is None, projected.audio is None) == (stream == "audio", stream == "video")
    scheduler, events = Scheduler([diffusion.workload]), []  # type: ignore[var-annotated]
    job = diffusion.resolve(film(1, pipeline=None, prompt_embeds=projected, negative_prompt_embeds=projected))
    assert job.pipeline == ("text_to_audio" if stream == "audio" else "one_stage")
    scheduler.submit(Request("film", job, events.append))
    while scheduler.run_once():
        pass
    made = events[-1].result
    assert (made.frames is None, made.waveform is None) == (stream == "audio", stream == "video")


def test_idle_networks_in_another_dtype_yield_and_come_back_with_the_same_bits(folder: Path) -> None:
    world = World(folder, dtype=torch.bfloat16)
    first = world.generate(film())
    assert first.latents.video is not None and first.latents.video.dtype == torch.bfloat16
    kept = world.arena.usage().by_kind["networks"]
    needy = world.arena.lease("somebody else", world.arena.available_bytes + 1_000, kind="ballast")
    assert 0 < world.arena.usage().by_kind["networks"] < kept or "adapters" not in world.arena.usage().by_kind
    needy.release()
    world.submit("again", film())
    world.run()
    assert digest(world.result("again")) == digest(first)
