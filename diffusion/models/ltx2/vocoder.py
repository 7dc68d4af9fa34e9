"""From log-mel frames to a waveform, always in float32.

LTX-2.0 has one generator. LTX-2.3 has two: the first gives sound of a low rate, the second extends its band: it looks
at that sound's spectrum and adds what is above. Between the two the sound must be limited to [-1, 1].

Source: specs/ltx2.md, section a.8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import Pieces, check_tensors, finish, with_prefix
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.signals import Signal, added, made, mapped, resampled, stored
from braid.diffusion.models.ltx2.vocoder_config import GeneratorConfig, generator_tensors, read_generator_config
from braid.diffusion.models.ltx2.vocoder_generator import Generator
from braid.errors import ModelFileError

SMALLEST_MEL = 1e-5
RESAMPLING_CROSSINGS = 6
"""Zero crossings of the sinc on each side of its middle."""
RESAMPLING_ROLLOFF = 0.99


@dataclass(frozen=True)
class Spectrum:
    """How the second generator sees the first one's sound: filters that the checkpoint has."""

    forward_basis: Tensor
    """(2 * num_frequencies, 1, n_fft): real parts, then imaginary parts."""
    mel_basis: Tensor
    """(num_mel_bins, num_frequencies)."""
    hop: int

    def log_mel(self, sound: Tensor) -> Tensor:
        """(rows, samples) to (rows, bins, samples / hop); nothing is seen before it sounds."""
        return self._seen(functional.pad(sound, (self._before, 0)))

    def rows(self, sound: Tensor) -> Signal:
        """The same of (1, channels, samples), a multiple of `hop`, as (1, channels * bins, frames)."""
        n_fft, before = self.forward_basis.shape[2], self._before

        def read(start: int, stop: int) -> Tensor:
            first, last = start * self.hop - before, (stop - 1) * self.hop - before + n_fft
            heard = functional.pad(sound[0, :, max(0, first) : last], (max(0, -first), 0))
            return self._seen(heard)[None].flatten(1, 2)

        num_channels, num_bins = sound.shape[1], self.mel_basis.shape[0]
        macs = num_channels * (self.forward_basis.numel() + self.mel_basis.numel())
        return Signal(sound.shape[2] // self.hop, num_channels * num_bins, macs, read)

    @property
    def _before(self) -> int:
        """Samples of silence in front."""
        return max(0, self.forward_basis.shape[2] - self.hop)

    def _seen(self, sound: Tensor) -> Tensor:
        real, imaginary = functional.conv1d(sound[:, None], self.forward_basis, stride=self.hop).chunk(2, dim=1)
        magnitude = torch.sqrt(real.square() + imaginary.square())
        return torch.matmul(self.mel_basis, magnitude).clamp(min=SMALLEST_MEL).log()


def _read_spectrum(config: Section, weights: Mapping[str, Tensor]) -> Spectrum:
    n_fft, num_bins = config.integer("n_fft", 512), config.integer("num_mels", 64)
    shapes = {
        "stft_fn.forward_basis": (2 * (n_fft // 2 + 1), 1, n_fft),
        "mel_basis": (num_bins, n_fft // 2 + 1),
    }
    for key, shape in shapes.items():
        found = tuple(weights[key].shape) if key in weights else "missing"
        if found != shape:
            raise ModelFileError(f"{config.path}: the vocoder's mel_stft.{key} is {found} and must be {shape}")
    # Files have the inverse transform too, which nobody uses.
    unexpected = sorted(weights.keys() - shapes.keys() - {"stft_fn.inverse_basis"})
    if unexpected:
        raise ModelFileError(
            f"{config.path}: the vocoder has unexpected tensors mel_stft.{', mel_stft.'.join(unexpected)}"
        )
    return Spectrum(weights["stft_fn.forward_basis"], weights["mel_basis"], config.integer("hop_length", 80))


@dataclass(frozen=True)
class _Networks:
    """What sound goes through: with the weights, or without memory to predict with."""

    low: Generator
    high: Generator | None = None
    spectrum: Spectrum | None = None
    resampling: Tensor | None = None


class Vocoder:
    """Log-mel frames to a waveform of `sample_rate` Hz."""

    def __init__(self, config: Section, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: the section `vocoder`.
            weights: names without the first `vocoder.`; of another dtype than float32 they are copied.
        Raises:
            ModelFileError: config and tensors are not those of a vocoder.
        """
        weights = {key: tensor.float() for key, tensor in weights.items()}
        self._extension = config.section("bwe") if "bwe" in config else None
        if self._extension is None:
            self._low = read_generator_config(config, weights)
            self.sample_rate = config.integer("output_sampling_rate", 24000)
            self._networks = _Networks(_make("the vocoder", self._low, weights))
            return
        parts = {prefix: with_prefix(weights, f"{prefix}.") for prefix in ("vocoder", "bwe_generator", "mel_stft")}
        strangers = sorted(key for key in weights if key.split(".")[0] not in parts)
        if strangers:
            raise ModelFileError(f"{config.path}: the vocoder has unexpected tensors {', '.join(strangers)}")
        self._low = read_generator_config(config.section("vocoder"), parts["vocoder"])
        high = read_generator_config(self._extension, parts["bwe_generator"])
        self._ratio = _read_ratio(self._extension, high)
        self.sample_rate = self._extension.integer("output_sampling_rate", 48000)
        self._networks = _Networks(
            _make("the vocoder", self._low, parts["vocoder"]),
            _make("the vocoder's band extension", high, parts["bwe_generator"]),
            _read_spectrum(self._extension, parts["mel_stft"]),
            resampling_kernel(self._ratio).to(next(iter(weights.values())).device),
        )

    def __call__(self, mel: Tensor) -> Tensor:
        """All of `pieces` at once."""
        return finish(self.pieces(mel))

    def pieces(self, mel: Tensor) -> Pieces[Tensor]:
        """Make sound.

        Args:
            mel: (1, channels, frames, bins), log-mel.
        Returns:
            (1, channels, samples) float32 in [-1, 1].
        """
        assert mel.shape[0] == 1, "one sound at a time"
        return self._run(self._networks, mel)

    def low_rate_pieces(self, mel: Tensor) -> Pieces[Tensor]:
        """What the first generator gives: (1, channels, samples) in [-1, 1]."""
        return self._run_low(self._networks, mel)

    def predicted_bytes(self, num_mel_frames: int) -> int:
        """Peak of what `pieces` allocates, weights not counted."""
        meta = _on_meta(self._networks)
        channels = self._low.num_outputs
        shape = (1, channels, num_mel_frames, self._low.num_inputs // channels)
        return peak_bytes(lambda: finish(self._run(meta, torch.empty(shape, device="meta"))))

    def _run_low(self, networks: _Networks, mel: Tensor) -> Pieces[Tensor]:
        device = networks.low.device
        rows = mel.float().transpose(2, 3).flatten(1, 2)  # (1, channels * bins, frames)
        sound = yield from networks.low.sound(stored(rows.to(device)))
        return (yield from made(mapped(sound, torch.tanh if self._low.has_tanh else _clamp), device))

    def _run(self, networks: _Networks, mel: Tensor) -> Pieces[Tensor]:
        sound = yield from self._run_low(networks, mel)
        if networks.high is None or networks.spectrum is None or networks.resampling is None:
            return sound
        num_samples = sound.shape[2]
        device = networks.high.device
        sound = functional.pad(sound, (0, -num_samples % networks.spectrum.hop))
        rows = yield from made(networks.spectrum.rows(sound), device)
        above = yield from networks.high.sound(stored(rows))
        whole = mapped(added(above, resampled(stored(sound), networks.resampling, self._ratio)), _clamp)
        return (yield from made(whole, device))[..., : num_samples * self._ratio]


def resampling_kernel(ratio: int) -> Tensor:
    """(1, 1, 2 * width * ratio + 1): a sinc under a Hann window, for `resampled`."""
    width = math.ceil(RESAMPLING_CROSSINGS / RESAMPLING_ROLLOFF)
    crossings = (torch.arange(2 * width * ratio + 1) / ratio - width) * RESAMPLING_ROLLOFF
    inside = crossings.clamp(-RESAMPLING_CROSSINGS, RESAMPLING_CROSSINGS)
    window = torch.cos(inside * math.pi / RESAMPLING_CROSSINGS / 2) ** 2
    return (torch.sinc(crossings) * window * RESAMPLING_ROLLOFF / ratio).view(1, 1, -1)


def _make(what: str, config: GeneratorConfig, weights: Mapping[str, Tensor]) -> Generator:
    check_tensors(what, generator_tensors(config), weights)
    return Generator(config, weights)


def _on_meta(networks: _Networks) -> _Networks:
    """The same layers without memory."""
    if networks.high is None or networks.spectrum is None or networks.resampling is None:
        return _Networks(networks.low.on_meta())
    spectrum = networks.spectrum
    bases = spectrum.forward_basis.to("meta"), spectrum.mel_basis.to("meta")
    return _Networks(
        networks.low.on_meta(),
        networks.high.on_meta(),
        Spectrum(*bases, spectrum.hop),
        networks.resampling.to("meta"),
    )


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(-1, 1)


def _read_ratio(extension: Section, high: GeneratorConfig) -> int:
    low_rate = extension.integer("input_sampling_rate", 16000)
    rate = extension.integer("output_sampling_rate", 48000)
    if rate % low_rate:
        raise extension.error("output_sampling_rate", rate, f"a multiple of input_sampling_rate, {low_rate}")
    ratio, hop = rate // low_rate, extension.integer("hop_length", 80)
    if high.num_samples_per_frame != hop * ratio:
        raise extension.error("upsample_rates", high.rates, f"factors of {hop * ratio}: hop_length times {ratio}")
    return ratio
