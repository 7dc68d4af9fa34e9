"""How well what is shipped keeps what was drawn: through the loader, read by the checker, on untrained combinations.

`python -m braid.training.autoencoders.evaluation FOLDER` prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.audio_mel import MelFrontEnd, read_mel_front_end
from braid.diffusion.models.ltx2.audio_vae import AudioDecoder, AudioEncoder
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint, open_ltx2
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.upsampler import LatentUpsampler
from braid.diffusion.models.ltx2.video_vae import VideoDecoder, VideoEncoder, to_uint8_frames
from braid.diffusion.models.ltx2.vocoder import Vocoder
from braid.training.autoencoders.audio import mel_frames
from braid.training.autoencoders.drawing import draw
from braid.training.autoencoders.pools import LARGE, SMALL
from braid.training.world.captions import claims_of
from braid.training.world.hearing import sound_of
from braid.training.world.judging import Tally, judged, read_film
from braid.training.world.scene import Scene, sample_scene
from braid.training.world.sound import render_sound
from braid.training.world.vocabulary import SAMPLE_RATE, STYLES

NUM_FRAMES = 25
FRAME_RATE = 24.0


@dataclass(frozen=True)
class Autoencoders:
    """What is shipped, as the loader builds it."""

    video_encoder: VideoEncoder
    video_decoder: VideoDecoder
    upsampler: LatentUpsampler
    audio_encoder: AudioEncoder
    audio_decoder: AudioDecoder
    vocoder: Vocoder
    front_end: MelFrontEnd


def open_autoencoders(folder: Path, device: torch.device) -> Autoencoders:
    """From the files of a run."""
    checkpoint = open_ltx2(
        folder / "video_vae.safetensors",
        split_files=[folder / "audio.safetensors"],
        upsampler=folder / "upsampler.safetensors",
    )

    def build(make: Any, part: Part) -> Any:
        return make(checkpoint.section(part), _on(device, checkpoint.weights(part)))

    video_encoder = build(VideoEncoder, Part.VIDEO_ENCODER)
    return Autoencoders(
        video_encoder=video_encoder,
        video_decoder=build(VideoDecoder, Part.VIDEO_DECODER),
        upsampler=_build_upsampler(checkpoint, video_encoder, device),
        audio_encoder=build(AudioEncoder, Part.AUDIO_ENCODER),
        audio_decoder=build(AudioDecoder, Part.AUDIO_DECODER),
        vocoder=build(Vocoder, Part.VOCODER),
        front_end=read_mel_front_end(checkpoint.section(Part.AUDIO_ENCODER)),
    )


def _build_upsampler(checkpoint: LTX2Checkpoint, encoder: VideoEncoder, device: torch.device) -> LatentUpsampler:
    assert checkpoint.upsampler is not None
    weights = _on(device, checkpoint.upsampler.weights())
    return LatentUpsampler(checkpoint.upsampler.section, weights, encoder.statistics)


def _on(device: torch.device, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in weights.items()}


@dataclass(frozen=True)
class Clip:
    """A scene as drawn and as it came back; frames are (F, H, W, 3) uint8, sounds (2, samples)."""

    scene: Scene
    frames: dict[str, Tensor]
    sounds: dict[str, tuple[Tensor, int]]
    """With their rates."""


def reconstruct(scene: Scene, models: Autoencoders, device: torch.device) -> Clip:
    """Through all of the autoencoders."""
    drawn = {size: draw([scene], NUM_FRAMES, size, device) * 2 - 1 for size in (SMALL, LARGE)}
    latents = {size: models.video_encoder.encode(clip) for size, clip in drawn.items()}
    frames = {f"drawn_{size}": to_uint8_frames(clip) for size, clip in drawn.items()}
    frames |= {f"decoded_{size}": _decode(models, latent) for size, latent in latents.items()}
    frames[f"upsampled_{LARGE}"] = _decode(models, models.upsampler(latents[SMALL]))
    truth = render_sound([scene], NUM_FRAMES, FRAME_RATE)
    mel = mel_frames(truth.to(device), models.front_end)
    decoded = models.audio_decoder.decode(models.audio_encoder.encode(mel))
    sounds = {
        "drawn": (truth[0], SAMPLE_RATE),
        "vocoded": (models.vocoder(mel)[0].cpu(), models.vocoder.sample_rate),
        "decoded": (models.vocoder(decoded)[0].cpu(), models.vocoder.sample_rate),
    }
    return Clip(scene, frames, sounds)


def _decode(models: Autoencoders, latents: Tensor) -> Tensor:
    return to_uint8_frames(finish(models.video_decoder.decode(latents)))


def psnr(ours: Tensor, truth: Tensor) -> float:
    """In decibels, of uint8 frames."""
    square = (ours.float() - truth.float()).square().mean() / 255**2
    return float(-10 * torch.log10(square.clamp(min=1e-10)))


def judge(clips: Iterable[Clip]) -> dict[str, Any]:
    """PSNR, and the share of claims that the checker finds right, of every way that a clip went."""
    ratios: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, Tally] = defaultdict(Tally)
    heard: dict[str, Tally] = defaultdict(Tally)
    count = 0
    for clip in clips:
        count += 1
        for way, frames in clip.frames.items():
            if not way.startswith("drawn"):
                ratios[way].append(psnr(frames, clip.frames[f"drawn_{way.split('_')[1]}"]))
            _tally_pictures(clip.scene, frames, seen[way])
        for way, (sound, rate) in clip.sounds.items():
            heard[way].add([(clip.scene.sound, sound_of(sound, rate) == clip.scene.sound)])
    return {
        "num_scenes": count,
        "psnr": {way: round(sum(values) / len(values), 2) for way, values in ratios.items()},
        "worst_psnr": {way: round(min(values), 2) for way, values in ratios.items()},
        "claims_right": {way: tally.shares() for way, tally in seen.items()},
        "sound_right": {way: tally.shares() for way, tally in heard.items()},
    }


def _tally_pictures(scene: Scene, frames: Tensor, tally: Tally) -> None:
    seen = [claim.kind for claim in claims_of(scene) if claim.kind != "sound"]
    tally.add(judged(scene, read_film(scene, frames), seen))


def untrained_scenes(number: int, seed: int) -> list[Scene]:
    """Combinations that were not trained on."""
    rng = random.Random(seed)
    return [sample_scene(rng, held_out=True) for _ in range(number)]


def styled_scenes(seed: int) -> list[Scene]:
    """One in each style."""
    rng = random.Random(seed)
    return [sample_scene(rng, held_out=True, style=style) for style in STYLES]


def evaluate(folder: Path, device: torch.device, *, num_scenes: int, seed: int = 1) -> dict[str, Any]:
    """Judge the files of a run."""
    models = open_autoencoders(folder, device)
    return judge(reconstruct(scene, models, device) for scene in untrained_scenes(num_scenes, seed))


def decode_seconds(models: Autoencoders, size: int = LARGE) -> dict[str, float]:
    """How long decoding a clip of 25 frames and its sound takes here; the best of three."""
    scene = untrained_scenes(1, 0)[0]
    latents = models.video_encoder.encode(draw([scene], NUM_FRAMES, size, torch.device("cpu")) * 2 - 1)
    mel = mel_frames(render_sound([scene], NUM_FRAMES, FRAME_RATE), models.front_end)
    sound = models.audio_encoder.encode(mel)
    return {
        "video": _best(lambda: finish(models.video_decoder.decode(latents))),
        "upsampler": _best(lambda: models.upsampler(latents)),
        "mel": _best(lambda: models.audio_decoder.decode(sound)),
        "vocoder": _best(lambda: models.vocoder(mel)),
    }


def _best(work: Any) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(min(times), 3)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="judge the autoencoders of a run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--time", action="store_true", help="measure decoding on this CPU instead")
    options = parser.parse_args()
    if options.time:
        print(json.dumps(decode_seconds(open_autoencoders(options.folder, torch.device("cpu")))))
    else:
        print(json.dumps(evaluate(options.folder, options.device, num_scenes=options.num_scenes, seed=options.seed)))


if __name__ == "__main__":
    main()
