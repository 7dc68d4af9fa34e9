"""Schedules and sampling loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo, LatentState, each
from braid.diffusion.noise import NoiseSeeds, NoiseSource, SeededNoise
from braid.diffusion.res_2s import Res2sOptions, coefficients, noise_split, res_2s
from braid.diffusion.samplers import euler, euler_ancestral, euler_cfg_pp, gradient_estimation
from braid.diffusion.sampling_state import Estimates, Evaluation, Sampler, drive
from braid.diffusion.schedules import (
    DISTILLED_SIGMAS,
    STAGE_2_SIGMAS,
    TILED_STAGE_2_SIGMAS,
    Precision,
    ShiftedSchedule,
)
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison, compare_all, results

SAMPLER_TOLERANCE = 1e-5
MODALITIES = ("video", "audio")
Tensors = Mapping[str, Tensor]
MakeSampler = Callable[[Tensor, AudioVideo[LatentState], NoiseSource], Sampler]


def parsed(value: Any) -> Any:
    """Arguments are recorded as they are, or as Python prints them."""
    if not isinstance(value, str):
        return value
    if value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return {"True": True, "False": False, "None": None}[value] if value in ("True", "False", "None") else float(value)


# -- schedules -------------------------------------------------------------------------------------------------------


def make_schedule(case: Case, changes: Mapping[str, str]) -> ShiftedSchedule:
    constants = case.info["constants"]
    options = {name: constants[name] for name in ("max_shift", "base_shift", "terminal")}
    options |= {name: parsed(value) for name, value in changes.items()}
    if not options.pop("stretch", True):
        options["terminal"] = None
    return ShiftedSchedule(
        base_tokens=constants["BASE_SHIFT_ANCHOR"], max_tokens=constants["MAX_SHIFT_ANCHOR"], **options
    )


def scheduled(case: Case, key: str, precision: Precision) -> Tensor:
    """Of `steps15_tokens8160`, `steps10_tokensdefault_terminal=0.05`."""
    found = re.match(r"steps(\d+)_tokens(\d+|default)", key)
    assert found is not None, key
    changes = dict(re.findall(r"_([a-z_]+)=([^_]+)", key[found.end() :]))
    num_tokens = None if found[2] == "default" else int(found[2])
    return make_schedule(case, changes).sigmas(int(found[1]), num_tokens, precision=precision)


def compare_schedule(case: Case, name: str, key: str, expected: Tensor) -> Iterator[Comparison]:
    """To the bit where the official list is one; ours is finite everywhere."""
    if expected.isfinite().all():
        yield Comparison(name, scheduled(case, key, "official"), expected, case.tolerance(0.0))
    usable = scheduled(case, key, "auto")
    is_usable = usable.isfinite() & (usable >= 0) & (usable <= 1)
    yield Comparison(f"{name} is usable", is_usable, torch.ones_like(is_usable), 0.0)


def run_scheduler(case: Case) -> Iterator[Comparison]:
    for key, expected in results(case.tensors()).items():
        yield from compare_schedule(case, key, key, expected)
    listed = {row["key"]: row["sigmas"] for row in case.info.get("rows", ())} | case.info.get("variants", {})
    for key, values in listed.items():
        expected = torch.tensor([float(value) for value in values])
        yield from compare_schedule(case, f"{key} (JSON)", key, expected)
    ours = {
        "distilled_stage1": DISTILLED_SIGMAS,
        "distilled_stage2": STAGE_2_SIGMAS,
        "tdp_stage2": TILED_STAGE_2_SIGMAS,
    }
    for key, sigmas in ours.items():
        if key in case.info:
            yield Comparison(key, torch.tensor(sigmas), torch.tensor(case.info[key]), 0.0)


# -- loops -----------------------------------------------------------------------------------------------------------


class RecordingNoise(SeededNoise):
    """Keeps the draws of samplers in the order of their calls."""

    def __init__(self, seeds: NoiseSeeds) -> None:
        super().__init__(seeds)
        self.drawn: list[Tensor] = []

    def ancestral(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        self.drawn.append(super().ancestral(shape, dtype=dtype, device=device))
        return self.drawn[-1]

    def step(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        self.drawn.append(super().step(shape, device=device))
        return self.drawn[-1]

    def substep(self, shape: Sequence[int], *, device: torch.device) -> Tensor:
        self.drawn.append(super().substep(shape, device=device))
        return self.drawn[-1]


def read_streams(tensors: Tensors) -> AudioVideo[LatentState]:
    """The streams that the case has; samplers look at no positions."""

    def stream(name: str) -> LatentState | None:
        if f"in.{name}.latent" not in tensors:
            return None
        latents = tensors[f"in.{name}.latent"]
        mask = tensors.get(f"in.{name}.denoise_mask", torch.ones(*latents.shape[:2], 1))
        clean = tensors.get(f"in.{name}.clean_latent", latents)
        return LatentState(latents, mask, clean, torch.empty(latents.shape[0], 1, latents.shape[1], 2))

    return AudioVideo(*(stream(name) for name in MODALITIES))


class RecordedModel:
    """D(x, sigma) by the formula that the case tells; keeps what it saw and gave."""

    def __init__(self, case: Case, tensors: Tensors) -> None:
        text = case.info["denoiser"]
        formula = re.search(r"D = ([\d.]+)\*T \+ ([\d.]+)\*tanh\(x\) \+ ([\d.]+)\*sigma\^2", text)
        assert formula is not None, text
        self._pull, self._bend, self._offset = (float(number) for number in formula.groups())
        uncond = re.search(r"uncond = ([\d.]+)\*D", text)
        self._uncond = float(uncond[1]) if uncond else 1.0
        self._targets = AudioVideo(*(tensors.get(f"in.target_{name}") for name in MODALITIES))
        self.calls: list[tuple[Evaluation, AudioVideo[Tensor]]] = []

    def __call__(self, asked: Evaluation) -> AudioVideo[Tensor] | Estimates:
        def estimate(x: Tensor, target: Tensor) -> Tensor:
            return (self._pull * target + self._bend * torch.tanh(x.float()) + self._offset * asked.sigma**2).to(
                x.dtype
            )

        denoised = each(estimate, asked.latents, self._targets)
        self.calls.append((asked, denoised))
        if not asked.needs_unconditional:
            return denoised
        return Estimates(denoised, denoised.map(lambda x: self._uncond * x))


def run_loop(case: Case, make_sampler: MakeSampler, seeds: NoiseSeeds) -> Iterator[Comparison]:
    tensors, allowed = case.tensors(), case.tolerance(SAMPLER_TOLERANCE)
    noise, model = RecordingNoise(seeds), RecordedModel(case, tensors)
    streams = read_streams(tensors)
    final = drive(make_sampler(tensors["in.sigmas"], streams, noise), model)
    ours: dict[str, Tensor] = {f"rec.noise.{number:03d}": draw for number, draw in enumerate(noise.drawn)}
    for number, (asked, denoised) in enumerate(model.calls):
        call = f"rec.call.{number:03d}"
        ours[f"{call}.sigma"] = torch.tensor([asked.sigma])
        ours |= {f"{call}.x_{name}": x for name, x in by_name(asked.latents).items()}
        ours |= {f"{call}.d_{name}": estimate for name, estimate in by_name(denoised).items()}
    ours |= {f"out.{name}.latent": latents for name, latents in by_name(final).items()}
    yield from compare_all(tensors, ours, allowed)
    num_calls = len({name.split(".")[2] for name in tensors if name.startswith("rec.call.")})
    if num_calls:
        yield count("denoiser calls", len(model.calls), case.info.get("n_denoiser_calls", num_calls))
    if any(name.startswith("rec.noise.") for name in tensors):
        yield count("draws", len(noise.drawn), sum(name.startswith("rec.noise.") for name in tensors))


def by_name(streams: AudioVideo[Tensor]) -> dict[str, Tensor]:
    pairs = zip(MODALITIES, (streams.video, streams.audio), strict=True)
    return {name: tensor for name, tensor in pairs if tensor is not None}


def count(name: str, ours: int, expected: int) -> Comparison:
    return Comparison(name, torch.tensor(ours), torch.tensor(expected), 0.0)


def run_res_2s(case: Case) -> Iterator[Comparison]:
    args = {name: parsed(value) for name, value in case.info.get("args", {}).items()}
    defaults = case.info.get("defaults", {})

    def take(name: str, default: Any) -> Any:
        return args.pop(name, defaults.get(name, default))

    step_seed = int(take("noise_seed", -1))
    substep_seed = args.pop("noise_seed_substep", None)
    has_bong, iterations = take("bongmath", True), int(take("bongmath_max_iter", 100))
    options = Res2sOptions(
        eta=take("eta", 0.5),
        bong_iterations=iterations if has_bong else 0,
        model_dtype=args.pop("model_dtype", torch.bfloat16),
        is_legacy=take("legacy_mode", True),
    )
    assert not args, f"arguments that nobody knows: {args}"
    seeds = NoiseSeeds(0, step_seed, None if substep_seed is None else int(substep_seed))
    yield from run_loop(case, lambda s, streams, noise: res_2s(None, s, streams, noise=noise, options=options), seeds)


def run_euler_family(case: Case) -> Iterator[Comparison]:
    """`kind` says which, or the component; all but `eta` and `ge_gamma` is the same for all."""
    args = {name: parsed(value) for name, value in case.info.get("args", {}).items()}
    eta = {"eta": args.pop("eta")} if "eta" in args else {}
    gamma = {"gamma": args.pop("ge_gamma")} if "ge_gamma" in args else {}
    assert not args, f"arguments that nobody knows: {args}"
    make: dict[str, MakeSampler] = {
        "euler": lambda sigmas, streams, noise: euler(None, sigmas, streams),
        "ge": lambda sigmas, streams, noise: gradient_estimation(None, sigmas, streams, **gamma),
        "ancestral": lambda sigmas, streams, noise: euler_ancestral(None, sigmas, streams, noise=noise, **eta),
        "cfgpp": lambda sigmas, streams, noise: euler_cfg_pp(None, sigmas, streams, noise=noise, **eta),
    }
    kind = case.info.get("kind", case.component.removesuffix(" loop"))
    yield from run_loop(case, make[kind], NoiseSeeds(0, int(case.info.get("noise_seed", -1))))


def run_coefficients(case: Case) -> Iterator[Comparison]:
    for row in case.info["rows"]:
        ours = coefficients(row["h"], row.get("c2", case.info.get("c2", 0.5)))
        for name in ("a21", "b1", "b2"):
            yield number(f"{name} of h={row['h']}", getattr(ours, name), row[name], case.tolerance(SAMPLER_TOLERANCE))
    for row in case.info.get("sde", ()):
        parts = noise_split(torch.tensor(row["sigma_next"], dtype=torch.float64), row["eta"])
        for name, part in zip(("alpha_ratio", "sigma_down", "sigma_up"), parts, strict=True):
            label = f"{name} of sigma_next={row['sigma_next']}, eta={row['eta']}"
            yield number(label, float(part), row[name], case.tolerance(SAMPLER_TOLERANCE))


def number(name: str, ours: float, expected: float, allowed: float) -> Comparison:
    return Comparison(
        name, torch.tensor(ours, dtype=torch.float64), torch.tensor(float(expected), dtype=torch.float64), allowed
    )


RUNNERS = {
    "scheduler": run_scheduler,
    "res2s loop": run_res_2s,
    "res2s coefficients": run_coefficients,
    "euler loop": run_euler_family,
    "ge loop": run_euler_family,
    "ancestral loop": run_euler_family,
    "cfgpp loop": run_euler_family,
}
