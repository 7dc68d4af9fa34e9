"""Sound in runs: every layer gives a run what it gives the whole, and runs are short."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from braid.diffusion.models.ltx2 import signals
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.signals import (
    Signal,
    added,
    antialiased,
    convolved,
    enlarged,
    made,
    mapped,
    resampled,
    stored,
)
from braid.diffusion.models.ltx2.vocoder import Spectrum, Vocoder, resampling_kernel
from braid.diffusion.models.ltx2.vocoder_config import generator_tensors, read_generator_config
from braid.diffusion.models.ltx2.vocoder_generator import Generator
from braid.diffusion.models.ltx2.vocoder_module import KEY_NAMES, make_generator, make_resampler
from braid.tests.diffusion.models.ltx2.test_audio import EXTENDED, GENERATOR, MEL, extended_weights, generator_weights
from braid.tests.diffusion.models.ltx2.toy_autoencoders import section

CPU = torch.device("cpu")
LENGTH = 61


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SOUND = random(1, 4, LENGTH)
SPECTRUM = Spectrum(random(34, 1, 32, seed=5), random(5, 17, seed=6).abs(), 10)
LAYERS: dict[str, Callable[[Signal], Signal]] = {
    "mapped": lambda x: mapped(x, torch.tanh),
    "convolved": lambda x: convolved(x, random(3, 4, 7, seed=1), random(3, seed=2)),
    "dilated": lambda x: convolved(x, random(3, 4, 4, seed=1), None, dilation=5),
    "enlarged": lambda x: enlarged(x, random(4, 2, 11, seed=1), random(2, seed=2), 5),
    "enlarged by a longer kernel": lambda x: enlarged(x, random(4, 2, 15, seed=1), None, 4),
    "antialiased": lambda x: antialiased(x, torch.sin, (random(1, 1, 12, seed=1), random(1, 1, 12, seed=2))),
    "resampled": lambda x: resampled(x, resampling_kernel(3), 3),
    "added": lambda x: added(x, mapped(x, torch.exp)),
    "stacked": lambda x: convolved(antialiased(x, torch.sin, (random(1, 1, 12),) * 2), random(4, 4, 3), None),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_run_of_a_layer_is_that_run_of_the_whole(name: str, size: int) -> None:
    signal = LAYERS[name](stored(SOUND))
    whole = signal.read(0, signal.length)
    assert whole.shape == (1, signal.num_channels, signal.length)
    parts = [signal.read(start, min(start + size, signal.length)) for start in range(0, signal.length, size)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [3, 4])
def test_a_convolution_is_as_long_as_its_source_with_the_odd_silence_behind(taps: int) -> None:
    weight = random(3, 4, taps, seed=1)
    expected = torch.nn.functional.pad(SOUND, ((taps - 1) // 2, taps // 2))
    expected = torch.nn.functional.conv1d(expected, weight)
    torch.testing.assert_close(convolved(stored(SOUND), weight, None).read(0, LENGTH), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_of_a_spectrum_is_that_run_of_the_whole(size: int) -> None:
    sound = random(1, 2, 90)
    signal = SPECTRUM.rows(sound)
    whole = SPECTRUM.log_mel(sound[0])[None].flatten(1, 2)
    assert whole.shape == (1, 10, 9) and signal.length == 9
    parts = [signal.read(start, min(start + size, 9)) for start in range(0, 9, size)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-5, atol=1e-5)


def test_runs_are_as_short_as_they_must_be_and_cover_everything() -> None:
    limit = signals.MAX_RUN_MACS["cpu"]
    found = signals.runs(1000, limit // 90, CPU)
    assert max(part.stop - part.start for part in found) <= 90
    assert [part.start for part in found[1:]] == [part.stop for part in found[:-1]]
    assert (found[0].start, found[-1].stop) == (0, 1000)
    assert signals.runs(5, 10 * limit, CPU) == [slice(index, index + 1) for index in range(5)]
    assert signals.runs(1000, limit, torch.device("meta")) == [slice(0, 1000)]


def test_what_is_made_in_runs_says_what_each_of_them_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = LAYERS["convolved"](stored(SOUND))
    monkeypatch.setitem(signals.MAX_RUN_MACS, "cpu", 20 * signal.macs)
    work = made(signal, CPU)
    assert list(work) == [16 * signal.macs] * 3 + [13 * signal.macs]
    torch.testing.assert_close(finish(made(signal, CPU)), signal.read(0, LENGTH), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"activation": "snake"}, {"resblock": "1", "resblock_kernel_sizes": [3, 5]}])
@pytest.mark.parametrize("max_macs", [1000, 10**9])
def test_a_generator_agrees_with_diffusers(
    options: dict[str, object], max_macs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**GENERATOR, **options}
    config["resblock_dilation_sizes"] = [[1, 3]] * len(config["resblock_kernel_sizes"])
    weights = generator_weights(config, "", 3)
    read = read_generator_config(section("vocoder", config), weights)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == generator_tensors(read)
    theirs = make_generator(read)
    theirs.load_state_dict({KEY_NAMES.of_module(name): tensor for name, tensor in weights.items()})
    monkeypatch.setitem(signals.MAX_RUN_MACS, "cpu", max_macs)
    rows = random(1, 8, 9)

    def ours() -> Tensor:
        sound = finish(Generator(read, weights).sound(stored(rows)))
        return finish(made(sound, CPU))

    with torch.inference_mode():
        expected = theirs.eval()(rows[:, None], time_last=True)
    torch.testing.assert_close(ours(), expected, rtol=0, atol=1e-5)


def test_resampling_agrees_with_diffusers() -> None:
    resampler = make_resampler(3)
    expected = resampler(SOUND)
    found = LAYERS["resampled"](stored(SOUND))
    torch.testing.assert_close(found.read(0, found.length), expected, rtol=0, atol=1e-6)
    assert torch.equal(resampling_kernel(3), resampler.filter)


def test_a_sound_in_short_runs_is_near_that_in_one_and_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vocoder = Vocoder(section("vocoder", EXTENDED), extended_weights())
    whole = vocoder(MEL)
    num_pieces = len(list(vocoder.pieces(MEL)))
    monkeypatch.setitem(signals.MAX_RUN_MACS, "cpu", 10_000)
    assert len(list(vocoder.pieces(MEL))) > 4 * num_pieces
    cut = vocoder(MEL)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    first, second = vocoder.pieces(MEL), vocoder.pieces(MEL.flip(2))
    for _ in range(3 * num_pieces):
        next(first)
        next(second)
    assert torch.equal(finish(first), cut)


def test_memory_is_predicted_without_making_sound() -> None:
    vocoder = Vocoder(section("vocoder", EXTENDED), extended_weights())
    short, long = vocoder.predicted_bytes(7), vocoder.predicted_bytes(70)
    assert 5 * short < long < 11 * short
    assert short > 2 * vocoder(MEL).nbytes
