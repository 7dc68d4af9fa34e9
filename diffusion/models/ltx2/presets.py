"""What a pipeline does where the user says nothing: steps, guidance, sizes.

Chosen by the model's version, in latents and not in pixels, so that a checkpoint with other factors gets sizes that it
can do; what the checkpoint's own metadata says comes before.
Source: specs of LTX-2, section d.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from braid.diffusion.guidance import Guidance
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.diffusion.models.ltx2.geometry import Geometry

PIPELINES = (
    "one_stage", "two_stage", "two_stage_hq", "distilled", "keyframe_interpolation", "a2vid", "retake", "extend",
    "text_to_audio",
)  # fmt: skip
ONE_STAGE = ("one_stage", "retake", "extend", "text_to_audio")
"""Those that work at their final size from the start."""
UNGUIDED = AudioVideo(Guidance(), Guidance())
STAGE_1_ROWS, STAGE_1_COLUMNS = 16, 24
"""Latents of the first stage: 512x768 pixels of a released model."""
HQ_ROWS, HQ_COLUMNS = 17, 30
"""544x960 pixels, so 1088x1920 in the end."""
LATENT_FRAMES = 16
"""121 frames."""

DEFAULT_NEGATIVE_PROMPT = (
    "subtitles, burned-in captions, watermark, logo, blurred box, letterbox bars, fade from black, frozen frame, "
    "slideshow, abrupt cut, flicker, strobing, jitter, rolling shutter, motion blur, ghost trails, blurry, unfocused, "
    "overexposed, underexposed, low contrast, washed-out colours, colour banding, oversharpened, noise, grain, "
    "compression blocks, pixelation, moire, chromatic aberration, vignette, distorted anatomy, extra limbs, "
    "missing fingers, fused fingers, deformed hands, deformed face, asymmetric eyes, crossed eyes, waxy skin, "
    "unnatural gait, floating objects, objects passing through each other, melting shapes, inconsistent shadows, "
    "inconsistent scale, warped background, garbled text, repeated patterns, lifeless expression, stiff movement, "
    "speech out of sync with lips, muffled speech, robotic voice, distorted sound, clipping, hiss, hum, echo, "
    "sudden silence, sound that does not match the picture, mismatched footsteps, and other artefacts of generation."
)
"""What a guided pipeline steers away from. Written for this project; the official list is not reproduced."""


@dataclass(frozen=True, slots=True)
class Preset:
    """The defaults of one pipeline."""

    num_inference_steps: int
    guidance: AudioVideo[Guidance]
    height: int
    """Of the result, pixels."""
    width: int
    num_frames: int
    frame_rate: float = 24.0
    seed: int = 10
    image_crf: int = 33
    """Of the H.264 round trip of conditioning images; 0 is none."""
    distilled_strengths: tuple[float, ...] = ()
    """Of the distilled adapter in each stage; empty where there is none."""
    sigmas: tuple[float, ...] | None = None
    """Of the first stage; None computes them."""
    stage_2_sigmas: tuple[float, ...] | None = None
    """None is the distilled list."""
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT


@dataclass(frozen=True, slots=True)
class VersionDefaults:
    """A row of the table of versions."""

    version: tuple[int, ...]
    num_inference_steps: int
    stg_block: int
    image_crf: int


VERSIONS = (
    VersionDefaults((2, 0), 40, 29, 33),
    VersionDefaults((2, 3), 30, 28, 33),
    VersionDefaults((2, 4), 30, 28, 18),
)


def version_defaults(model_version: str | None) -> VersionDefaults:
    """The newest row that is not newer than the model; the first one where the version cannot be read."""
    match = re.match(r"\d+(\.\d+)*", model_version or "")
    version = tuple(int(part) for part in match[0].split(".")[:4]) if match else VERSIONS[0].version
    return max((row for row in VERSIONS if row.version <= version), default=VERSIONS[0], key=lambda row: row.version)


def full_guidance(stg_block: int) -> AudioVideo[Guidance]:
    """Of all pipelines but the high-quality one."""
    video = Guidance(3.0, stg_scale=1.0, stg_blocks=(stg_block,), modality_scale=3.0, rescale=0.7)
    return AudioVideo(video, replace(video, guidance_scale=7.0))


HQ_GUIDANCE = AudioVideo(
    Guidance(3.0, modality_scale=3.0, rescale=0.45),
    Guidance(7.0, modality_scale=3.0, rescale=1.0),
)


def read_presets(config: CheckpointConfig, geometry: Geometry, num_layers: int) -> dict[str, Preset]:
    """The preset of every pipeline.

    Args:
        num_layers: of the transformer; a smaller one has no block 28 to skip, so its guidance skips none.
    Raises:
        ModelFileError: the metadata's own presets name unknown pipelines or keys, or have impossible values.
    """
    row = version_defaults(config.model_version)
    own = config.braid_section("presets")
    for name in own.values:
        if name not in PIPELINES:
            raise own.error(name, own.values[name], f"under the name of a pipeline: {', '.join(PIPELINES)}")
    return {
        name: _overridden(_preset(name, row, geometry, num_layers), own.section(name) if name in own else None)
        for name in PIPELINES
    }


def _preset(name: str, row: VersionDefaults, geometry: Geometry, num_layers: int) -> Preset:
    is_two_stage = name not in ONE_STAGE
    rows, columns = (HQ_ROWS, HQ_COLUMNS) if name == "two_stage_hq" else (STAGE_1_ROWS, STAGE_1_COLUMNS)
    # A first stage that the upsampler cannot enlarge to whole latents is cut to one that it can.
    whole = geometry.upscale.denominator if is_two_stage else 1
    scale = geometry.upscale if is_two_stage else 1
    preset = Preset(
        num_inference_steps=row.num_inference_steps,
        guidance=full_guidance(row.stg_block),
        height=int(rows // whole * whole * geometry.video.space_factor * scale),
        width=int(columns // whole * whole * geometry.video.space_factor * scale),
        num_frames=(LATENT_FRAMES - 1) * geometry.video.time_factor + 1,
        image_crf=row.image_crf,
    )
    if name == "distilled":
        return replace(preset, num_inference_steps=8, guidance=UNGUIDED)
    if name == "two_stage_hq":
        return replace(preset, num_inference_steps=15, guidance=HQ_GUIDANCE, distilled_strengths=(0.25, 0.5))
    if is_two_stage:
        preset = replace(preset, distilled_strengths=(0.0, 1.0))
    return preset if row.stg_block < num_layers else replace(preset, guidance=_without_stg(preset.guidance))


def _without_stg(guidance: AudioVideo[Guidance]) -> AudioVideo[Guidance]:
    return guidance.map(lambda stream: replace(stream, stg_scale=0.0, stg_blocks=()))


def _overridden(preset: Preset, section: Section | None) -> Preset:
    """A preset with what the metadata says."""
    if section is None:
        return preset
    known = {field.name: getattr(preset, field.name) for field in fields(preset)}
    changes = {key: _value(section, key, known) for key in section.values if key not in ("video", "audio")}
    guidance = AudioVideo(
        _guidance(section, "video", preset.guidance.video), _guidance(section, "audio", preset.guidance.audio)
    )
    return replace(preset, **changes, guidance=guidance)


def _value(section: Section, key: str, known: Mapping[str, Any]) -> Any:
    """A value of the same type as the one that it replaces."""
    value = section.values[key]
    if key not in known or key == "guidance":
        names = ", ".join(name for name in known if name != "guidance")
        raise section.error(key, value, f"a known key: {names}, video, audio")
    if key in ("sigmas", "stage_2_sigmas", "distilled_strengths"):
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise section.error(key, value, "a list of numbers")
        return tuple(float(item) for item in value)
    if isinstance(known[key], str):
        if not isinstance(value, str):
            raise section.error(key, value, "text")
        return value
    if isinstance(known[key], float):
        return section.number(key)
    if key in ("seed", "image_crf") and value == 0 and type(value) is int:
        return 0
    return section.integer(key)


def _guidance(section: Section, key: str, guidance: Guidance | None) -> Guidance:
    assert guidance is not None
    if key not in section:
        return guidance
    own = section.section(key)
    known = {field.name for field in fields(guidance)}
    for name in own.values:
        if name not in known:
            raise own.error(name, own.values[name], f"a known key: {', '.join(sorted(known))}")
    changes: dict[str, Any] = {name: _guidance_number(own, name) for name in own.values if name != "stg_blocks"}
    if "stg_blocks" in own:
        changes["stg_blocks"] = _block_numbers(own)
    return replace(guidance, **changes)


def _guidance_number(section: Section, name: str) -> float | int:
    value = section.values[name]
    kinds: tuple[type, ...] = (int,) if name == "skip_step" else (int, float)
    if type(value) not in kinds or not 0 <= value < float("inf"):
        raise section.error(name, value, "a number that is not negative")
    return int(value) if name == "skip_step" else float(value)


def _block_numbers(section: Section) -> tuple[int, ...]:
    value = section.values["stg_blocks"]
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise section.error("stg_blocks", value, "a list of numbers of blocks")
    return tuple(value)
