"""The checker on rendered truth, and on truth under another clip's caption."""

from __future__ import annotations

import os
import random

import pytest
import torch

from braid.training.world.captions import caption, claims_of
from braid.training.world.checker import Report, read_clip, verdicts
from braid.training.world.render import render
from braid.training.world.scene import Scene, has_held_out, sample_scene
from braid.training.world.sound import render_sound

IS_SOAK = bool(os.environ.get("BRAID_SOAK"))
NUM_SCENES = 300 if IS_SOAK else 12


def read_truth(scene: Scene, size: int = 128) -> Report:
    frames = (render([scene], 25, size, size)[0].permute(1, 2, 3, 0) * 255).round().byte()
    return read_clip(frames, render_sound([scene], 25, 24.0)[0], 16_000)


@pytest.fixture(scope="module")
def read() -> list[tuple[Scene, Report]]:
    rng = random.Random(20)
    scenes = [sample_scene(rng, held_out=number % 2 == 0) for number in range(NUM_SCENES)]
    return [(scene, read_truth(scene)) for scene in scenes]


def test_what_was_drawn_is_read_back(read: list[tuple[Scene, Report]]) -> None:
    found = [verdict for scene, report in read for verdict in verdicts(claims_of(scene), report)]
    assert sum(found) / len(found) >= (0.99 if IS_SOAK else 0.97)


def test_another_clips_caption_is_found_wrong(read: list[tuple[Scene, Report]]) -> None:
    reports = [report for _, report in read]
    shuffled = zip(read, reports[1:] + reports[:1], strict=True)
    found = [verdict for (scene, _), report in shuffled for verdict in verdicts(claims_of(scene), report)]
    assert sum(found) / len(found) <= 0.35


def test_an_empty_clip_shows_nothing() -> None:
    report = read_clip(torch.full((9, 64, 64, 3), 128, dtype=torch.uint8), torch.zeros(2, 6000))
    assert report == Report((), "plain grey", "silence")


def test_noise_is_no_background() -> None:
    noise = torch.randint(0, 256, (9, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert read_clip(noise).background is None


def test_training_scenes_hold_nothing_that_the_test_asks_for() -> None:
    rng = random.Random(3)
    assert not any(has_held_out(sample_scene(rng)) for _ in range(400))
    assert all(has_held_out(sample_scene(rng, held_out=True)) for _ in range(100))


def test_a_caption_is_a_function_of_its_seed_and_one_scene_has_many() -> None:
    scene = sample_scene(random.Random(5))
    said = {caption(scene, random.Random(seed)) for seed in range(30)}
    assert len(said) > 10
    assert caption(scene, random.Random(1)) == caption(scene, random.Random(1))
