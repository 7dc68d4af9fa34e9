"""Drawing many scenes at once gives what the world draws one by one."""

from __future__ import annotations

import random

import torch

from braid.training.autoencoders.drawing import draw
from braid.training.autoencoders.pools import make_clips, training_scenes
from braid.training.world.render import render
from braid.training.world.scene import has_held_out, sample_scene
from braid.training.world.vocabulary import STYLES

CPU = torch.device("cpu")


def test_clips_drawn_together_are_those_drawn_alone() -> None:
    rng = random.Random(5)
    scenes = [sample_scene(rng, style=style) for style in (None, *STYLES) for _ in range(6)]
    assert {len(scene.bodies) for scene in scenes} == {1, 2, 3}
    assert any(scene.relation == "in front of" for scene in scenes)
    torch.testing.assert_close(draw(scenes, 9, 32, CPU), render(scenes, 9, 32, 32), rtol=0, atol=2e-5)


def test_pools_hold_the_same_scenes_in_both_sizes() -> None:
    clips = make_clips({17: 3}, random.Random(1), CPU)[17]
    assert clips.small.shape == (3, 3, 17, 64, 64)
    assert clips.large.shape == (3, 3, 17, 128, 128)
    small, large = clips.pairs(4, torch.Generator().manual_seed(0))
    halved = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert (halved - small).abs().mean() < 0.03
    assert small.amin() >= -1
    assert small.amax() <= 1


def test_a_batch_is_a_window_of_a_pool() -> None:
    clips = make_clips({17: 2}, random.Random(1), CPU)[17]
    frames = clips.batch(64, 9, 3, torch.Generator().manual_seed(0))
    assert frames.shape == (3, 3, 9, 64, 64)
    pool = clips.small.float() / 127.5 - 1
    windows = pool.unfold(2, 9, 1).permute(0, 2, 1, 5, 3, 4).flatten(0, 1)  # every window of every clip
    assert all((windows - frame).abs().amax((1, 2, 3, 4)).min() == 0 for frame in frames)


def test_pools_hold_styles_and_nothing_that_the_test_asks_for() -> None:
    scenes = training_scenes(60, random.Random(2))
    assert {scene.style for scene in scenes} == {None, *STYLES}
    assert not any(has_held_out(scene) for scene in scenes)
