"""Guidance: which passes, how they are combined, and what a skipped step reuses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from braid.diffusion.guidance import Guidance, GuidanceMemory, Pass, combine, passes_needed
from braid.diffusion.latents import AudioVideo

CFG = Guidance(guidance_scale=3.0)


def estimates(batch: int = 1) -> dict[Pass, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {kind: torch.randn(batch, 6, 4, generator=generator) for kind in Pass}


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (AudioVideo(Guidance(), Guidance()), "cond"),
        (AudioVideo(CFG, Guidance()), "cond uncond"),
        (AudioVideo(Guidance(), Guidance(stg_scale=1.0)), "cond ptb"),
        (AudioVideo(None, Guidance(modality_scale=3.0)), "cond mod"),
        (AudioVideo(replace(CFG, stg_scale=1.0, modality_scale=3.0), None), "cond uncond ptb mod"),
    ],
)
def test_both_streams_run_the_passes_that_one_of_them_needs(guidance: AudioVideo[Guidance], expected: str) -> None:
    assert " ".join(kind.value for kind in passes_needed(guidance)) == expected


def test_the_unconditional_pass_can_be_asked_for() -> None:
    passes = passes_needed(AudioVideo(Guidance()), needs_unconditional=True)
    assert passes == (Pass.CONDITIONAL, Pass.UNCONDITIONAL)


def test_no_guidance_gives_the_conditional_estimate_as_it_is() -> None:
    found = estimates()
    assert torch.equal(combine(Guidance(), found), found[Pass.CONDITIONAL])
    assert torch.equal(combine(Guidance(), {Pass.CONDITIONAL: found[Pass.CONDITIONAL]}), found[Pass.CONDITIONAL])


@given(scale=st.floats(0, 9), stg=st.floats(0, 3), modality=st.floats(0, 5))
def test_guidance_moves_away_from_each_worse_estimate_by_its_scale(scale: float, stg: float, modality: float) -> None:
    found = estimates()
    cond, uncond, perturbed, isolated = (found[kind] for kind in Pass)
    expected = cond + (scale - 1) * (cond - uncond) + stg * (cond - perturbed) + (modality - 1) * (cond - isolated)
    guidance = Guidance(guidance_scale=scale, stg_scale=stg, modality_scale=modality)
    assert torch.allclose(combine(guidance, found), expected, atol=1e-4)


def test_a_full_rescale_gives_the_deviation_of_the_conditional_estimate() -> None:
    found = estimates()
    guided = combine(replace(CFG, guidance_scale=7.0, rescale=1.0), found)
    assert float(guided.std()) == pytest.approx(float(found[Pass.CONDITIONAL].std()))


def test_the_estimate_keeps_the_dtype_of_the_conditional_one() -> None:
    found = {kind: estimate.bfloat16() for kind, estimate in estimates().items()}
    assert combine(replace(CFG, rescale=0.5), found).dtype == torch.bfloat16


def test_a_skipping_stream_runs_every_other_step_and_keeps_its_last_estimate() -> None:
    guidance = AudioVideo(replace(CFG, skip_step=1), CFG)
    memory = GuidanceMemory()
    seen = []
    for step in range(4):
        plan = memory.plan(guidance, step)
        seen.append((plan.is_enabled.video, plan.is_enabled.audio, len(plan.passes)))
        memory = memory.after(AudioVideo(torch.full((1,), float(step)), torch.full((1,), float(step))), plan)
    assert seen == [(True, True, 2), (False, True, 2), (True, True, 2), (False, True, 2)]
    assert memory.last.video is not None
    assert memory.last.audio is not None
    assert (float(memory.last.video), float(memory.last.audio)) == (2.0, 3.0)


def test_no_pass_runs_where_both_streams_skip() -> None:
    guidance = AudioVideo(replace(CFG, skip_step=2), replace(CFG, skip_step=2))
    memory = GuidanceMemory(AudioVideo(torch.zeros(1), torch.zeros(1)))
    assert [len(memory.plan(guidance, step).passes) for step in range(4)] == [2, 0, 0, 2]


def test_a_step_with_nothing_to_reuse_runs() -> None:
    guidance = AudioVideo(replace(CFG, skip_step=1))
    assert GuidanceMemory().plan(guidance, 1).is_enabled.video is True


def test_an_absent_stream_is_in_no_plan() -> None:
    plan = GuidanceMemory().plan(AudioVideo(None, CFG), 0)
    assert plan.is_enabled == AudioVideo(None, True)
    memory = GuidanceMemory().after(AudioVideo(None, torch.ones(1)), plan)
    assert memory.last.video is None
