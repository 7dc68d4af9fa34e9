"""What users hand over besides plain values: pictures, clips, sound, tensors; read into what `GenerationParams` holds.

Arrays of NumPy, tensors, Pillow's images and names of files are all taken; each reader is (name, value) to value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from braid.diffusion.arguments import number, numbers, text, whole
from braid.diffusion.guidance import Guidance
from braid.diffusion.latents import AudioVideo
from braid.diffusion.noise import NoiseSource
from braid.diffusion.operations import PromptEmbeds, Waveform
from braid.diffusion.params import AdapterChoice, ImageCondition
from braid.errors import InvalidRequest

GUIDANCE_FIELDS = tuple(field.name for field in fields(Guidance))


@dataclass(frozen=True, slots=True)
class GuidanceChanges:
    """What differs from the preset's guidance, by stream."""

    by_stream: Mapping[str, Mapping[str, Any]]

    def applied(self, preset: AudioVideo[Guidance]) -> AudioVideo[Guidance]:
        """The preset's, changed."""
        return AudioVideo(*(self._changed(stream, getattr(preset, stream)) for stream in ("video", "audio")))

    def _changed(self, stream: str, preset: Guidance | None) -> Guidance | None:
        changes = self.by_stream.get(stream)
        if not changes:
            return preset
        known = {name: getattr(preset or Guidance(), name) for name in GUIDANCE_FIELDS}
        return Guidance(**(known | dict(changes)))


def guidance(name: str, value: Any) -> AudioVideo[Guidance] | GuidanceChanges:
    """`AudioVideo` of `Guidance` as it is; a dict such as `{"video": {"guidance_scale": 3}}` changes the preset's."""
    if isinstance(value, AudioVideo):
        return value
    if not isinstance(value, Mapping):
        raise _wrong(name, value, 'a dict such as {"video": {"guidance_scale": 3.0}}, or AudioVideo of Guidance')
    for stream, changes in value.items():
        if stream not in ("video", "audio") or not isinstance(changes, Mapping):
            raise _wrong(f"{name}.{stream}", changes, "a dict under 'video' or 'audio'")
        for field, given in changes.items():
            _guidance_value(f"{name}.{stream}.{field}", field, given)
    return GuidanceChanges({
        stream: {field: _guidance_value(f"{name}.{stream}.{field}", field, given) for field, given in changes.items()}
        for stream, changes in value.items()
    })


def _guidance_value(name: str, field: str, value: Any) -> Any:
    if field not in GUIDANCE_FIELDS:
        raise InvalidRequest(f"{name} is none of {', '.join(GUIDANCE_FIELDS)}", param=name)
    if field == "stg_blocks":
        return tuple(whole(name, block) for block in _items(name, value))
    return whole(name, value) if field == "skip_step" else number(name, value)


# -- pictures, clips, sound --------------------------------------------------------------------------------------------


def images(name: str, value: Any) -> tuple[ImageCondition, ...]:
    """A list of pictures; each alone, or with the frame that it is shown at, and how strongly."""
    has_frame_index = isinstance(value, tuple) and len(value) > 1 and _is_whole(value[1])
    items = value if isinstance(value, list | tuple) and not has_frame_index else [value]
    return tuple(_image(f"{name}.{index}", item) for index, item in enumerate(items))


def _image(name: str, value: Any) -> ImageCondition:
    if isinstance(value, ImageCondition):
        return value
    shown, *rest = value if isinstance(value, tuple) else (value,)
    if len(rest) > 2:
        raise _wrong(name, value, "(picture, frame_index, strength)")
    frame_index = whole(f"{name}.frame_index", rest[0]) if rest else 0
    strength = number(f"{name}.strength", rest[1]) if len(rest) > 1 else 1.0
    return ImageCondition(image=picture(name, shown), frame_index=frame_index, strength=strength)


