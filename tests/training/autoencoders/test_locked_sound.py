"""Sound as a vocoder can make it: the same for the ear, and the same samples in every frame."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from braid.training.autoencoders.locked_sound import locked_sine, locked_sounds
from braid.training.world.hearing import side_of, sound_of
from braid.training.world.scene import sample_scene
from braid.training.world.sound import render_sound
from braid.training.world.vocabulary import SOUNDS


@pytest.mark.parametrize("sound", SOUNDS)
def test_it_is_heard_as_the_sound_that_was_drawn(sound: str) -> None:
    scene = replace(sample_scene(random.Random(4)), sound=sound)
    drawn, locked = render_sound([scene], 25, 24.0)[0], locked_sounds([scene], 25, 24.0, 100.0)[0]
    assert locked.shape == drawn.shape
    assert sound_of(locked, 16_000) == sound
    assert side_of(locked) == pytest.approx(side_of(drawn), abs=0.02)
    assert float(locked.std()) == pytest.approx(float(drawn.std()), rel=0.15)


def test_a_steady_tone_has_the_same_samples_in_every_frame() -> None:
    seconds = torch.arange(1600, dtype=torch.float64) / 16_000
    frames = locked_sine(torch.full((1600,), 580.0), seconds, 100.0).view(10, 160)
    torch.testing.assert_close(frames, frames[:1].expand(10, 160), rtol=0, atol=1e-5)
    torch.testing.assert_close(frames[0].double(), torch.sin(2 * torch.pi * 600 * seconds[:160]), rtol=0, atol=1e-5)
