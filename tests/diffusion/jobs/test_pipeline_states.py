"""The payload that checkpoints are for."""

from __future__ import annotations

from pathlib import Path

import torch

from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.diffusion.noise import SeededNoise
from braid.diffusion.operations import PromptEmbeds
from braid.diffusion.state import STATE_VERSION, PipelineState
from braid.tests.diffusion.jobs.job_rig import VIDEO, claimed, opened


def state_of(stage: str) -> PipelineState:
    embeds = PromptEmbeds(torch.randn(1, 3, 2).bfloat16(), None)
    return PipelineState("one_stage", "a red circle", embeds, None, SeededNoise(7).state(), stage=stage)


def test_a_pipeline_goes_on_from_its_state_or_from_the_one_before(tmp_path: Path) -> None:
    first, second = state_of("stage_1").to_bytes(), state_of("stage_2").to_bytes()
    with opened(tmp_path) as storage:
        store, worker = JobStore(storage), JobWorker(storage)
        job = store.create(VIDEO).job
        lease = claimed(worker)
        worker.checkpoint(lease, first, state_version=STATE_VERSION)
        worker.checkpoint(lease, second, state_version=STATE_VERSION)
        worker.release(lease)
        lease = claimed(worker)
        state = worker.resume(lease, PipelineState.from_bytes, state_version=STATE_VERSION)
        assert state is not None and (state.stage, state.prompt) == ("stage_2", "a red circle")
        worker.checkpoint(lease, second[:-1], state_version=STATE_VERSION)  # whole on disk, and no state
        worker.release(lease)
        lease = claimed(worker)
        state = worker.resume(lease, PipelineState.from_bytes, state_version=STATE_VERSION)
        assert state is not None and (state.stage, state.prompt) == ("stage_2", "a red circle")
        note = store.get(job.id).notes[-1].text
        assert "checkpoint 3 cannot be used: this checkpoint is damaged" in note
        assert note.endswith("went on from checkpoint 2")