def picture(name: str, value: Any) -> Tensor:
    """(H, W, 3) uint8 of a file, an array, a tensor or a Pillow image."""
    from braid.multimodal.images import load_image

    if isinstance(value, str | Path | bytes):
        return load_image(Path(value) if isinstance(value, str) else value, param=name)
    if hasattr(value, "convert"):
        return torch.from_numpy(np.array(value.convert("RGB")))
    return _tensor(name, value, "the name of a picture, a Pillow image, or an (H, W, 3) uint8 array")


def clip(name: str, value: Any) -> Tensor:
    """(F, H, W, 3) uint8 of a file, an array or a tensor."""
    from braid.multimodal.video_reader import read_video

    if isinstance(value, str | Path | bytes):
        return read_video(Path(value) if isinstance(value, str) else value, param=name).frames
    return _tensor(name, value, "the name of a video, or an (F, H, W, 3) uint8 array")


def waveform(name: str, value: Any) -> Waveform:
    """Of a file, or of (samples, sample_rate) with samples (channels, n)."""
    from braid.multimodal.sound import load_sound

    if isinstance(value, Waveform):
        return value
    if isinstance(value, str | Path | bytes):
        sound = load_sound(Path(value) if isinstance(value, str) else value, param=name)
        return Waveform(sound.samples, sound.sample_rate)
    if not isinstance(value, tuple) or len(value) != 2:
        raise _wrong(name, value, "the name of a sound file, or (samples, sample_rate)")
    samples = _tensor(name, value[0], "samples as a (channels, n) array")
    return Waveform(samples.float(), whole(f"{name}.sample_rate", value[1]))


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapters(name: str, value: Any) -> tuple[AdapterChoice, ...]:
    """A list of LoRAs, or a dict of strengths by name."""
    items = list(value.items()) if isinstance(value, Mapping) else _items(name, value)
    return tuple(adapter(f"{name}.{index}", item) for index, item in enumerate(items))


def adapter(name: str, value: Any) -> AdapterChoice:
    """A name; (name, strength); or (name, (strength of stage 1, of stage 2))."""
    if isinstance(value, AdapterChoice):
        return value
    if isinstance(value, str):
        return AdapterChoice(name=value)
    if not isinstance(value, tuple) or len(value) != 2:
        raise _wrong(name, value, "a name, (name, strength) or (name, (strength of each stage))")
    strengths = value[1] if isinstance(value[1], list | tuple) else (value[1],)
    return AdapterChoice(name=text(name, value[0]), strengths=numbers(f"{name}.strengths", strengths))


# -- what was computed elsewhere ---------------------------------------------------------------------------------------


def embeds(name: str, value: Any) -> PromptEmbeds:
    """`PromptEmbeds`, or (video, audio)."""
    video, audio = (value.video, value.audio) if isinstance(value, PromptEmbeds) else _pair(name, value)
    return PromptEmbeds(_optional(f"{name}.video", video), _optional(f"{name}.audio", audio))


def latents(name: str, value: Any) -> AudioVideo[Tensor]:
    """`AudioVideo`, or (video, audio)."""
    video, audio = (value.video, value.audio) if isinstance(value, AudioVideo) else _pair(name, value)
    return AudioVideo(_optional(f"{name}.video", video), _optional(f"{name}.audio", audio))


def noise(name: str, value: Any) -> Callable[[], NoiseSource]:
    """A function that makes a noise source."""
    if not callable(value):
        raise _wrong(name, value, "a function that makes a NoiseSource")
    make: Callable[[], NoiseSource] = value
    return make


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise _wrong(name, value, "(video, audio) tensors, either of which may be None")
    return value


def _optional(name: str, value: Any) -> Tensor | None:
    return None if value is None else _tensor(name, value, "a tensor")


def _tensor(name: str, value: Any, wanted: str) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "uif":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        return value.detach()
    raise _wrong(name, value, wanted)


def _items(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(name, value, "a list")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(name: str, value: object, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is a {type(value).__name__}: it must be {wanted}", param=name.partition(".")[0])
