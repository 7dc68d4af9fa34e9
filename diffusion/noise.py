"""Where a job's noise comes from: seeded generators, or draws that were recorded.

Three sequences, each with its own place: the initial noise of every stage and stream, in order, from the user's seed;
and what samplers draw for steps and for midpoints, which starts again with every stage. A source can say where its
sequences are and be put back there, so a job goes on after a restart with the bits that it would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from braid.errors import InvalidRequest

OFFICIAL_STEP_SEED = -1
"""The official pipelines never give samplers the user's seed: their noise is the same in every run of one shape."""
SUBSTEP_SEED_OFFSET = 10_000


@dataclass(frozen=True, slots=True)
class NoiseState:
    """How far each sequence of a source has been drawn; opaque tensors that only the same kind of source can read."""

    initial: Tensor
    step: Tensor
    substep: Tensor


class NoiseSource(Protocol):
    """Draws, in the order in which the maths asks: step by step, video before audio."""

    def initial(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal, of the patchified shape, appended tokens included, drawn in the dtype of the latents."""
        ...

    def ancestral(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal for a step of ancestral sampling: the sequence of `step`, drawn plainly."""
        ...

    def step(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        """Normalised float64 for a whole step of res_2s."""
        ...

    def substep(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        """Normalised float64 for the midpoint of a step of res_2s."""
        ...

    def begin_stage(self) -> None:
        """A sampler starts from its first sigma: its two sequences start again, that of initial noise goes on."""
        ...

    def state(self) -> NoiseState: ...

    def restore(self, state: NoiseState) -> None: ...


@dataclass(frozen=True, slots=True)
class NoiseSeeds:
    """The seeds of the three sequences. The defaults of the last two are the official ones."""

    initial: int
    """The user's seed."""
    step: int = OFFICIAL_STEP_SEED
    substep: int | None = None
    """None is 10,000 after `step`."""


class SeededNoise:
    """Noise from three torch generators.

    Args:
        seeds: an int is the user's seed, with the official seeds of samplers.
        device: of the generators. The CPU draws the same for every machine; a GPU draws other numbers for a seed.
    """

    def __init__(self, seeds: NoiseSeeds | int, *, device: torch.device | str = "cpu") -> None:
        self._seeds = NoiseSeeds(seeds) if isinstance(seeds, int) else seeds
        self._initial, self._step, self._substep = (torch.Generator(device) for _ in range(3))
        self._initial.manual_seed(self._seeds.initial)
        self.begin_stage()

    def initial(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return _randn(self._initial, shape, dtype).to(device)

    def ancestral(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return _randn(self._step, shape, dtype).to(device)

    def step(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        return normalised(_randn(self._step, shape, torch.float64)).to(device)

    def substep(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        return normalised(_randn(self._substep, shape, torch.float64)).to(device)

    def begin_stage(self) -> None:
        step, substep = self._seeds.step, self._seeds.substep
        self._step.manual_seed(step)
        self._substep.manual_seed(step + SUBSTEP_SEED_OFFSET if substep is None else substep)

    def state(self) -> NoiseState:
        return NoiseState(self._initial.get_state(), self._step.get_state(), self._substep.get_state())

    def restore(self, state: NoiseState) -> None:
        self._initial.set_state(state.initial)
        self._step.set_state(state.step)
        self._substep.set_state(state.substep)


class RecordedNoise:
    """Draws given beforehand, each sequence in the order in which it is drawn over the whole job.

    Args:
        initial: standard normal, stage by stage, video before audio.
        step: draws for the steps of all stages; those of res_2s are normalised already.
        substep: the same for the midpoints of res_2s.
    Raises:
        InvalidRequest: on a draw that was not recorded, or has another shape.
    """

    def __init__(
        self, initial: Sequence[Tensor] = (), *, step: Sequence[Tensor] = (), substep: Sequence[Tensor] = ()
    ) -> None:
        self._draws = {"initial": tuple(initial), "step": tuple(step), "substep": tuple(substep)}
        self._num_drawn = dict.fromkeys(self._draws, 0)

    def initial(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._next("initial", shape).to(device, dtype)

    def ancestral(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._next("step", shape).to(device, dtype)

    def step(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        return self._next("step", shape).to(device, torch.float64)

    def substep(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        return self._next("substep", shape).to(device, torch.float64)

    def begin_stage(self) -> None:
        """Nothing starts again: the draws of all stages were recorded."""

    def state(self) -> NoiseState:
        return NoiseState(**{name: torch.tensor(count) for name, count in self._num_drawn.items()})

    def restore(self, state: NoiseState) -> None:
        for name in self._num_drawn:
            self._num_drawn[name] = int(getattr(state, name))

    def _next(self, name: str, shape: Sequence[int]) -> Tensor:
        number, draws = self._num_drawn[name], self._draws[name]
        if number >= len(draws):
            raise InvalidRequest(f"noise: draw {number} of {name!r} is wanted and {len(draws)} were recorded")
        if tuple(draws[number].shape) != tuple(shape):
            raise InvalidRequest(
                f"noise: draw {number} of {name!r} has shape {tuple(draws[number].shape)}, wanted is {tuple(shape)}"
            )
        self._num_drawn[name] = number + 1
        return draws[number]


def normalised(noise: Tensor) -> Tensor:
    """Mean 0 and (unbiased) standard deviation 1, over everything and then over the last two dimensions.

    Of patchified (B, T, C) noise the last two are all of one sample. Never over more than one request. The first of the
    two changes nothing but rounding, which is official too.
    Source: specs of LTX-2, res_2s.
    """
    noise = (noise - noise.mean()) / noise.std()
    return (noise - noise.mean((-2, -1), keepdim=True)) / noise.std((-2, -1), keepdim=True)


def _randn(generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
