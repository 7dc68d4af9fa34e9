"""Sound between layers, computed for whatever run of samples is asked for.

A `Signal` computes any run of itself from the runs of its sources which that needs. So layers are stacked without
storing what is between them, and a long sound is made in short runs; each layer sees the true neighbours of a run, and
the sound's own ends only where they are. In which runs a sound is made can decide its last bits, since convolutions
add up in an order that depends on their length: runs follow from lengths and layers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.modules import Pieces

MAX_RUN_MACS = {"cpu": 400_000_000, "cuda": 3_000_000_000_000}
"""Of a run, by device; about 10 ms on two CPU cores. Longer runs are slower on a CPU: they leave its caches."""
FILTER_MACS = 1000
"""What a transposed convolution, or an activation between filters, costs a sample of a channel beside its own
multiply-adds: as many of a convolution take as long."""
POINTWISE_MACS = 20
"""What any other operation costs a sample, likewise."""


@dataclass(frozen=True)
class Signal:
    """One sound."""

    length: int
    """In samples."""
    num_channels: int
    macs: int
    """Multiply-adds of each sample, its sources included as far as they are not stored."""
    read: Callable[[int, int], Tensor]
    """(start, stop), both inside, to (1, channels, stop - start)."""


def stored(x: Tensor) -> Signal:
    """What is there already, (1, channels, samples)."""
    return Signal(x.shape[2], x.shape[1], 0, lambda start, stop: x[..., start:stop])


def made(signal: Signal, device: torch.device) -> Pieces[Tensor]:
    """The whole signal, (1, channels, samples), run by run."""
    parts = runs(signal.length, signal.macs, device)
    whole: Tensor | None = None
    for part in parts:
        yield max(1, (part.stop - part.start) * signal.macs)
        with torch.inference_mode():
            x = signal.read(part.start, part.stop)
            if len(parts) == 1:
                return x
            whole = x.new_empty(1, signal.num_channels, signal.length) if whole is None else whole
            whole[..., part] = x
    assert whole is not None, "a signal of no samples"
    return whole


def runs(length: int, macs: int, device: torch.device) -> list[slice]:
    """Near-equal runs of no more than `MAX_RUN_MACS`. Where sizes alone are predicted, all is one run."""
    if device.type == "meta":
        return [slice(0, length)]
    max_macs = MAX_RUN_MACS.get(device.type, MAX_RUN_MACS["cpu"])
    size = -(-length // max(1, -(-length * macs // max_macs)))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


# -- of one source -----------------------------------------------------------------------------------------------------


def mapped(source: Signal, function: Callable[[Tensor], Tensor]) -> Signal:
    """Each sample by itself."""
    macs = source.macs + POINTWISE_MACS * source.num_channels
    return Signal(source.length, source.num_channels, macs, lambda start, stop: function(source.read(start, stop)))


def convolved(source: Signal, weight: Tensor, bias: Tensor | None, *, dilation: int = 1) -> Signal:
    """As long as the source, with silence around it."""
    reach = dilation * (weight.shape[2] - 1)
    left, right = reach // 2, reach - reach // 2

    def read(start: int, stop: int) -> Tensor:
        x = _with_silence(source, start - left, stop + right)
        return functional.conv1d(x, weight, bias, dilation=dilation)

    # A source is read anew for what two runs share; that is little.
    return Signal(source.length, weight.shape[0], source.macs + weight.numel(), read)


def enlarged(source: Signal, weight: Tensor, bias: Tensor | None, rate: int) -> Signal:
    """A transposed convolution, that `rate` samples come of each; half of what its kernel has more is cut off."""
    kernel = weight.shape[2]
    cut = (kernel - rate) // 2

    def read(start: int, stop: int) -> Tensor:
        # Sample n of the source is heard from n * rate - cut on, for as long as the kernel is.
        first = max(0, -(-(start + cut - kernel + 1) // rate))
        last = min(source.length - 1, (stop - 1 + cut) // rate)
        x = functional.conv_transpose1d(source.read(first, last + 1), weight, bias, stride=rate)
        begin = first * rate - cut
        return x[..., start - begin : stop - begin]

    length = (source.length - 1) * rate - 2 * cut + kernel
    macs = (source.macs + weight.numel()) // rate + FILTER_MACS * weight.shape[1]
    return Signal(length, weight.shape[1], macs, read)


def antialiased(source: Signal, function: Callable[[Tensor], Tensor], filters: tuple[Tensor, Tensor]) -> Signal:
    """A function of each sample, at twice the rate.

    Args:
        filters: (1, 1, taps), of an even number of taps, to twice the rate and back.
    """
    taps = filters[0].shape[2]

    def read(start: int, stop: int) -> Tensor:
        first, last = max(0, start - taps), min(source.length, stop + taps)
        x = _at_twice_the_rate(source.read(first, last), function, filters)
        return x[..., start - first : stop - first]

    macs = source.macs + FILTER_MACS * source.num_channels
    return Signal(source.length, source.num_channels, macs, read)


def resampled(source: Signal, kernel: Tensor, ratio: int) -> Signal:
    """At `ratio` times the rate; at its ends the sound is as if it went on as it is there.

    Args:
        kernel: (1, 1, 2 * width * ratio + 1).
    """
    width = kernel.shape[2] // (2 * ratio)
    by_channel = kernel.expand(source.num_channels, -1, -1)

    def read(start: int, stop: int) -> Tensor:
        first, last = start // ratio - width, (stop - 1) // ratio + width + 1
        x = _with_repeated_ends(source, first, last)
        x = ratio * functional.conv_transpose1d(x, by_channel, stride=ratio, groups=source.num_channels)
        begin = (first - width) * ratio
        return x[..., start - begin : stop - begin]

    macs = source.macs + source.num_channels * kernel.shape[2]
    return Signal(source.length * ratio, source.num_channels, macs, read)


# -- of several --------------------------------------------------------------------------------------------------------


def added(one: Signal, other: Signal) -> Signal:
    """The sum of two of one length."""
    macs = one.macs + other.macs + POINTWISE_MACS * one.num_channels
    return Signal(
        one.length, one.num_channels, macs, lambda start, stop: one.read(start, stop) + other.read(start, stop)
    )


# -- ends and filters --------------------------------------------------------------------------------------------------


def _with_silence(source: Signal, start: int, stop: int) -> Tensor:
    x = source.read(max(0, start), min(stop, source.length))
    return functional.pad(x, (max(0, -start), max(0, stop - source.length)))


def _with_repeated_ends(source: Signal, start: int, stop: int) -> Tensor:
    x = source.read(max(0, start), min(stop, source.length))
    return functional.pad(x, (max(0, -start), max(0, stop - source.length)), mode="replicate")


def _at_twice_the_rate(x: Tensor, function: Callable[[Tensor], Tensor], filters: tuple[Tensor, Tensor]) -> Tensor:
    num_channels = x.shape[1]
    up, down = (kernel.expand(num_channels, -1, -1) for kernel in filters)
    half = up.shape[2] // 2
    beside = half - 1
    x = functional.pad(x, (beside, beside), mode="replicate")
    x = 2 * functional.conv_transpose1d(x, up, stride=2, groups=num_channels)
    edge = 2 * beside + half - 1
    x = function(x[..., edge:-edge])
    x = functional.pad(x, (beside, half), mode="replicate")
    return functional.conv1d(x, down, stride=2, groups=num_channels)
