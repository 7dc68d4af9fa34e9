"""Tokens and positions of both streams, and everything that conditions them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.diffusion.conditioning import append_keyframes, append_reference, hold_latent_frames, hold_masked
from braid.diffusion.latents import (
    LatentState,
    add_noise,
    drop_appended,
    free_state,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)
from braid.diffusion.positions import VideoGrid, audio_positions, video_positions
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison
from braid.tests.parity.runners.sampling import compare_all, tolerance

STATE_TOLERANCE = 1e-5
STATE_FIELDS = {
    "latent": "latents",
    "denoise_mask": "denoise_mask",
    "positions": "positions",
    "clean_latent": "clean_latents",
    "attention_mask": "attention_mask",
}


@dataclass(frozen=True)
class Scene:
    """What all items of a case share."""

    tensors: Mapping[str, Tensor]
    grid: VideoGrid
    fps: float

    def initial(self) -> LatentState:
        return free_state(patchify_video(self.tensors["in.initial_latent"]), video_positions(self.grid, self.fps))


def read_scene(case: Case) -> Scene:
    return Scene(
        case.tensors(), VideoGrid(*case.info["latent_grid_fhw"], *case.info["scale_factors"]), case.info["fps"]
    )


def number(pattern: str, text: str, default: float) -> float:
    found = re.search(pattern, text)
    return default if found is None else float(found[1])


def hold_image(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`latent_index_0_s0.8` (a latent index), `image0` (the first frame)."""
    index = int(number(r"(?:index_|image)(\d+)", part, 0))
    latents, strength = scene.tensors["in.image_latent"], number(r"_s([\d.]+)", part, 1.0)
    return hold_latent_frames(state, latents, scene.grid, latent_index=index, strength=strength)


def keyframe(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`keyframe17_s0.6`, `keyframe_clip_at0_9px`, or a `keyframe` whose place only the description tells."""
    is_clip = "clip" in part
    place = number(r"keyframe(?:_clip_at)?(\d+)", part, number(r"keyframe.*?pixel (?:frame )?(\d+)", text, 0))
    num_pixel_frames = number(r"_(\d+)px", part, 0)
    return append_keyframes(
        state,
        scene.tensors["in.keyframe_clip_latent" if is_clip else "in.keyframe_latent"],
        scene.grid,
        frame_index=int(place),
        frame_rate=scene.fps,
        strength=number(r"_s([\d.]+)", part, 1.0),
        num_pixel_frames=int(num_pixel_frames) or None,
    )


def reference(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`reference_ds2_attn0.5`; where no scale is told it follows from the sizes."""
    latents = scene.tensors["in.reference_latent"]
    attention = number(r"_attn([\d.]+)", part, -1.0)
    return append_reference(
        state,
        latents,
        scene.grid,
        frame_rate=scene.fps,
        downscale_factor=int(number(r"_ds(\d+)", part, scene.grid.height // latents.shape[-2])),
        temporal_scale_factor=int(number(r"_temporal(\d+)", part, 1)),
        strength=number(r"_s([\d.]+)", part, 1.0),
        attention_strength=None if attention < 0 else attention,
    )


def mask(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`mask_s0.9`; the description tells what is held."""
    tokens = state.latents * number(r"latent = ([\d.]+)\*initial", text, 1.0)
    held = scene.tensors["in.mask"].flatten(1)
    return hold_masked(state, tokens, held, strength=number(r"_s([\d.]+)", part, 1.0))


KINDS = {"latent_index": hold_image, "image": hold_image, "keyframe": keyframe, "reference": reference, "mask": mask}


def conditioned(scene: Scene, name: str, text: str) -> LatentState:
    """The parts of an item's name, applied in order."""
    state = scene.initial()
    for part in re.split(r"_plus_|_then_", name):
        kind = next(kind for kind in KINDS if part.startswith(kind))
        state = KINDS[kind](scene, state, part, text)
    return state


def run_conditioning(case: Case) -> Iterator[Comparison]:
    scene = read_scene(case)
    grid, tensors = scene.grid, scene.tensors
    initial = scene.initial()
    ours = {"out.init.latent_tokens": initial.latents, "out.init.positions": initial.positions}
    for name, text in case.info["items"].items():
        state = conditioned(scene, name, text)
        fields = {key: getattr(state, field) for key, field in STATE_FIELDS.items()}
        ours |= {f"out.{name}.{key}": value for key, value in fields.items() if value is not None}
        own = drop_appended(state.latents, grid.num_tokens)
        if f"rec.{name}.noise" in tensors:
            noised = add_noise(state, tensors[f"rec.{name}.noise"], case.info["noise_scale"])
            ours |= {f"rec.{name}.noise": tensors[f"rec.{name}.noise"], f"out.{name}.noised_latent": noised.latents}
            own = drop_appended(noised.latents, grid.num_tokens)
        ours[f"out.{name}.cleared_unpatchified"] = unpatchify_video(own, grid.frames, grid.height, grid.width)
    if "in.audio_latent" in tensors:
        ours |= audio_tokens(tensors["in.audio_latent"])
    yield from compare_all(tensors, ours, tolerance(case, STATE_TOLERANCE))
    missing = [f"out.{name}.attention_mask" for name in case.info["items"] if f"out.{name}.attention_mask" in ours]
    yield Comparison("no other attention masks", *counts(missing, tensors), 0.0)


def counts(names: list[str], tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.tensor(len(names)), torch.tensor(sum(name in tensors for name in names))


def audio_tokens(latents: Tensor) -> dict[str, Tensor]:
    tokens = patchify_audio(latents)
    assert torch.equal(unpatchify_audio(tokens, latents.shape[1]), latents)
    return {"out.audio.tokens": tokens, "out.audio.positions": audio_positions(tokens.shape[1])}


RUNNERS = {"state/conditioning": run_conditioning}
