"""A run: make the pools, train one network after the other, measure latents, write files, and look at the result."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.training.autoencoders import files
from braid.training.autoencoders.audio import (
    AudioAutoencoder,
    AudioTraining,
    measure_token_statistics,
    mel_frames,
    mel_front_end,
    reconstruct,
)
from braid.training.autoencoders.pools import Clips, Sounds, make_clips, make_sounds
from braid.training.autoencoders.recipe import Recipe
from braid.training.autoencoders.trainee import Budget, TimeBudget, Trainee
from braid.training.autoencoders.upsampler import UpsamplerTraining, make_upsampler
from braid.training.autoencoders.video import VideoAutoencoder, VideoTraining, measure_statistics
from braid.training.autoencoders.vocoder import HighGenerator, HighTraining, LowGenerator, LowTraining
from braid.training.step_graphs import StepGraphs

LOG_EVERY = 50
RECORDED = ("video", "upsampler")
"""Networks whose steps are replayed on a GPU; the others are trained in minutes on a CPU."""
SAVE_EVERY_S = 60.0
STATISTICS_BATCH = 24


class Training(Protocol):
    """What trains one network."""

    trainee: Trainee
    name: str

    def draw(self) -> tuple[str, tuple[Tensor, ...]]:
        """The next batch: its kind, and what `loss_of` takes."""

    @property
    def loss_of(self) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        """Of a batch, and what it is made of."""


class Log:
    """Lines of JSON in a file and on the screen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.monotonic()

    def write(self, **values: Any) -> None:
        """Add a line, with the seconds since the log began."""
        line = json.dumps({"at_s": round(time.monotonic() - self._start, 1), **values})
        with self._path.open("a") as file:
            file.write(f"{line}\n")
        print(line, flush=True)


