"""The Python face: from a prompt to a file and back, on a toy checkpoint with random weights."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid import LLM, DiffGenerator, SamplingParams
from braid.diffusion.arguments import ARGUMENTS
from braid.diffusion.generation import GeneratedMedia
from braid.diffusion.params import GenerationParams, ImageCondition
from braid.errors import BraidError, CannotFit, InvalidRequest, NotFound
from braid.llm_core.engine.failure import RequestFailed
from braid.multimodal.images import load_image
from braid.multimodal.sound import load_sound
from braid.multimodal.video_reader import read_video
from braid.tests.diffusion.film_files import write_film_files

PROMPT = "a red fox"
SMALL: dict[str, Any] = {"pipeline": "one_stage", "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film_files(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[DiffGenerator]:
    with DiffGenerator.from_pretrained(
        folder / "model.safetensors",
        upsampler=folder / "upsampler.safetensors",
        distilled_lora=folder / "distilled.safetensors",
        device="cpu",
        num_threads=2,
        memory_budget_bytes=1 << 30,
    ) as generator:
        yield generator


@pytest.fixture(scope="module")
def film(generator: DiffGenerator) -> GeneratedMedia:
    """By the best pipeline that the checkpoint has all parts for."""
    return generator.generate(PROMPT, seed=1, frame_rate=23.976)


def bits(media: GeneratedMedia) -> bytes:
    parts = [part.tobytes() for part in (media.frames, media.audio) if part is not None]
    return b"".join([*parts, *(latents.numpy().tobytes() for latents in media.latents.present())])


def blocks(frames: Any) -> Any:
    """Means of 8x8 pixels: (F, H/8, W/8, 3)."""
    num_frames, height, width, _ = frames.shape
    return frames.reshape(num_frames, height // 8, 8, width // 8, 8, 3).mean((2, 4))


def usage(generator: DiffGenerator) -> Any:
    return LLM(engine=generator.engine).stats()["memory"]["by_owner"]


# -- what a generation gives -------------------------------------------------------------------------------------------


def test_a_film_has_frames_sound_and_times(film: GeneratedMedia) -> None:
    assert film.frames is not None and film.audio is not None
    assert (film.frames.shape, film.frames.dtype) == ((9, 64, 64, 3), np.uint8)
    assert (film.audio.shape[0], film.audio.dtype, film.sample_rate) == (2, np.float32, 48_000)
    assert abs(film.audio.shape[1] / 48_000 - 9 / 23.976) < 0.1
    assert (film.fps, film.seed, film.prompt) == (23.976, 1, PROMPT)
    assert list(film.timings) == ["encode_prompt", "stage_1", "upsampled", "stage_2", "decode_audio", "decode"]
    assert all(seconds > 0 for seconds in film.timings.values())


def test_a_saved_film_decodes_to_its_frames_rate_and_sound(film: GeneratedMedia, tmp_path: Path) -> None:
    clip = read_video(film.save(tmp_path / "x.mp4"))
    assert film.frames is not None
    assert tuple(clip.frames.shape) == film.frames.shape
    assert (clip.frame_rate.numerator, clip.frame_rate.denominator) == (24000, 1001)
    assert clip.sound is not None and clip.sound.sample_rate == 48_000
    # Random weights make noise, whose colours 4:2:0 halves: blocks of pixels are what it keeps.
    error = np.abs(blocks(clip.frames.numpy())[:, None] - blocks(film.frames)[None]).mean((2, 3, 4))
    assert error.diagonal().max() < 4
    assert error.argmin(1).tolist() == list(range(9))


def test_a_film_saves_as_animation_and_its_sound_as_wav(film: GeneratedMedia, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("x.gif", "x.webp"):
        with Image.open(film.save(tmp_path / name)) as image:
            assert image.n_frames == 9  # type: ignore[attr-defined]
    sound = load_sound(film.save(str(tmp_path / "x.wav")))
    assert film.audio is not None
    assert np.abs(sound.samples.numpy() - film.audio).max() < 2 / 32768


def test_a_picture_is_one_silent_frame_and_png_keeps_every_bit(generator: DiffGenerator, tmp_path: Path) -> None:
    picture = generator.generate(PROMPT, num_frames=1, **SMALL)
    assert picture.frames is not None and picture.frames.shape == (1, 64, 64, 3)
    assert picture.audio is None and picture.sample_rate is None
    assert np.array_equal(load_image(picture.save(tmp_path / "x.png")).numpy(), picture.frames[0])


def test_sound_alone_has_no_frames(generator: DiffGenerator, tmp_path: Path) -> None:
    sound = generator.generate(PROMPT, pipeline="text_to_audio", seed=1)
    assert sound.frames is None and sound.audio is not None
    assert load_sound(sound.save(tmp_path / "x.wav")).sample_rate == 48_000
    with pytest.raises(InvalidRequest, match=r"sound alone; its suffix must be one of \.wav"):
        sound.save(tmp_path / "x.mp4")


def test_latents_alone_cannot_be_saved(generator: DiffGenerator, tmp_path: Path) -> None:
    media = generator.generate(PROMPT, output_type="latents", **SMALL)
    assert media.frames is None and media.latents.video is not None
    with pytest.raises(InvalidRequest, match="only latents"):
        media.save(tmp_path / "x.mp4")


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    generator: DiffGenerator, film: GeneratedMedia
) -> None:
    assert bits(generator.generate(PROMPT, seed=1, frame_rate=23.976)) == bits(film)
    assert bits(generator.generate(PROMPT, seed=2, frame_rate=23.976)) != bits(film)


def test_without_a_seed_one_is_drawn_and_told(generator: DiffGenerator) -> None:
    first = generator.generate(PROMPT, pipeline="one_stage", output_type="latents")
    again = generator.generate(PROMPT, pipeline="one_stage", output_type="latents", seed=first.seed)
    assert bits(first) == bits(again)


def test_the_engine_writes_the_file_that_save_would_and_the_film_is_the_same(
    generator: DiffGenerator, film: GeneratedMedia, tmp_path: Path
) -> None:
    written = generator.generate(PROMPT, seed=1, frame_rate=23.976, path=tmp_path / "engine.mp4")
    assert bits(written) == bits(film)
    assert written.path == tmp_path / "engine.mp4"
    assert written.path.read_bytes() == film.save(tmp_path / "face.mp4").read_bytes()
    assert list(written.timings)[-1] == "write_file"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_its_frames_a_film_has_the_same_file_and_sound(
    generator: DiffGenerator, film: GeneratedMedia, tmp_path: Path
) -> None:
    lean = generator.generate(PROMPT, seed=1, frame_rate=23.976, path=tmp_path / "lean.mp4", keep_frames=False)
    assert lean.frames is None and lean.frames_shape == (9, 64, 64, 3)
    assert lean.audio is not None and film.audio is not None and np.array_equal(lean.audio, film.audio)
    assert (tmp_path / "lean.mp4").read_bytes() == film.save(tmp_path / "whole.mp4").read_bytes()
    assert lean.save(tmp_path / "x.wav").read_bytes() == film.save(tmp_path / "y.wav").read_bytes()
    with pytest.raises(InvalidRequest, match=r"keep_frames=False: the frames are in .*lean\.mp4 alone"):
        lean.save(tmp_path / "z.mp4")


def test_a_film_cancelled_while_it_is_written_leaves_no_file(generator: DiffGenerator, tmp_path: Path) -> None:
    generation = generator.start(PROMPT, seed=1, num_frames=17, path=tmp_path / "x.mp4", keep_frames=False)
    for update in generation:
        if update.stage == "decode":
            generation.cancel()
            break
    with pytest.raises(RequestFailed, match="cancelled"):
        generation.result()
    assert list(tmp_path.iterdir()) == []


# -- on the way --------------------------------------------------------------------------------------------------------


def test_updates_tell_stages_steps_and_previews_that_change_no_bit(
    generator: DiffGenerator, film: GeneratedMedia
) -> None:
    generation = generator.start(PROMPT, seed=1, frame_rate=23.976, preview_every=1)
    updates = list(generation)
    assert list(dict.fromkeys(update.stage for update in updates)) == list(film.timings)
    steps = [update.step for update in updates if update.stage == "stage_1" and update.preview is None]
    assert steps == [0, 1, 2]
    previews = [update.preview for update in updates if update.preview is not None]
    sizes = [preview.shape for preview in previews]
    assert sizes[0] == (32, 32, 3) and sizes[-1] == (64, 64, 3)
    assert not np.array_equal(previews[0], previews[1])
    assert any(update.stage_left_s is not None for update in updates)
    assert all(a.elapsed_s <= b.elapsed_s for a, b in pairwise(updates))
    assert bits(generation.result()) == bits(film)


def test_the_last_preview_is_the_middle_of_the_film(generator: DiffGenerator) -> None:
    """Of one latent frame, so that the whole film is what the preview decodes."""
    generation = generator.start(PROMPT, num_frames=1, preview_every=1, **SMALL)
    previews = [update.preview for update in generation if update.preview is not None]
    frames = generation.result().frames
    assert frames is not None and len(previews) == 2
    assert np.array_equal(previews[-1], frames[0])


def test_no_previews_unless_asked_for(generator: DiffGenerator) -> None:
    assert all(update.preview is None for update in generator.start(PROMPT, **SMALL))


def test_a_cancelled_generation_says_so_and_frees_what_it_held(generator: DiffGenerator, film: GeneratedMedia) -> None:
    before = usage(generator)
    generation = generator.start(PROMPT, seed=1, frame_rate=23.976, num_inference_steps=500)
    for update in generation:
        if update.step == 1:
            generation.cancel()
            break
    with pytest.raises(RequestFailed, match="cancelled") as caught:
        generation.result()
    assert caught.value.code == "request_cancelled"
    assert usage(generator) == before
    assert bits(generator.generate(PROMPT, seed=1, frame_rate=23.976)) == bits(film)


def test_leaving_an_iteration_or_a_context_early_cancels(generator: DiffGenerator) -> None:
    with generator.start(PROMPT, num_inference_steps=900, **SMALL) as first:
        pass
    second = generator.start(PROMPT, num_inference_steps=900, **SMALL)
    next(iter(second))
    for generation in (first, second):
        with pytest.raises(RequestFailed, match="cancelled"):
            generation.result()


# -- several, awaited, beside chat -------------------------------------------------------------------------------------


def test_a_list_of_prompts_gives_what_each_would_alone(generator: DiffGenerator) -> None:
    together = generator.generate(["a fox", "a hare"], output_type="latents", **SMALL)
    alone = [generator.generate(prompt, output_type="latents", **SMALL) for prompt in ("a fox", "a hare")]
    assert [bits(media) for media in together] == [bits(media) for media in alone]
    assert bits(together[0]) != bits(together[1])


def test_one_bad_prompt_of_a_list_starts_none(generator: DiffGenerator) -> None:
    with pytest.raises(BraidError, match="prompt is empty"):
        generator.generate(["a fox", " "], **SMALL)
    assert LLM(engine=generator.engine).stats()["requests"]["open"] == 0


def test_generations_can_be_awaited_and_cancelled_as_coroutines(generator: DiffGenerator) -> None:
    async def run() -> GeneratedMedia:
        endless = asyncio.ensure_future(generator.generate_async(PROMPT, num_inference_steps=900, **SMALL))
        await asyncio.sleep(0.05)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return await generator.generate_async(PROMPT, output_type="latents", **SMALL)

    alone = generator.generate(PROMPT, output_type="latents", **SMALL)
    assert bits(asyncio.run(run())) == bits(alone)
    assert LLM(engine=generator.engine).stats()["requests"]["open"] == 0


def test_chat_and_film_share_one_engine_and_change_no_bit_of_each_other(
    generator: DiffGenerator, film: GeneratedMedia
) -> None:
    llm = LLM(engine=generator.engine)
    sampling = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    alone = llm.generate("a b c", sampling).text
    generation = generator.start(PROMPT, seed=1, frame_rate=23.976)
    answers: list[str] = []
    chat = threading.Thread(target=lambda: answers.extend(llm.generate("a b c", sampling).text for _ in range(3)))
    chat.start()
    media = generation.result()
    chat.join()
    assert answers == [alone] * 3
    assert bits(media) == bits(film)


# -- what is handed over -----------------------------------------------------------------------------------------------


def test_pictures_are_taken_as_files_arrays_and_tensors(generator: DiffGenerator, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "first.png")
    given = {
        "file": [str(tmp_path / "first.png")],
        "path": tmp_path / "first.png",
        "array": [(pixels, 0)],
        "tensor": (torch.from_numpy(pixels), 0, 1.0),
        "pillow": [Image.fromarray(pixels)],
        "condition": [ImageCondition(image=torch.from_numpy(pixels))],
    }
    found = {
        name: bits(generator.generate(PROMPT, images=images, output_type="latents", **SMALL))
        for name, images in given.items()
    }
    assert len(set(found.values())) == 1
    assert found["file"] != bits(generator.generate(PROMPT, output_type="latents", **SMALL))


def test_a_saved_film_can_be_retaken_and_extended(
    generator: DiffGenerator, film: GeneratedMedia, tmp_path: Path
) -> None:
    path = film.save(tmp_path / "x.mp4")
    retaken = generator.generate(PROMPT, pipeline="retake", video=path, window=(0.1, 0.3), seed=2)
    extended = generator.generate(PROMPT, pipeline="extend", video=film.frames, num_frames=17, seed=2)
    assert retaken.frames is not None and len(retaken.frames) == 9
    assert extended.frames is not None and len(extended.frames) == 17


def test_guidance_changes_what_it_names_and_keeps_the_rest_of_the_preset(generator: DiffGenerator) -> None:
    plain = generator.generate(PROMPT, output_type="latents", **SMALL)
    preset = generator.model.facts.presets["one_stage"].guidance
    assert preset.video is not None
    same = {"video": {"guidance_scale": preset.video.guidance_scale}}
    assert bits(generator.generate(PROMPT, output_type="latents", guidance=same, **SMALL)) == bits(plain)
    other = {"video": {"guidance_scale": 9.0}}
    assert bits(generator.generate(PROMPT, output_type="latents", guidance=other, **SMALL)) != bits(plain)


def test_adapters_come_and_go_and_the_base_stays_bit_for_bit(generator: DiffGenerator, folder: Path) -> None:
    def made(**params: Any) -> bytes:
        return bits(generator.generate(PROMPT, output_type="latents", **SMALL, **params))

    before = made()
    assert generator.add_adapter(folder / "style.safetensors", strength=0.8) == "style"
    assert generator.adapters == ("distilled", "style")
    styled = made()
    assert styled != before
    assert made(adapters=[("style", 0.8)]) == made(adapters={"style": (0.8,)}) == styled
    assert made(adapters=[]) == before
    generator.remove_adapter("style")
    assert made() == before
    with pytest.raises(InvalidRequest, match="'style'; load it first"):
        made(adapters=["style"])
    with pytest.raises(NotFound, match="distilled"):
        generator.remove_adapter("style")


def test_the_distilled_adapter_has_a_strength_in_each_stage(generator: DiffGenerator, film: GeneratedMedia) -> None:
    preset = generator.generate(PROMPT, seed=1, frame_rate=23.976, distilled_adapter=("distilled", (0.25, 0.5)))
    other = generator.generate(PROMPT, seed=1, frame_rate=23.976, distilled_adapter=("distilled", (0.25, 1.0)))
    assert bits(preset) == bits(film) != bits(other)


# -- what is refused ---------------------------------------------------------------------------------------------------

PIXELS = np.zeros((8, 8, 3), np.uint8)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": 5}, "prompt=5 must be text"),
    ({"prompt": None}, "prompt=None must be text"),
    ({"prompt": []}, "empty list"),
    ({"preview_every": 1}, "no argument 'preview_every'"),
    ({"num_frame": 9}, "did you mean num_frames"),
    ({"guidance_scale": 3.0}, "did you mean guidance"),
    ({"zzz": 1}, "there are: negative_prompt, pipeline"),
    ({"height": 65}, "height=65 must be a multiple of 64; the nearest are 64 and 128"),
    ({"width": "64"}, "width='64' must be a whole number"),
    ({"height": True}, "height=True must be a whole number"),
    ({"num_frames": 10}, "num_frames=10 must be 8k"),
    ({"num_frames": 0}, "num_frames=0 must be 8k"),
    ({"frame_rate": 0}, "frame_rate=0"),
    ({"frame_rate": "fast"}, "frame_rate='fast' must be a number"),
    ({"seed": 1.5}, "seed=1.5 must be a whole number"),
    ({"num_inference_steps": 0}, "num_inference_steps=0 must be from 1"),
    ({"sampler": "magic"}, "sampler='magic' must be one of"),
    ({"pipeline": "three_stage"}, "pipeline='three_stage' must be one of"),
    ({"negative_prompt": 7}, "negative_prompt=7 must be text"),
    ({"output_type": "gif"}, "output_type='gif' must be one of"),
    ({"generate_audio": "yes"}, "generate_audio='yes' must be True or False"),
    ({"sigmas": [0.5, 1.0]}, "sigmas="),
    ({"sigmas": "1,0"}, "sigmas='1,0' must be a list of numbers"),
    ({"guidance": 3.0}, "guidance is a float"),
    ({"guidance": {"video": {"scale": 3}}}, "guidance.video.scale is none of guidance_scale"),
    ({"guidance": {"video": {"stg_scale": 1.0, "stg_blocks": [99]}}}, "blocks are 0 to 1"),
    ({"images": [(PIXELS, 9)]}, "frame_index=9 must be from 0 to 8"),
    ({"images": [(PIXELS, 0, 2.0)]}, "strength=2.0 must be from 0"),
    ({"images": ["/no/such.png"]}, "/no/such.png cannot be read"),
    ({"images": [3]}, "images.0 is a int"),
    ({"images": [PIXELS.astype(float)]}, "must be .H, W, 3. uint8"),
    ({"video": np.zeros((9, 64, 64, 3), np.uint8)}, "video is of no use to"),
    ({"pipeline": "retake"}, "pipeline='retake' needs video"),
    ({"pipeline": "a2vid"}, "needs waveform"),
    ({"waveform": (np.zeros((3, 9), np.float32), 48_000)}, "1 or 2 channels"),
    ({"adapters": ["nobody"]}, "no adapter 'nobody'; load it first"),
    ({"adapters": [("distilled", (1.0, 1.0, 1.0))]}, "has 3 strengths; 1 or 2"),
    ({"adapters": "distilled"}, "adapters is a str"),
    ({"latents": (torch.zeros(1, 8, 2, 2, 2), None)}, "latents.video has shape"),
    ({"prompt_embeds": (torch.full((1, 16, 32), float("nan")), torch.zeros(1, 16, 16))}, "not finite"),
    ({"noise": 5}, "noise is a int"),
    ({"window": (1.0,)}, "window="),
    ({"path": "x.txt"}, r"its suffix must be one of \.gif, \.webp, \.mp4, \.wav"),
    ({"path": "/no/such/folder/x.mp4"}, "there is no folder"),
    ({"path": "x.png"}, "9 frames"),
    ({"path": 5}, "path is a int"),
    ({"path": "x.mp4", "output_type": "latents"}, "nothing to write"),
    ({"path": "x.mp4", "prompt": ["a", "b"]}, "list of prompts"),
    ({"keep_frames": False, "prompt": ["a", "b"]}, "list of prompts"),
    ({"keep_frames": False}, "keep_frames=False needs a path"),
    ({"keep_frames": 0, "path": "x.mp4"}, "keep_frames=0 must be True or False"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_is_refused_at_once(generator: DiffGenerator, given: dict[str, Any], message: str) -> None:
    before = generator.engine.scheduler.journal.next_number  # type: ignore[attr-defined]
    with pytest.raises(BraidError, match=message) as caught:
        generator.generate(**({"prompt": PROMPT} | given))
    assert not isinstance(caught.value, RequestFailed), "found by the engine, not before it"
    assert caught.value.status == 400
    assert generator.engine.scheduler.journal.next_number == before  # type: ignore[attr-defined]


def test_after_all_that_the_same_film_is_made(generator: DiffGenerator, film: GeneratedMedia) -> None:
    assert bits(generator.generate(PROMPT, seed=1, frame_rate=23.976)) == bits(film)


def test_a_film_that_never_fits_is_refused_with_both_numbers(generator: DiffGenerator) -> None:
    with pytest.raises(CannotFit, match=r"needs [\d,]+ bytes and the memory budget has room for [\d,]+") as caught:
        generator.generate(PROMPT, height=4096, width=4096, num_frames=241)
    assert caught.value.needed_bytes > caught.value.budget_bytes > 0


def test_the_table_of_arguments_is_that_of_the_params() -> None:
    fields = set(GenerationParams.__dataclass_fields__)
    assert [argument.name for argument in ARGUMENTS] == list(dict.fromkeys(argument.name for argument in ARGUMENTS))
    assert {argument.name for argument in ARGUMENTS} == fields - {"prompt"}


def test_the_documentation_lists_every_argument() -> None:
    table = (Path(__file__).parents[2] / "docs" / "video.md").read_text().split("## Parameters")[1]
    assert not [argument.name for argument in ARGUMENTS if f"`{argument.name}`" not in table]
