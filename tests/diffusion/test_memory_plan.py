"""Plans of memory: what stays, what streams, where the peak is, and the refusal of what cannot fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from braid.diffusion.job import Job
from braid.diffusion.memory_plan import AdapterBytes, MemoryPlan, Offload, Terms, check, plan
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.stage_memory import StageMemory
from braid.diffusion.weight_bytes import WeightBytes
from braid.diffusion.workload import Diffusion
from braid.errors import CannotFit
from braid.llm_core.memory.arena import Arena
from braid.tests.diffusion.rig import BUDGET_BYTES, film, open_diffusion, picture, write_files

HUGE = 1 << 40


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Diffusion:
    return open_diffusion(write_files(tmp_path_factory.mktemp("toy")), Arena(BUDGET_BYTES))


@pytest.fixture(scope="module")
def checkpoint(diffusion: Diffusion) -> LTX2Checkpoint:
    return diffusion.checkpoint


@pytest.fixture(scope="module")
def on_gpu(checkpoint: LTX2Checkpoint) -> StageMemory:
    return StageMemory(WeightBytes(checkpoint, device_type="cuda"))


def planned(diffusion: Diffusion, memory: StageMemory, offload: Offload, **changes: object) -> MemoryPlan:
    job = diffusion.resolve(film(**changes))  # type: ignore[arg-type]
    return plan(job, memory, Terms(budget_bytes=HUGE, offload=offload))


def names(found: MemoryPlan) -> list[str]:
    return [stage.name for stage in found.stages]


def test_every_stage_of_a_job_is_in_its_plan_and_no_other(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    found = planned(diffusion, on_gpu, Offload.NONE)
    assert names(found) == [
        "denoise the first stage", "upsample", "denoise", "decode frames", "decode sound", "vocode",
    ]  # fmt: skip
    shown = planned(diffusion, on_gpu, Offload.NONE, images=(picture(),), output_type="latents")
    assert names(shown) == ["encode images", "denoise the first stage", "upsample", "denoise"]
    silent = planned(diffusion, on_gpu, Offload.NONE, pipeline="one_stage", generate_audio=False)
    assert names(silent) == ["denoise", "decode frames"]


def test_offloading_holds_less_the_more_of_it(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    none, cpu, stream = (planned(diffusion, on_gpu, offload) for offload in Offload)
    transformer = on_gpu.weights.of(Part.TRANSFORMER).on_device
    plans = (none, cpu, stream)
    by_name = {found.offload: {stage.name: stage.weight_bytes for stage in found.stages} for found in plans}
    decoder = on_gpu.weights.of(Part.VIDEO_DECODER).on_device
    assert by_name[Offload.NONE]["decode frames"] == transformer + decoder
    assert by_name[Offload.CPU]["decode frames"] == decoder
    assert by_name[Offload.CPU]["denoise"] == by_name[Offload.NONE]["denoise"] == transformer
    assert by_name[Offload.STREAM]["denoise"] == on_gpu.weights.outside_bytes + on_gpu.weights.slots_bytes
    assert (none.resident, cpu.resident, stream.resident) == (("transformer",), (), ())
    assert (none.streamed, cpu.streamed, stream.streamed) == ((), (), ("transformer",))


def test_on_a_cpu_mapped_weights_cost_nothing(diffusion: Diffusion, checkpoint: LTX2Checkpoint) -> None:
    memory = StageMemory(WeightBytes(checkpoint, device_type="cpu"))
    found = planned(diffusion, memory, Offload.NONE)
    assert {stage.weight_bytes for stage in found.stages} == {0}
    copied = StageMemory(WeightBytes(checkpoint, device_type="cpu", dtype=torch.bfloat16))
    assert copied.weights.of(Part.TRANSFORMER).on_device == sum(
        tensor.nbytes for tensor in checkpoint.weights(Part.TRANSFORMER, torch.bfloat16).values()
    )


def test_blocks_and_the_rest_are_the_whole_transformer(on_gpu: StageMemory, checkpoint: LTX2Checkpoint) -> None:
    weights = on_gpu.weights
    blocks = sum(tensor.end - tensor.offset for layout in weights.layouts for tensor in layout.tensors)
    assert weights.outside_bytes + blocks == weights.of(Part.TRANSFORMER).on_device
    assert on_gpu.weights.of(Part.TRANSFORMER).on_device == on_gpu.weights.of(Part.TRANSFORMER).in_file
    cast = StageMemory(WeightBytes(checkpoint, device_type="cuda", is_fp8_cast=True))
    assert cast.weights.slots_bytes < weights.slots_bytes / 2  # of float32, with room between tensors
    assert cast.weights.outside_bytes == weights.outside_bytes


def test_more_tokens_need_more_and_appended_pictures_are_tokens(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    def denoising(**changes: object) -> int:
        stages = planned(diffusion, on_gpu, Offload.NONE, **changes).stages
        return next(stage.work_bytes for stage in stages if stage.name == "denoise")

    assert denoising() < denoising(num_frames=17) < denoising(height=256, width=256)
    assert denoising() < denoising(images=(picture(),))


def test_a_job_is_refused_with_both_numbers_and_what_would_fit(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    job = diffusion.resolve(film(height=512, width=512, num_frames=65))
    budget = plan(job, on_gpu, Terms(budget_bytes=HUGE)).peak_bytes - 1
    with pytest.raises(CannotFit, match=r"num_frames=57 or offload='cpu' would fit") as caught:
        check(job, on_gpu, Terms(budget_bytes=budget))
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (budget + 1, budget)
    assert caught.value.param == "num_frames"
    assert check(job, on_gpu, Terms(budget_bytes=budget + 1)).fits


def test_the_frames_and_sizes_that_are_offered_do_fit(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    job = diffusion.resolve(film(height=512, width=512, num_frames=65))
    budget = plan(job, on_gpu, Terms(budget_bytes=HUGE)).peak_bytes * 2 // 3
    with pytest.raises(CannotFit) as caught:
        check(job, on_gpu, Terms(budget_bytes=budget))
    fits = int(str(caught.value).split("(num_frames=")[1].split()[0])
    assert check(refilm(diffusion, job, num_frames=fits), on_gpu, Terms(budget_bytes=budget)).fits
    with pytest.raises(CannotFit):
        check(refilm(diffusion, job, num_frames=fits + 8), on_gpu, Terms(budget_bytes=budget))
    picture_alone = refilm(diffusion, job, num_frames=1)
    least = plan(picture_alone, on_gpu, Terms(budget_bytes=HUGE)).peak_bytes
    with pytest.raises(CannotFit, match=r"width=256, height=256 would fit"):
        check(picture_alone, on_gpu, Terms(budget_bytes=least - 1))


def refilm(diffusion: Diffusion, job: Job, **changes: int) -> Job:
    sizes = {"height": job.height, "width": job.width, "num_frames": job.num_frames} | changes
    return diffusion.resolve(film(**sizes))


def test_offloading_is_offered_where_it_helps(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    job = diffusion.resolve(film(height=512, width=512, num_frames=65))
    budget = plan(job, on_gpu, Terms(budget_bytes=HUGE, offload=Offload.CPU)).peak_bytes
    with pytest.raises(CannotFit, match=r"offload='cpu' would fit"):
        check(job, on_gpu, Terms(budget_bytes=budget))
    assert check(job, on_gpu, Terms(budget_bytes=budget, offload=Offload.CPU)).fits
    with pytest.raises(CannotFit) as caught:
        check(job, on_gpu, Terms(budget_bytes=budget // 2))
    assert "offload" not in str(caught.value)


def test_adapters_lie_beside_the_base_where_it_stays_and_outside_the_blocks_where_those_stream(
    diffusion: Diffusion, on_gpu: StageMemory
) -> None:
    job = diffusion.resolve(film())

    def needed(offload: Offload, adapters: AdapterBytes) -> tuple[int, int]:
        found = plan(job, on_gpu, Terms(budget_bytes=HUGE, offload=offload, adapters=adapters))
        return next(stage.weight_bytes for stage in found.stages if stage.name == "denoise"), found.host_bytes

    more = {}
    for offload in Offload:
        with_adapters = needed(offload, AdapterBytes(total=1000, outside=10))
        without = needed(offload, AdapterBytes())
        more[offload] = tuple(a - b for a, b in zip(with_adapters, without, strict=True))
    assert more == {Offload.NONE: (1000, 0), Offload.CPU: (0, 1000), Offload.STREAM: (10, 1000)}


def test_adapters_that_the_host_has_no_room_for_are_refused(diffusion: Diffusion, on_gpu: StageMemory) -> None:
    job, adapters = diffusion.resolve(film()), AdapterBytes(total=1000, outside=10)
    terms = Terms(budget_bytes=HUGE, host_budget_bytes=999, offload=Offload.CPU, adapters=adapters)
    with pytest.raises(CannotFit, match="host's memory what the adapters change") as caught:
        check(job, on_gpu, terms)
    assert (caught.value.needed_bytes, caught.value.budget_bytes, caught.value.param) == (1000, 999, "adapters")
    assert check(job, on_gpu, replace(terms, host_budget_bytes=1000)).fits


def test_a_prediction_is_not_made_twice(diffusion: Diffusion, checkpoint: LTX2Checkpoint) -> None:
    memory = StageMemory(WeightBytes(checkpoint, device_type="cuda"))
    first = planned(diffusion, memory, Offload.NONE)
    memory._network = None  # type: ignore[assignment,method-assign]
    memory.vocode = lambda num_latents: 0  # type: ignore[method-assign]
    assert planned(diffusion, memory, Offload.NONE).stages[:4] == first.stages[:4]
