"""Pipelines driven by the plainest executor: what they ask for, in which order, and that they go on from anywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from braid.diffusion.guidance import Guidance
from braid.diffusion.job import GenerationResult, Job
from braid.diffusion.latents import AudioVideo
from braid.diffusion.noise import RecordedNoise
from braid.diffusion.operations import DecodeAudio, Denoise, EncodeImage, EncodePrompt, PromptEmbeds, Waveform
from braid.diffusion.params import AdapterChoice, GenerationParams, ImageCondition
from braid.diffusion.pipelines.choice import PIPELINES, run_job
from braid.diffusion.pipelines.sampler_choice import SAMPLERS
from braid.diffusion.state import PipelineState
from braid.diffusion.state_io import StateError
from braid.diffusion.validation import resolve
from braid.tests.diffusion.fake_executor import Run, facts, run

SOUND = Waveform(torch.full((2, 6_000), 0.1), 16_000)
CLIP = torch.full((9, 128, 128, 3), 100, dtype=torch.uint8)
PICTURE = ImageCondition(image=torch.full((40, 30, 3), 50, dtype=torch.uint8))
NEEDED: dict[str, dict[str, Any]] = {
    "keyframe_interpolation": {"images": (PICTURE, replace(PICTURE, frame_index=8, strength=0.5))},
    "a2vid": {"waveform": SOUND},
    "retake": {"video": CLIP, "waveform": SOUND, "window": (0.1, 0.2)},
    "extend": {"video": CLIP, "waveform": SOUND, "num_frames": 17},
}


def job(pipeline: str, **changes: Any) -> Job:
    params = GenerationParams(prompt="a red circle", pipeline=pipeline, seed=3, num_inference_steps=3)
    return resolve(replace(params, **(NEEDED.get(pipeline, {}) | changes)), facts())


def finished(pipeline: str, **changes: Any) -> Run:
    return run(run_job(job(pipeline, **changes)))


def assert_same(ours: GenerationResult, other: GenerationResult) -> None:
    for a, b in (
        (ours.frames, other.frames),
        (ours.latents.video, other.latents.video),
        (ours.latents.audio, other.latents.audio),
        (ours.waveform and ours.waveform.samples, other.waveform and other.waveform.samples),
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("pipeline", "kinds"),
    [
        ("one_stage", ["encode_prompt", "denoise", "decode_audio", "decode_tile"]),
        ("two_stage", ["encode_prompt", "denoise", "upsample", "denoise", "decode_audio", "decode_tile"]),
        ("two_stage_hq", ["encode_prompt", "denoise", "upsample", "denoise", "decode_audio", "decode_tile"]),
        ("distilled", ["encode_prompt", "denoise", "upsample", "denoise", "decode_audio", "decode_tile"]),
        ("text_to_audio", ["encode_prompt", "denoise", "decode_audio"]),
        ("retake", ["encode_prompt", "encode_video", "encode_audio", "denoise", "decode_audio", "decode_tile"]),
        ("extend", ["encode_prompt", "encode_video", "encode_audio", "denoise", "decode_audio", "decode_tile"]),
        ("a2vid", ["encode_prompt", "encode_audio", "denoise", "upsample", "denoise", "decode_tile"]),
        (
            "keyframe_interpolation",
            ["encode_prompt", "encode_image", "denoise", "upsample", "encode_image", "denoise", "decode_audio",
             "decode_tile"],
        ),
    ],
)  # fmt: skip
def test_a_pipeline_asks_for_its_operations_in_order(pipeline: str, kinds: list[str]) -> None:
    assert finished(pipeline).kinds == kinds


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_goes_on_from_each_of_its_checkpoints_with_the_same_result(pipeline: str) -> None:
    whole = finished(pipeline)
    numbers = []
    for state in whole.states:
        again = run(run_job(job(pipeline), PipelineState.from_bytes(state.to_bytes())))
        assert_same(again.result, whole.result)
        numbers.append(len(again.of(Denoise)))
        assert not again.of(EncodePrompt)
    assert numbers == sorted(numbers, reverse=True)  # the later the state, the less is left to do
    assert numbers[0] == len(whole.of(Denoise))
    assert numbers[-1] == 0


def test_a_state_of_another_pipeline_is_refused() -> None:
    state = finished("one_stage").states[0]
    with pytest.raises(StateError, match="of pipeline 'one_stage', the job of 'two_stage'"):
        run_job(job("two_stage"), state)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_from_each_checkpoint_with_skipped_guidance_and_pictures(sampler: str) -> None:
    guidance = AudioVideo(Guidance(3.0, skip_step=1), Guidance(7.0, skip_step=2))
    changes: dict[str, Any] = {"sampler": sampler, "num_inference_steps": 5, "guidance": guidance, "images": (PICTURE,)}
    whole = finished("two_stage", **changes)
    for state in whole.states:
        again = run(run_job(job("two_stage", **changes), PipelineState.from_bytes(state.to_bytes())))
        assert_same(again.result, whole.result)


def test_the_sound_of_two_stages_is_that_of_the_first() -> None:
    whole = finished("two_stage_hq")
    last = whole.states[-1].results
    assert torch.equal(whole.of(DecodeAudio)[0].latents, last["stage_1.audio"])
    assert not torch.equal(last["stage_1.audio"], last["stage_2.audio"])


def test_the_second_stage_is_not_guided_and_has_its_own_strengths() -> None:
    choice = AdapterChoice(name="distilled", strengths=(0.25, 0.5))
    whole = finished("two_stage_hq", adapters=(AdapterChoice(name="style"),), distilled_adapter=choice)
    uses = {
        tuple((use.name, use.strength) for use in operation.adapters): operation.guidance.video.guidance_scale
        for operation in whole.of(Denoise)
    }
    assert uses == {
        (("style", 1.0), ("distilled", 0.25)): 3.0,
        (("style", 1.0), ("distilled", 0.5)): 1.0,
    }


def test_a_picture_of_frame_0_takes_its_place_and_others_are_appended() -> None:
    later = replace(PICTURE, frame_index=8, strength=0.5)
    whole = finished("one_stage", images=(PICTURE, later))
    stream = whole.of(Denoise)[0].streams.video
    assert stream.num_tokens == 2 * 16 + 16
    assert stream.denoise_mask[0, :, 0].tolist() == [0.0] * 16 + [1.0] * 16 + [0.5] * 16
    assert whole.result.latents.video is not None
    assert whole.result.latents.video.shape == (1, 4, 2, 4, 4)
    assert [(operation.height, operation.width) for operation in whole.of(EncodeImage)] == [(128, 128)] * 2


def test_keyframes_are_all_appended() -> None:
    stream = finished("keyframe_interpolation").of(Denoise)[0].streams.video
    assert stream.num_tokens == 2 * 4 + 2 * 4
    assert stream.denoise_mask[0, :8].min() == 1.0


def test_given_sound_is_frozen_in_both_stages_and_handed_back() -> None:
    whole = finished("a2vid")
    assert all(operation.streams.audio.is_frozen for operation in whole.of(Denoise))
    assert all(torch.equal(o.streams.audio.latents, torch.full((1, 9, 8), 0.125)) for o in whole.of(Denoise))
    assert whole.result.waveform is SOUND


def test_a_retake_keeps_what_lies_outside_its_window() -> None:
    whole = finished("retake")
    stream = whole.of(Denoise)[0].streams.video
    is_free = stream.denoise_mask[0, :, 0].reshape(2, 16)
    assert is_free.tolist() == [[0.0] * 16, [1.0] * 16]
    assert whole.result.latents.video is not None
    assert torch.equal(whole.result.latents.video[:, :, 0], torch.full((1, 4, 4, 4), 0.25))


def test_an_extension_begins_with_the_clip() -> None:
    whole = finished("extend")
    video, audio = whole.result.latents.video, whole.result.latents.audio
    assert video is not None and audio is not None
    assert torch.equal(video[:, :, :2], torch.full((1, 4, 2, 4, 4), 0.25))
    assert not torch.equal(video[:, :, 2], video[:, :, 1])
    assert torch.equal(audio[:, :, :9], torch.full((1, 2, 9, 4), 0.125))


def test_one_frame_is_a_picture_without_sound() -> None:
    whole = finished("one_stage", num_frames=1)
    assert whole.result.frames is not None and len(whole.result.frames) == 1
    assert whole.result.waveform is None
    assert all(operation.streams.audio is None for operation in whole.of(Denoise))


def test_steps_that_skip_guidance_ask_for_nothing() -> None:
    guidance = AudioVideo(Guidance(3.0, skip_step=1), Guidance(7.0, skip_step=1))
    assert len(finished("one_stage", num_inference_steps=5, guidance=guidance).of(Denoise)) == 3
    mixed = AudioVideo(Guidance(3.0, skip_step=1), Guidance(7.0))
    enabled = [o.is_enabled for o in finished("one_stage", num_inference_steps=5, guidance=mixed).of(Denoise)]
    assert enabled == [AudioVideo(step % 2 == 0, True) for step in range(5)]


def test_the_negative_prompt_is_encoded_only_where_guidance_needs_it() -> None:
    unguided = AudioVideo(Guidance(), Guidance())
    assert [o.prompt for o in finished("one_stage", guidance=unguided).of(EncodePrompt)] == ["a red circle"]
    assert [o.prompt for o in finished("distilled").of(EncodePrompt)] == ["a red circle"]
    for changes in ({}, {"guidance": unguided, "sampler": "euler_cfg_pp"}):
        told = finished("one_stage", negative_prompt="rain", **changes).of(EncodePrompt)
        assert [operation.prompt for operation in told] == ["a red circle", "rain"]


def test_a_prompt_is_rewritten_only_if_asked_for() -> None:
    whole = finished("one_stage", enhance_prompt=True)
    assert whole.kinds[:2] == ["rewrite_prompt", "encode_prompt"]
    assert whole.result.prompt == "a red circle, in more words"
    assert whole.of(EncodePrompt)[0].prompt == whole.result.prompt


def test_what_is_handed_over_is_not_made_again() -> None:
    ready = PromptEmbeds(torch.ones(1, 2, 8), torch.ones(1, 2, 4))
    noise = torch.ones(1, 4, 2, 4, 4)
    whole = finished(
        "one_stage",
        prompt_embeds=ready,
        negative_prompt_embeds=ready,
        sigmas=(1.0, 0.5, 0.0),
        latents=AudioVideo(noise, None),
        output_type="latents",
    )
    assert whole.kinds == ["denoise"]
    first = whole.of(Denoise)[0]
    assert first.sigma == 1.0 and len(whole.of(Denoise)) == 2
    assert torch.equal(first.streams.video.latents, torch.ones(1, 32, 4))
    assert not torch.equal(first.streams.audio.latents, torch.ones_like(first.streams.audio.latents))
    assert whole.result.frames is None and whole.result.waveform is None


def test_given_noise_is_drawn_in_the_order_of_the_stages() -> None:
    draws = [torch.full((1, 8, 4), 1.0), torch.full((1, 9, 8), 2.0), torch.full((1, 32, 4), 3.0)]
    draws.append(torch.full((1, 9, 8), 4.0))
    whole = finished("two_stage", noise=lambda: RecordedNoise(draws))
    assert torch.equal(whole.of(Denoise)[0].streams.video.latents, draws[0])
    assert torch.equal(whole.of(Denoise)[0].streams.audio.latents, draws[1])
    assert int(whole.states[-1].noise.initial) == 4


def test_progress_is_told_step_by_step() -> None:
    told = [(item.stage, item.step, item.num_steps) for item in finished("two_stage").progress]
    assert told == [
        ("encode_prompt", 0, 1), ("stage_1", 0, 3), ("stage_1", 1, 3), ("stage_1", 2, 3), ("stage_1", 3, 3),
        ("upsampled", 0, 1), ("stage_2", 0, 3), ("stage_2", 1, 3), ("stage_2", 2, 3), ("stage_2", 3, 3),
        ("decode_audio", 0, 1), ("decode", 0, 1), ("decode", 1, 2),
    ]  # fmt: skip


def test_other_seeds_give_other_films() -> None:
    one, other = finished("one_stage"), finished("one_stage", seed=4)
    assert one.result.latents.video is not None and other.result.latents.video is not None
    assert not torch.equal(one.result.latents.video, other.result.latents.video)
    assert (one.result.seed, other.result.seed) == (3, 4)
