"""From log-mel frames to a waveform, always in float32.

LTX-2.0 has one generator. LTX-2.3 has two: the first gives sound of a low rate, the second extends its band: it looks
at that sound's spectrum and adds what is above. Built of diffusers' generators; what stands around them is our own,
because between the two generators the sound must be limited to [-1, 1].

Source: specs/ltx2.md, section a.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import KeyNames, Pieces, build_module, finish, with_prefix, work
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.errors import ModelFileError

Activation = Callable[[Tensor], Tensor]

SMALLEST_MEL = 1e-5
SLOPE = 0.1
"""Of the leaky units in front of each enlarging layer; the last unit has PyTorch's default."""
KEY_NAMES = KeyNames(
    (
        ("conv_pre.", "conv_in."),
        ("conv_post.", "conv_out."),
        ("ups.", "upsamplers."),
        ("resblocks.", "resnets."),
        ("act_post.", "act_out."),
        ("downsample.lowpass.filter", "downsample.filter"),
    )
)


def _clamp(x: Tensor) -> Tensor:
    return x.clamp(-1, 1)


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class GeneratorConfig:
    """One generator's layers."""

    num_inputs: int
    num_outputs: int
    hidden_channels: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    activation: str
    """`leaky_relu`, `snake` or `snakebeta`."""
    has_final_bias: bool
    has_tanh: bool

    @property
    def num_samples_per_frame(self) -> int:
        return math.prod(self.rates)


def read_generator_config(config: Section, weights: Mapping[str, Tensor]) -> GeneratorConfig:
    """From a section that describes one generator; the widths of its ends are those of its tensors.

    Raises:
        ModelFileError: a value is impossible, or the first or last layer is missing.
    """
    for key in ("conv_pre.weight", "conv_post.weight"):
        if key not in weights or weights[key].ndim != 3:
            raise ModelFileError(f"{config.path}: the vocoder of config {config.name} has no layer {key}")
    block = config.choice("resblock", ("1", "AMP1"), "1")
    is_amp = block == "AMP1"
    activation = config.choice("activation", ("snake", "snakebeta"), "snakebeta") if is_amp else "leaky_relu"
    num_outputs = weights["conv_post.weight"].shape[0]
    if num_outputs != (2 if config.boolean("stereo", True) else 1):
        raise ModelFileError(f"{config.path}: config {config.name}.stereo contradicts its {num_outputs} channels")
    read = GeneratorConfig(
        num_inputs=weights["conv_pre.weight"].shape[1],
        num_outputs=num_outputs,
        hidden_channels=config.integer("upsample_initial_channel", 1024),
        rates=config.integers("upsample_rates", (6, 5, 2, 2, 2)),
        kernels=config.integers("upsample_kernel_sizes", (16, 15, 8, 4, 4)),
        block_kernels=config.integers("resblock_kernel_sizes", (3, 7, 11)),
        block_dilations=_read_dilations(config),
        activation=activation,
        has_final_bias=config.boolean("use_bias_at_final", True),
        has_tanh=config.boolean("use_tanh_at_final", True),
    )
    for one, other, pair in (
        ("upsample_rates", "upsample_kernel_sizes", (read.rates, read.kernels)),
        ("resblock_kernel_sizes", "resblock_dilation_sizes", (read.block_kernels, read.block_dilations)),
    ):
        if len(pair[0]) != len(pair[1]):
            raise config.error(other, pair[1], f"as long as {one}, which is {pair[0]}")
    return read


def _read_dilations(config: Section) -> tuple[tuple[int, ...], ...]:
    key = "resblock_dilation_sizes"
    rows = config.value(key, [[1, 3, 5]] * 3)
    if not isinstance(rows, list):
        raise config.error(key, rows, "a list of lists of positive integers")
    inner = Section(config.path, f"{config.name}.{key}", {str(index): row for index, row in enumerate(rows)})
    return tuple(inner.integers(str(index)) for index in range(len(rows)))


