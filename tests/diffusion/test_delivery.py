"""What stands around a job's pipeline."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.diffusion.delivery import Delivery, WriteFile, _middle, delivered
from braid.diffusion.job import GenerationResult, Job
from braid.diffusion.latents import patchify_video
from braid.diffusion.media_files import writing
from braid.diffusion.operations import DecodeAudio, DecodedFrames, DecodeFrames, Waveform
from braid.diffusion.params import GenerationParams
from braid.diffusion.pipelines.choice import run_job
from braid.diffusion.positions import VideoGrid
from braid.diffusion.validation import resolve
from braid.llm_core.pipeline import Checkpoint, Progress
from braid.multimodal.video_reader import read_video
from braid.tests.diffusion.fake_executor import answer_to, facts

NUM_GROUPS = 6
NUM_FRAMES = 8 * (NUM_GROUPS - 1) + 1
SOUND = Waveform(torch.rand(2, 40_000, generator=torch.Generator().manual_seed(2)) - 0.5, 24_000)


@pytest.mark.parametrize(("num_frames", "middle"), [(1, 0), (2, 1), (3, 1), (16, 8)])
def test_a_preview_is_of_the_middle_latent_frame_without_what_was_appended(num_frames: int, middle: int) -> None:
    grid = VideoGrid(frames=num_frames, height=2, width=3, time_factor=8, height_factor=32, width_factor=32)
    latents = torch.randn(1, 4, num_frames, 2, 3, generator=torch.Generator().manual_seed(1))
    appended = torch.full((1, 6, 4), 9.0)
    found = _middle(torch.cat([patchify_video(latents), appended], 1), grid)
    assert torch.equal(found, latents[:, :, middle : middle + 1])


# -- into a file -------------------------------------------------------------------------------------------------------


@dataclass
class Driver:
    """Carries out a delivery; counts the groups of frames that somebody still holds in front of each operation."""

    fails_at: str = ""
    kinds: list[str] = field(default_factory=list)
    most_alive: int = 0
    state: Any = None
    _groups: list[weakref.ref[Tensor]] = field(default_factory=list)

    def run(
        self, delivery: Delivery, state: Any = None, *, num_operations: int | None = None
    ) -> GenerationResult | None:
        """To its end, or closed after so many operations."""
        pipeline = delivered(run_job)(delivery, state)
        answer: Any = None
        while num_operations is None or len(self.kinds) < num_operations:
            try:
                asked = pipeline.throw(answer) if isinstance(answer, OSError) else pipeline.send(answer)
            except StopIteration as stop:
                result: GenerationResult = stop.value
                return result
            answer = None
            answer = self._answer(asked)
        pipeline.close()
        return None

    def _answer(self, asked: Any) -> Any:
        if isinstance(asked, Progress):
            return None
        if isinstance(asked, Checkpoint):
            self.state = asked.state
            return None
        self.most_alive = max(self.most_alive, sum(group() is not None for group in self._groups))
        self.kinds.append(asked.kind)
        if asked.kind == self.fails_at and self.kinds.count(asked.kind) == 3:
            return OSError("the third is one too many")
        return self._carried_out(asked)

    def _carried_out(self, asked: Any) -> Any:
        if isinstance(asked, WriteFile):
            for _ in asked.work:
                pass
            return None
        if isinstance(asked, DecodeAudio):
            return SOUND
        if isinstance(asked, DecodeFrames):
            generator = torch.Generator().manual_seed(asked.group)
            shape = (8 if asked.group else 1, 16, 24, 3)
            frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            self._groups.append(weakref.ref(frames))
            return DecodedFrames(frames, None, NUM_GROUPS)
        return answer_to(asked)


def job(pipeline: str = "one_stage", **changes: Any) -> Job:
    params = GenerationParams(prompt="a red circle", pipeline=pipeline, seed=3, num_inference_steps=1)
    return resolve(replace(params, num_frames=NUM_FRAMES, **changes), facts())


def test_frames_go_into_the_file_before_the_next_ones_are_decoded(tmp_path: Path) -> None:
    driver = Driver()
    result = driver.run(Delivery(replace(job(), keep_frames=False), tmp_path / "x.mp4"))
    told = driver.kinds[driver.kinds.index("decode_audio") + 1 :]
    assert told == [*["decode_tile", "write_file"] * NUM_GROUPS, "write_file"]
    assert result is not None and result.frames is None and result.waveform is SOUND
    assert result.frames_shape == (NUM_FRAMES, 16, 24, 3)
    clip = read_video(tmp_path / "x.mp4")
    assert len(clip.frames) == NUM_FRAMES and clip.sound is not None


@pytest.mark.parametrize("is_kept", [False, True])
def test_no_more_than_a_group_of_frames_is_held_beside_those_that_are_kept(tmp_path: Path, is_kept: bool) -> None:
    driver = Driver()
    result = driver.run(Delivery(replace(job(), keep_frames=is_kept), tmp_path / "x.mp4"))
    assert result is not None and driver.most_alive == 1
    frames = result.frames
    assert (frames is not None) == is_kept
    assert frames is None or frames.untyped_storage().nbytes() == NUM_FRAMES * 16 * 24 * 3


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "x.webp", "x.wav"])
def test_a_file_is_the_same_whether_frames_are_kept_or_not_and_as_saved_later(tmp_path: Path, name: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "later").mkdir()
    Driver().run(Delivery(replace(job(), keep_frames=False), tmp_path / name))
    result = Driver().run(Delivery(job(), tmp_path / "kept" / name))
    assert result is not None and result.frames is not None
    for _ in writing(tmp_path / "later" / name, result.frames, result.waveform, result.frame_rate):
        pass
    files = {(tmp_path / folder / name).read_bytes() for folder in (".", "kept", "later")}
    assert len(files) == 1


def test_a_silent_film_and_one_with_a_given_sound_have_what_they_should(tmp_path: Path) -> None:
    Driver().run(Delivery(job(generate_audio=False), tmp_path / "silent.mp4"))
    assert read_video(tmp_path / "silent.mp4").sound is None
    given = Waveform(torch.zeros(1, 40_000), 16_000)
    Driver().run(Delivery(job("a2vid", waveform=given), tmp_path / "given.mp4"))
    sound = read_video(tmp_path / "given.mp4").sound
    assert sound is not None and (sound.sample_rate, sound.samples.shape[0]) == (16_000, 1)


def test_abandoned_anywhere_it_leaves_no_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"old")
    whole = Driver()
    whole.run(Delivery(job(), tmp_path / "y.mp4"))
    (tmp_path / "y.mp4").unlink()
    for num_operations in range(1, len(whole.kinds)):
        Driver().run(Delivery(job(), path), num_operations=num_operations)
        assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"], num_operations
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["decode_tile", "write_file"])
def test_a_failure_leaves_no_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OSError, match="one too many"):
        Driver(fails_at=kind).run(Delivery(job(), tmp_path / "x.mp4"))
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_goes_on_from_its_final_latents_writes_the_same_file(tmp_path: Path) -> None:
    driver = Driver()
    driver.run(Delivery(job(), tmp_path / "x.mp4"))
    again = Driver()
    again.run(Delivery(job(), tmp_path / "again.mp4"), driver.state)
    assert again.kinds[0] == "decode_audio"
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes()
