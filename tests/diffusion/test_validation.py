"""Every mistake has its own error, before any work: the field, the value, and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from braid.diffusion.guidance import Guidance
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.geometry import Geometry
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.video_geometry import VideoGeometry
from braid.diffusion.operations import PromptEmbeds, Waveform
from braid.diffusion.params import AdapterChoice, GenerationParams, ImageCondition
from braid.diffusion.validation import resolve
from braid.errors import BraidError
from braid.tests.diffusion.fake_executor import facts

NAN = float("nan")
PICTURE = torch.zeros(8, 8, 3, dtype=torch.uint8)
EMBEDS = PromptEmbeds(torch.ones(1, 2, 8), torch.ones(1, 2, 4))


def params(**changes: Any) -> GenerationParams:
    return replace(GenerationParams(prompt="x", pipeline="two_stage"), **changes)


def image(**changes: Any) -> ImageCondition:
    return replace(ImageCondition(image=PICTURE), **changes)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "  "}, "prompt", "prompt is empty"),
    ({"pipeline": "film"}, "pipeline", "'film' must be one of one_stage"),
    ({"height": 100}, "height", "height=100 must be a multiple of 64; the nearest are 64 and 128"),
    ({"width": 720}, "width", "width=720 must be a multiple of 64; the nearest are 704 and 768"),
    ({"width": 0}, "width", "the nearest are 64 and 128"),
    ({"width": 64.0}, "width", "width=64.0 must be a multiple"),
    ({"pipeline": "one_stage", "height": 50}, "height", "multiple of 32; the nearest are 32 and 64"),
    ({"num_frames": 10}, "num_frames", "num_frames=10 must be 8k\\+1; the nearest are 9 and 17"),
    ({"num_frames": 0}, "num_frames", "the nearest are 1 and 9"),
    ({"num_frames": True}, "num_frames", "must be 8k"),
    ({"frame_rate": 0.0}, "frame_rate", "from 1 to 240"),
    ({"frame_rate": NAN}, "frame_rate", "frame_rate=nan"),
    ({"frame_rate": 1000}, "frame_rate", "frame_rate=1000"),
    ({"seed": 2**70}, "seed", "64 bits"),
    ({"num_inference_steps": 0}, "num_inference_steps", "from 1 to 1000"),
    ({"sampler": "ddim"}, "sampler", "'ddim' must be one of res_2s"),
    ({"sigmas": (0.5, 0.7, 0.0)}, "sigmas", "each below the one before"),
    ({"sigmas": (NAN, 0.0)}, "sigmas", "sigmas=\\[nan"),
    ({"stage_2_sigmas": (0.5,)}, "stage_2_sigmas", "two or more"),
    ({"output_type": "mp4"}, "output_type", "frames, latents"),
    ({"images": (image(frame_index=9),), "num_frames": 9}, "images.0.frame_index", "from 0 to 8"),
    ({"images": (image(), image(strength=1.5))}, "images.1.strength", "strength=1.5 must be from 0"),
    ({"images": (image(strength=NAN),)}, "images.0.strength", "strength=nan"),
    ({"images": (image(crf=60),)}, "images.0.crf", "from 0 \\(none\\) to 51"),
    ({"images": (ImageCondition(),)}, "images.0", "exactly one of image and latents"),
    ({"images": (image(image=PICTURE.float()),)}, "images.0.image", "uint8"),
    ({"images": (image(image=None, latents=(torch.zeros(1),)),)}, "images.0.latents", "one for each stage"),
    ({"guidance": AudioVideo(Guidance(NAN), None)}, "guidance.video.guidance_scale", "nan"),
    ({"guidance": AudioVideo(None, Guidance(skip_step=-1))}, "guidance.audio.skip_step", "0 or more"),
    ({"guidance": AudioVideo(Guidance(stg_blocks=(48,)), None)}, "guidance.video.stg_blocks", "0 to 31"),
    ({"pipeline": "distilled", "guidance": AudioVideo(Guidance(), None)}, "guidance", "takes none"),
    ({"adapters": (AdapterChoice(name="lost"),)}, "adapters", "no adapter 'lost'"),
    ({"adapters": (AdapterChoice(name="style", strengths=(1.0, 1.0, 1.0)),)}, "adapters", "3 strengths; 1 or 2"),
    ({"adapters": (AdapterChoice(name="style", strengths=(NAN,)),)}, "adapters", "finite"),
    ({"prompt_embeds": replace(EMBEDS, video=torch.ones(1, 2, 9))}, "prompt_embeds.video", "\\(1, tokens, 8\\)"),
    ({"prompt_embeds": replace(EMBEDS, audio=None)}, "prompt_embeds.audio", "is needed"),
    ({"prompt_embeds": replace(EMBEDS, audio=torch.full((1, 2, 4), NAN))}, "prompt_embeds.audio", "not finite"),
    ({"latents": AudioVideo(torch.zeros(1, 4, 2, 4, 4), None)}, "latents.video", "must be \\(1, 4, 2, 2, 2\\)"),
    ({"pipeline": "a2vid"}, "waveform", "needs waveform"),
    ({"pipeline": "a2vid", "waveform": Waveform(torch.zeros(0), 1)}, "waveform", "1 or 2 channels"),
    ({"pipeline": "a2vid", "waveform": Waveform(torch.full((1, 9), NAN), 9)}, "waveform", "not finite"),
    ({"pipeline": "keyframe_interpolation"}, "images", "needs images"),
    ({"pipeline": "extend"}, "video", "needs video"),
    ({"pipeline": "retake", "video": torch.zeros(9, 64, 64, 3, dtype=torch.uint8)}, "window", "needs window"),
    ({"video": torch.zeros(9, 128, 128, 3, dtype=torch.uint8)}, "video", "of no use"),
    (
        {"pipeline": "retake", "video": torch.zeros(9, 64, 64, 3, dtype=torch.uint8), "window": (3.0, 4.0)},
        "window",
        "which ends at 0.375",
    ),
    (
        {"pipeline": "retake", "video": torch.zeros(9, 60, 64, 3, dtype=torch.uint8), "window": (0.0, 0.1)},
        "height",
        "height=60",
    ),
    ({"pipeline": "text_to_audio", "generate_audio": False}, "generate_audio", "about sound"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "words"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_request_is_refused_with_the_field_and_what_is_right(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(BraidError, match=words) as caught:
        resolve(params(**changes), facts())
    assert caught.value.param == field
    assert caught.value.status == 400


LACKING: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: facts(has_upsampler=False), {}, "without a latent upsampler"),
    (lambda: facts(parts=frozenset(Part) - {Part.VIDEO_DECODER}), {}, "no video decoder"),
    (lambda: facts(parts=frozenset(Part) - {Part.VOCODER}), {}, "no vocoder"),
    (lambda: facts(parts=frozenset(Part) - {Part.VIDEO_ENCODER}), {"images": (image(),)}, "no video encoder"),
    (lambda: facts(has_language_model=False), {}, "give prompt_embeds"),
    (lambda: facts(has_language_model=False), {"prompt_embeds": EMBEDS}, "give negative_prompt_embeds"),
    (lambda: facts(has_audio=False), {"generate_audio": True}, "no audio stream"),
    (lambda: facts(has_video=False), {}, "must be 'text_to_audio'"),
]


@pytest.mark.parametrize(("lacking", "changes", "words"), LACKING, ids=[words for *_, words in LACKING])
def test_what_the_checkpoint_lacks_is_said_before_any_work(
    lacking: Callable[[], Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BraidError, match=words):
        resolve(params(**changes), lacking())


def test_latents_alone_need_no_decoder() -> None:
    bare = facts(parts=frozenset({Part.TRANSFORMER}), has_language_model=False)
    job = resolve(params(prompt_embeds=EMBEDS, negative_prompt_embeds=EMBEDS, output_type="latents"), bare)
    assert (job.height, job.width, job.num_frames) == (128, 128, 9)


def test_defaults_are_those_of_the_checkpoint() -> None:
    job = resolve(GenerationParams(prompt="x"), facts(distilled_adapter="distilled"))
    assert job.pipeline == "two_stage_hq"
    assert job.sampler == "res_2s"
    assert job.num_inference_steps == 3
    assert job.crf == 33
    assert job.has_audio
    assert resolve(GenerationParams(prompt="x"), facts()).pipeline == "one_stage"
    assert resolve(GenerationParams(prompt="x"), facts(has_video=False)).pipeline == "text_to_audio"
    assert resolve(GenerationParams(prompt="x"), facts()).seed != resolve(GenerationParams(prompt="x"), facts()).seed


def test_the_length_of_the_sound_is_rounded_half_to_even() -> None:
    lengths = {
        (num_frames, rate): resolve(params(num_frames=num_frames, frame_rate=rate), facts()).num_audio_tokens
        for num_frames, rate in ((121, 24.0), (9, 24.0), (17, 25.0), (1, 24.0), (97, 23.976))
    }
    assert lengths == {(121, 24.0): 126, (9, 24.0): 9, (17, 25.0): 17, (1, 24.0): 1, (97, 23.976): 101}


def test_sizes_follow_from_the_checkpoints_own_factors() -> None:
    other = facts(geometry=Geometry(VideoGeometry(time_factor=4, space_factor=16)))
    job = resolve(params(height=96, width=64, num_frames=5), other)
    assert (job.grid().frames, job.grid().height, job.grid().width) == (2, 6, 4)
    with pytest.raises(BraidError, match="multiple of 32; the nearest are 32 and 64"):
        resolve(params(height=48), other)
    with pytest.raises(BraidError, match=r"4k\+1; the nearest are 5 and 9"):
        resolve(params(num_frames=7), other)


def test_a_strength_of_no_distilled_adapter_leaves_the_stage_without_it() -> None:
    choice = AdapterChoice(name="distilled", strengths=(0.0, 1.0))
    job = resolve(params(distilled_adapter=choice, adapters=(AdapterChoice(name="style"),)), facts())
    assert [[use.name for use in uses] for uses in job.adapters] == [["style"], ["style", "distilled"]]