class Run:
    """One run over the networks of a recipe."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        *,
        resume: Path | None = None,
        restart: Iterable[str] = (),
    ) -> None:
        """
        Args:
            resume: a folder that an earlier run wrote.
            restart: networks that begin anew all the same.
        """
        out.mkdir(parents=True, exist_ok=True)
        self._recipe, self._out, self._device = recipe, out, device
        self.log = Log(out / "log.jsonl")
        torch.manual_seed(recipe.seed)
        self.trainees = {name: self._trainee(name, network) for name, network in _networks(recipe).items()}
        self.statistics = _unknown_statistics(recipe)
        if resume is not None:
            self._resume(resume, set(restart))
        # Another seed than before, or a resumed run would see the same batches again.
        seed = recipe.seed + sum(trainee.num_steps for trainee in self.trainees.values())
        self._rng = random.Random(seed)
        self._generator = Generator(device).manual_seed(seed)
        self._last_save = time.monotonic()

    def train(self, budgets: Mapping[str, Callable[[], Budget]]) -> None:
        """Train these networks, in the order in which they need each other.

        Args:
            budgets: made when a network's turn comes.
        """
        for name in files.NETWORKS:
            if name in budgets:
                self._train_one(self._training(name), budgets[name]())
                self._measure(name)
                self.save()

    def save(self) -> None:
        """Write all files."""
        files.write(self._out, self._recipe.sections, self.trainees, self.statistics)
        self._last_save = time.monotonic()

    @cached_property
    def clips(self) -> dict[int, Clips]:
        """Drawn at first use."""
        start = time.monotonic()
        pools = make_clips(self._recipe.num_clips, self._rng, self._device)
        self.log.write(stage="draw", clips=sum(self._recipe.num_clips.values()), seconds=_since(start))
        return pools

    @cached_property
    def sounds(self) -> dict[int, Sounds]:
        """By the number of frames, (N, 2, samples) with silence up to whole mel frames."""
        start = time.monotonic()
        sounds = {}
        for num_frames, count in self._recipe.num_sounds.items():
            made = make_sounds(count, num_frames, self._rng, self._front_end.sample_rate / self._front_end.hop)
            drawn, locked = (
                functional.pad(sound.to(self._device), (0, self._front_end.hop)) for sound in (made.drawn, made.locked)
            )
            sounds[num_frames] = Sounds(drawn, locked)
        self.log.write(stage="sound", sounds=sum(self._recipe.num_sounds.values()), seconds=_since(start))
        return sounds

    @cached_property
    def _front_end(self) -> Any:
        return mel_front_end(self._recipe.sections.audio)

    @cached_property
    def _mels(self) -> dict[int, Tensor]:
        """As the audio autoencoder hears the sounds, in whole latents."""
        hop = self._front_end.hop
        return {
            num_frames: torch.cat(
                [mel_frames(part[..., :-hop], self._front_end) for part in torch.split(sounds.drawn, 64)]
            )
            for num_frames, sounds in self.sounds.items()
        }

    def _trainee(self, name: str, network: nn.Module) -> Trainee:
        network = network.to(self._device)
        if name == "video" and self._device.type == "cuda":
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return Trainee(network, learning_rate=self._recipe.learning_rates[name])

    def _resume(self, folder: Path, restart: set[str]) -> None:
        for name, trainee in self.trainees.items():
            if name in restart:
                continue
            saved = files.read(folder, name, list(trainee.network.state_dict()))
            trainee.load(saved.state, saved.averaged, saved.num_steps)
        for name in self.statistics.keys() - restart:
            self.statistics[name] = files.read_statistics_of(folder, name)

    def _training(self, name: str) -> Training:
        recipe, trainee, generator = self._recipe, self.trainees[name], self._generator
        if name == "video":
            return VideoTraining(trainee, self.clips, recipe.video_batches, generator)
        if name == "upsampler":
            encoder, size = self.trainees["video"].average, recipe.upsampler_batch
            statistics = self.statistics["video"]
            return UpsamplerTraining(trainee, encoder, statistics, self.clips, batch_size=size, generator=generator)
        if name == "audio":
            return AudioTraining(trainee, self._mels, recipe.audio_batch, generator)
        if name == "vocoder":
            return self._low_training()
        return HighTraining(trainee, self._low_training(), self.trainees["vocoder"].average)

    def _low_training(self) -> LowTraining:
        recipe = self._recipe
        mels = self._mels[recipe.sound_frames]
        return LowTraining(
            self.trainees["vocoder"],
            self.sounds[recipe.sound_frames].locked,
            (mels, reconstruct(self.trainees["audio"].average, mels)),
            self._front_end.hop,
            batch_size=recipe.vocoder_batch,
            num_frames=recipe.vocoder_frames,
            generator=self._generator,
        )

    def _train_one(self, training: Training, budget: Budget) -> None:
        # Trying algorithms takes ten seconds a shape for the audio autoencoder's, more than they can win.
        torch.backends.cudnn.benchmark = training.name != "audio"
        graphs = StepGraphs(self._device, self.log.write, is_used=training.name in RECORDED)
        with graphs.stream():
            self._go(training, budget, graphs)

    def _go(self, training: Training, budget: Budget, graphs: StepGraphs) -> None:
        trainee, step, start = training.trainee, 0, time.monotonic()

        def descend(*batch: Tensor) -> dict[str, Tensor]:
            loss, figures = training.loss_of(*batch)
            return {**figures, "norm": trainee.descend(loss)}

        while (progress := budget.progress(step)) < 1:
            kind, batch = training.draw()
            trainee.begin_step(progress)
            figures = graphs.run(kind, descend, *batch)
            trainee.end_step()
            if step % LOG_EVERY == 0:
                shown = {key: round(float(value.detach()), 5) for key, value in figures.items()}
                done = {"step": trainee.num_steps, "progress": round(progress, 3), "seconds": _since(start)}
                self.log.write(stage=training.name, batch=kind, **done, **shown)
            if time.monotonic() - self._last_save > SAVE_EVERY_S:
                self.save()
            step += 1
        self.log.write(stage=training.name, steps=step, seconds=_since(start))

    def _measure(self, name: str) -> None:
        """The statistics of latents that have just been trained."""
        if name == "video":
            network = self.trainees["video"].average
            self.statistics["video"] = measure_statistics(network, self._some_clips())
        elif name == "audio":
            network = self.trainees["audio"].average
            self.statistics["audio"] = measure_token_statistics(
                network, (part for mels in self._mels.values() for part in torch.split(mels[:256], 64))
            )
        if name in self.statistics:
            std = self.statistics[name].std
            self.log.write(stage=f"{name} latents", smallest_std=float(std.min()), largest_std=float(std.max()))

    def _some_clips(self) -> Iterator[Tensor]:
        for _ in range(self._recipe.statistics_batches):
            for pool in self.clips.values():
                yield from pool.pairs(STATISTICS_BATCH, self._generator)


def _networks(recipe: Recipe) -> dict[str, nn.Module]:
    sections = recipe.sections
    num_mel_bins = mel_front_end(sections.audio).num_mel_bins
    return {
        "video": VideoAutoencoder(sections.video),
        "upsampler": make_upsampler(sections.upsampler),
        "audio": AudioAutoencoder(sections.audio),
        "vocoder": LowGenerator(sections.vocoder, num_mel_bins),
        "extension": HighGenerator(sections.vocoder),
    }


def _unknown_statistics(recipe: Recipe) -> dict[str, LatentStatistics]:
    """What files say before latents were measured."""
    network = recipe.sections.audio["model"]["params"]["ddconfig"]
    num_bins = network["mel_bins"] // 2 ** (len(network["ch_mult"]) - 1)
    widths = {"video": recipe.sections.video["latent_channels"], "audio": network["z_channels"] * num_bins}
    return {
        name: LatentStatistics(torch.zeros(width), torch.ones(width), 2 if name == "audio" else 1)
        for name, width in widths.items()
    }


def time_budgets(shares: Mapping[str, float], seconds: float) -> dict[str, Callable[[], Budget]]:
    """Every network's part of `seconds`, counted from when its turn comes."""
    total = sum(shares.values())
    return {name: _starter(seconds * share / total) for name, share in shares.items()}


def _starter(seconds: float) -> Callable[[], Budget]:
    return lambda: TimeBudget(seconds)


def show(out: Path, device: torch.device, log: Log, *, num_scenes: int, num_shown: int = 12) -> None:
    """Judge what was written and make pictures of it: untrained combinations first, and one in each style."""
    from braid.training.autoencoders import evaluation, pictures

    models = evaluation.open_autoencoders(out, device)
    scenes = evaluation.untrained_scenes(num_scenes, seed=1)
    clips = [evaluation.reconstruct(scene, models, device) for scene in scenes]
    styled = [evaluation.reconstruct(scene, models, device) for scene in evaluation.styled_scenes(seed=1)]
    pictures.save_clips(out / "samples.png", clips[: num_shown - len(styled)] + styled)
    pictures.save_spectrograms(out / "spectrograms.png", _one_of_each_sound(clips), models.front_end)
    log.write(stage="evaluation", **evaluation.judge(clips))


def _one_of_each_sound(clips: Iterable[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for clip in clips:
        found.setdefault(clip.scene.sound, clip)
    return list(found.values())


def _since(start: float) -> float:
    return round(time.monotonic() - start, 1)
