"""Steps of the autoencoders that are recorded, and the crops that they are made of."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from braid.tests.training.host_traffic import META, IdleAdam, traffic
from braid.training.autoencoders.pools import CROP_SPREAD, Clips
from braid.training.autoencoders.run import RECORDED, Run


@pytest.mark.parametrize("name", RECORDED)
def test_a_step_brings_nothing_to_the_device_and_asks_it_for_nothing(
    trained: tuple[Run, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = copy.copy(trained[0]._training(name))
    _, batch = training.draw()
    training.trainee = copy.deepcopy(training.trainee)
    training.trainee.network.to(META)
    monkeypatch.setattr(training.trainee, "_optimiser", IdleAdam())
    if name == "upsampler":
        for field in ("_autoencoder", "_statistics", "_deviations"):
            monkeypatch.setattr(training, field, _on_meta(getattr(training, field)))
    inputs = [value.to(META) for value in batch]
    assert not traffic(lambda: training.trainee.descend(training.loss_of(*inputs)[0]))


def _on_meta(value):  # type: ignore[no-untyped-def]
    if hasattr(value, "mean") and hasattr(value, "axis"):
        return type(value)(value.mean.to(META), value.std.to(META), value.axis)
    return copy.deepcopy(value).to(META)


def test_a_crop_is_a_square_of_its_clip_near_the_body() -> None:
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(0, 256, (5, 3, 4, 128, 128), generator=generator, dtype=torch.uint8)
    places = torch.rand(5, 2, generator=generator)
    clips = Clips(large[..., ::2, ::2], large, places)
    frames = clips.batch(128, 4, 20, generator, crop=64)
    assert frames.shape == (20, 3, 4, 64, 64)
    whole = (large.float() / 127.5 - 1)[:, 0, 0]
    for crop in frames:
        found = (whole[:, :65, :65] == crop[0, 0, 0, 0]).nonzero()
        spots = [
            (int(n), int(y), int(x)) for n, y, x in found if torch.equal(whole[n, y : y + 64, x : x + 64], crop[0, 0])
        ]
        ((number, y, x),) = spots
        most = CROP_SPREAD / 2 * 128 + 1
        middle = (places[number] * 128).clamp(32, 96)
        assert abs(x + 32 - float(middle[0])) <= most and abs(y + 32 - float(middle[1])) <= most
