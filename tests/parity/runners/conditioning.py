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
from braid.tests.parity.comparison import Comparison, compare_all

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


NUMBER = r"(\d+(?:\.\d+)?)"


def told(default: float, *places: tuple[str, str]) -> float:
    """The number after the first pattern that its text has."""
    found = (re.search(pattern + NUMBER, text) for pattern, text in places)
    return next((float(match[1]) for match in found if match is not None), default)


def strength(part: str, text: str) -> float:
    """`_s0.8`, or in words."""
    return told(1.0, (r"_s", part), (r"(?<!attention )strength ", text))


def hold_image(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`latent_index_0_s0.8` (a latent index), `image0` (the first frame)."""
    index = int(told(0, (r"(?:index_|image)", part)))
    latents = scene.tensors["in.image_latent"]
    return hold_latent_frames(state, latents, scene.grid, latent_index=index, strength=strength(part, text))


def keyframe(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`keyframe17_s0.6`, `keyframe_clip_at0_9px`, or a `keyframe` whose place only the description tells."""
    is_clip = "clip" in part
    place = told(0, (r"keyframe(?:_clip)?(?:_at_?)?", part), (r"(?:pixel|frame) ", text))
    px = re.search(r"_(\d+)px", part)
    num_pixel_frames = int(px[1]) if px else int(told(0, (r"num_pixel_frames=", text)))
    return append_keyframes(
        state,
        scene.tensors["in.keyframe_clip_latent" if is_clip else "in.keyframe_latent"],
        scene.grid,
        frame_index=int(place),
        frame_rate=scene.fps,
        strength=strength(part, text),
        num_pixel_frames=num_pixel_frames or None,
    )


def reference(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`reference_ds2_attn0.5`; where no scale is told it follows from the sizes."""
    latents = scene.tensors["in.reference_latent"]
    attention = told(-1.0, (r"_attn", part), (r"attention strength ", text))
    own_scale = scene.grid.height // latents.shape[-2]
    return append_reference(
        state,
        latents,
        scene.grid,
        frame_rate=scene.fps,
        downscale_factor=int(told(own_scale, (r"_ds", part), (r"downscale factor ", text))),
        temporal_scale_factor=int(told(1, (r"_temporal", part), (r"temporal_scale_factor ", text))),
        strength=strength(part, text),
        attention_strength=None if attention < 0 else attention,
    )


def mask(scene: Scene, state: LatentState, part: str, text: str) -> LatentState:
    """`mask_s0.9`; the description tells what is held."""
    tokens = state.latents * told(1.0, (r"latent = ", text))
    return hold_masked(state, tokens, scene.tensors["in.mask"].flatten(1), strength=strength(part, text))


KINDS = {"latent_index": hold_image, "image": hold_image, "keyframe": keyframe, "reference": reference, "mask": mask}


def conditioned(scene: Scene, name: str, text: str) -> LatentState:
    """The parts of an item's name, applied in order."""
    state, parts = scene.initial(), re.split(r"_plus_|_then_", name)
    clauses = re.split(r" then | followed by | plus ", text)
    if len(clauses) != len(parts):
        clauses = [text] * len(parts)
    for part, clause in zip(parts, clauses, strict=True):
        kind = next((kind for kind in KINDS if part.startswith(kind)), None)
        assert kind is not None, f"nobody knows the item {part!r} of {name!r}: {text}"
        state = KINDS[kind](scene, state, part, clause)
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
            ours[f"out.{name}.noised_latent"] = noised.latents
            own = drop_appended(noised.latents, grid.num_tokens)
        ours[f"out.{name}.cleared_unpatchified"] = unpatchify_video(own, grid.frames, grid.height, grid.width)
    if "in.audio_latent" in tensors:
        ours |= audio_tokens(tensors["in.audio_latent"])
    recorded = {name: tensor for name, tensor in tensors.items() if not name.startswith("rec.")}
    yield from compare_all(recorded, ours, case.tolerance(STATE_TOLERANCE))
    missing = [f"out.{name}.attention_mask" for name in case.info["items"] if f"out.{name}.attention_mask" in ours]
    yield Comparison("no other attention masks", *counts(missing, tensors), 0.0)


def counts(names: list[str], tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.tensor(len(names)), torch.tensor(sum(name in tensors for name in names))


def audio_tokens(latents: Tensor) -> dict[str, Tensor]:
    tokens = patchify_audio(latents)
    assert torch.equal(unpatchify_audio(tokens, latents.shape[1]), latents)
    return {"out.audio.tokens": tokens, "out.audio.positions": audio_positions(tokens.shape[1])}


RUNNERS = {"state/conditioning": run_conditioning}
