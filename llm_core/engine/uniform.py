"""Random numbers as a pure function of a seed and a step: there is no generator whose state could be lost.

A preempted sequence that resumes at token i gets the number that it would have got, whatever ran in between.

Source: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): a Weyl sequence with a
64-bit finaliser. The seed is put through the finaliser first, so that near seeds do not give shifted sequences.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """The finaliser: a bijection of 64-bit integers in which each input bit flips half of the output's."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def stream(seed: int) -> int:
    """Where the sequence of a seed starts; any integer is taken modulo 2^64."""
    return mix((seed + _GOLDEN_GAMMA) & _MASK)


def uniform(start: int, step: int) -> float:
    """The number of one step, in [0, 1), a multiple of 2^-53. `start` is a `stream`."""
    return (mix((start + (step + 1) * _GOLDEN_GAMMA) & _MASK) >> 11) * 2.0**-53


def completion_seed(seed: int, index: int) -> int:
    """The seed of the index-th completion of one request; the first has the request's own."""
    return seed & _MASK if index == 0 else mix((stream(seed) ^ mix(index)) & _MASK)