def make_generator(config: GeneratorConfig) -> Any:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, SnakeBeta

    network = LTX2Vocoder(
        in_channels=config.num_inputs,
        hidden_channels=config.hidden_channels,
        out_channels=config.num_outputs,
        upsample_kernel_sizes=list(config.kernels),
        upsample_factors=list(config.rates),
        resnet_kernel_sizes=list(config.block_kernels),
        resnet_dilations=[list(row) for row in config.block_dilations],
        act_fn=config.activation,
        leaky_relu_negative_slope=SLOPE,
        antialias=config.activation != "leaky_relu",
        final_act_fn=None,
        final_bias=config.has_final_bias,
    )
    if config.activation == "snake":
        # The last unit has no second parameter either.
        network.act_out.act = SnakeBeta(config.hidden_channels // 2 ** len(config.rates), use_beta=False)
    return network


def _generate(network: Any, mel: Tensor, final: Activation) -> Pieces[Tensor]:
    """(B, channels * bins, frames) to (B, channels, samples)."""
    yield work(network.conv_in, mel)
    with torch.inference_mode():
        x = network.conv_in(mel)
    for level, enlarge in enumerate(network.upsamplers):
        yield work(enlarge, x)
        with torch.inference_mode():
            # The other activations stand inside the blocks.
            x = enlarge(functional.leaky_relu(x, SLOPE) if network.act_fn == "leaky_relu" else x)
        total: Tensor | None = None
        count = network.resnets_per_upsample
        for block in network.resnets[level * count : (level + 1) * count]:
            yield work(block, x)
            with torch.inference_mode():
                total = block(x) if total is None else total.add_(block(x))
        assert total is not None
        x = total / count
    yield work(network.conv_out, x)
    with torch.inference_mode():
        return final(network.conv_out(network.act_out(x)))


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
        n_fft = self.forward_basis.shape[2]
        padded = functional.pad(sound[:, None], (max(0, n_fft - self.hop), 0))
        real, imaginary = functional.conv1d(padded, self.forward_basis, stride=self.hop).chunk(2, dim=1)
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
    """The generators: of the weights, or without memory to predict with."""

    low: Any
    high: Any | None = None
    spectrum: Spectrum | None = None
    resampler: Any | None = None


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
            self._networks = _Networks(
                build_module("the vocoder", lambda: make_generator(self._low), weights, KEY_NAMES)
            )
            return
        parts = {prefix: with_prefix(weights, f"{prefix}.") for prefix in ("vocoder", "bwe_generator", "mel_stft")}
        strangers = sorted(key for key in weights if key.split(".")[0] not in parts)
        if strangers:
            raise ModelFileError(f"{config.path}: the vocoder has unexpected tensors {', '.join(strangers)}")
        self._low = low = read_generator_config(config.section("vocoder"), parts["vocoder"])
        self._high = high = read_generator_config(self._extension, parts["bwe_generator"])
        self._ratio = _read_ratio(self._extension, high)
        self.sample_rate = self._extension.integer("output_sampling_rate", 48000)
        self._networks = _Networks(
            build_module("the vocoder", lambda: make_generator(low), parts["vocoder"], KEY_NAMES),
            build_module(
                "the vocoder's band extension", lambda: make_generator(high), parts["bwe_generator"], KEY_NAMES
            ),
            _read_spectrum(self._extension, parts["mel_stft"]),
            make_resampler(self._ratio).to(next(iter(weights.values())).device),
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
        networks = self._networks
        with torch.device("meta"):
            low = make_generator(self._low).requires_grad_(False)
            meta = _Networks(low)
            if networks.spectrum is not None:
                bases = networks.spectrum.forward_basis.to("meta"), networks.spectrum.mel_basis.to("meta")
                high = make_generator(self._high).requires_grad_(False)
                meta = _Networks(low, high, Spectrum(*bases, networks.spectrum.hop), make_resampler(self._ratio))
        channels = self._low.num_outputs
        shape = (1, channels, num_mel_frames, self._low.num_inputs // channels)
        return peak_bytes(lambda: finish(self._run(meta, torch.empty(shape, device="meta"))))

    def _run_low(self, networks: _Networks, mel: Tensor) -> Pieces[Tensor]:
        final = torch.tanh if self._low.has_tanh else _clamp
        rows = mel.float().transpose(2, 3).flatten(1, 2)  # (1, channels * bins, frames)
        return _generate(networks.low, rows.to(networks.low.conv_in.weight.device), final)

    def _run(self, networks: _Networks, mel: Tensor) -> Pieces[Tensor]:
        sound = yield from self._run_low(networks, mel)
        if networks.high is None or networks.spectrum is None or networks.resampler is None:
            return sound
        num_samples = sound.shape[2]
        with torch.inference_mode():
            sound = functional.pad(sound, (0, -num_samples % networks.spectrum.hop))
            spectrum = networks.spectrum.log_mel(sound[0])[None].flatten(1, 2)  # (1, channels * bins, frames)
        added = yield from _generate(networks.high, spectrum, _unchanged)
        with torch.inference_mode():
            return _clamp(added + networks.resampler(sound))[..., : num_samples * self._ratio]


def make_resampler(ratio: int) -> Any:
    from diffusers.pipelines.ltx2.vocoder import UpSample1d

    return UpSample1d(ratio=ratio, window_type="hann", persistent=False)


def _read_ratio(extension: Section, high: GeneratorConfig) -> int:
    low_rate = extension.integer("input_sampling_rate", 16000)
    rate = extension.integer("output_sampling_rate", 48000)
    if rate % low_rate:
        raise extension.error("output_sampling_rate", rate, f"a multiple of input_sampling_rate, {low_rate}")
    ratio, hop = rate // low_rate, extension.integer("hop_length", 80)
    if high.num_samples_per_frame != hop * ratio:
        raise extension.error("upsample_rates", high.rates, f"factors of {hop * ratio}: hop_length times {ratio}")
    return ratio
