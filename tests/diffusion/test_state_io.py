from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from braid.diffusion import state_io
from braid.diffusion.guidance import GuidanceMemory
from braid.diffusion.latents import AudioVideo, free_state
from braid.diffusion.noise import SeededNoise
from braid.diffusion.operations import PromptEmbeds
from braid.diffusion.sampling_state import SamplerState
from braid.diffusion.state import STATE_VERSION, PipelineState
from braid.diffusion.state_io import StateError, load_state, save_state

TOKENS = torch.randn(1, 3, 2)
STATE = PipelineState(
    pipeline="one_stage",
    prompt='a "red" circle, \u00fc\u0000',
    prompt_embeds=PromptEmbeds(TOKENS.bfloat16(), None),
    negative_prompt_embeds=None,
    noise=SeededNoise(7).state(),
    results={"stage_1.video": TOKENS.transpose(1, 2), "empty": torch.zeros(0, 4)},
    stage="stage_2",
    streams=AudioVideo(free_state(TOKENS, torch.zeros(1, 3, 3, 2)), None),
    sampler=SamplerState(2, AudioVideo(TOKENS.double(), None), noise=SeededNoise(7).state()),
    guidance_memory=GuidanceMemory(AudioVideo(TOKENS, None)),
)


def test_a_state_comes_back_with_every_bit() -> None:
    data = STATE.to_bytes()
    back = PipelineState.from_bytes(data)
    assert {back.to_bytes() for _ in range(20)} == {data}
    assert (back.pipeline, back.prompt, back.stage) == (STATE.pipeline, STATE.prompt, STATE.stage)
    assert back.prompt_embeds.video is not None
    assert back.prompt_embeds.video.dtype == torch.bfloat16
    assert torch.equal(back.results["stage_1.video"], STATE.results["stage_1.video"])
    assert back.results["empty"].shape == (0, 4)
    assert back.streams is not None and back.streams.video is not None
    assert torch.equal(back.streams.video.latents, TOKENS)
    assert back.sampler is not None and back.sampler.step == 2
    assert back.guidance_memory.last.audio is None
    assert torch.equal(back.noise.step, STATE.noise.step)


def test_a_state_of_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(StateError, match=f"version {STATE_VERSION + 1} and this server reads version {STATE_VERSION}"):
        PipelineState.from_bytes(save_state(STATE, version=STATE_VERSION + 1))


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_state_that_was_cut_off_is_refused(length: int) -> None:
    with pytest.raises(StateError, match="checkpoint"):
        PipelineState.from_bytes(STATE.to_bytes()[:length])


def test_what_is_no_state_is_refused() -> None:
    with pytest.raises(StateError, match="damaged"):
        PipelineState.from_bytes((5).to_bytes(8, "little") + b"not j")
    with pytest.raises(StateError, match="schema version None"):
        PipelineState.from_bytes((2).to_bytes(8, "little") + b"{}")


def test_only_named_classes_are_read_and_only_plain_values_written() -> None:
    @dataclass(frozen=True)
    class Stranger:
        x: int

    with pytest.raises(StateError, match="Stranger"):
        load_state(save_state(Stranger(1), version=1), version=1, classes=())
    with pytest.raises(TypeError, match="object cannot be part"):
        save_state(object(), version=1)
    assert load_state(save_state(Stranger(1), version=1), version=1, classes=(Stranger,)) == Stranger(1)


def test_a_field_that_is_gone_is_a_damaged_state() -> None:
    data = save_state(replace(STATE, results={}), version=STATE_VERSION)
    with pytest.raises(StateError, match="damaged"):
        PipelineState.from_bytes(data.replace(b'\\"pipeline\\"', b'\\"pipelime\\"'))


def test_tensors_that_share_memory_are_written_apart() -> None:
    row = torch.arange(4.0)
    back = state_io.load_state(state_io.save_state((row, row[1:3]), version=1), version=1, classes=())
    assert torch.equal(back[0], row) and torch.equal(back[1], row[1:3])
