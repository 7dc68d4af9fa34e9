"""Every argument of a generation, once: its name, what it may be, and how the command line says it.

The Python face and the command line are both made of this table. It imports no torch, so that `--help` stays quick;
what needs it is read by `argument_values`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from braid.errors import InvalidRequest

if TYPE_CHECKING:
    from braid.diffusion.params import GenerationParams

Read = Callable[[str, Any], Any]
"""(name, what the user gave) to what `GenerationParams` holds; raises InvalidRequest."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A field of `GenerationParams`."""

    name: str
    read: Read
    help: str
    parse: Callable[[str], Any] | None = None
    """From a word of the command line to what `read` takes; None where there is no option."""
    metavar: str | None = None
    many: bool = False
    """The option may be given several times."""

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"


# -- readers of plain values -------------------------------------------------------------------------------------------


def text(name: str, value: Any) -> str:
    """Raises: InvalidRequest."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}={_short(value)} must be text", param=name)
    return value


def whole(name: str, value: Any) -> int:
    """Raises: InvalidRequest."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name}={_short(value)} must be a whole number", param=name)
    return value


def number(name: str, value: Any) -> float:
    """Raises: InvalidRequest."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{name}={_short(value)} must be a number", param=name)
    return value


def switch(name: str, value: Any) -> bool:
    """Raises: InvalidRequest."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name}={_short(value)} must be True or False", param=name)
    return value


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """Raises: InvalidRequest."""
    values = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidRequest(f"{name}={_short(value)} must be a list of numbers", param=name)
    return tuple(number(f"{name}.{index}", item) for index, item in enumerate(values))


def window(name: str, value: Any) -> tuple[float, float]:
    """Raises: InvalidRequest."""
    values = numbers(name, value)
    if len(values) != 2:
        raise InvalidRequest(f"{name}={_short(value)} must be two numbers: from and to, in seconds", param=name)
    return values[0], values[1]


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _heavy(reader: str) -> Read:
    """A reader of `argument_values`, imported when it is first wanted."""

    def read(name: str, value: Any) -> Any:
        return getattr(import_module("braid.diffusion.argument_values"), reader)(name, value)

    return read


# -- words of the command line -----------------------------------------------------------------------------------------


def _parse_numbers(word: str) -> list[float]:
    return [float(part) for part in word.split(",")]


def _parse_picture(word: str) -> tuple[Any, ...]:
    """`PATH`, `PATH@FRAME` or `PATH@FRAME@STRENGTH`."""
    path, *rest = word.split("@")
    return (path, *(convert(part) for convert, part in zip((int, float), rest, strict=False)))


def _parse_guidance(word: str) -> dict[str, dict[str, float]]:
    """`video=3,audio=7`."""
    pairs = (part.partition("=") for part in word.split(","))
    return {stream.strip(): {"guidance_scale": float(scale)} for stream, _, scale in pairs}


ARGUMENTS = (
    Argument("negative_prompt", text, "what should not be seen or heard", str),
    Argument("pipeline", text, "one_stage, two_stage, two_stage_hq, distilled, keyframe_interpolation, a2vid, retake, "
             "extend or text_to_audio (default: the best that the checkpoint has all parts for)", str, "NAME"),
    Argument("height", whole, "pixels", int, "N"),
    Argument("width", whole, "pixels", int, "N"),
    Argument("num_frames", whole, "8k+1 for released checkpoints; 1 is a picture", int, "N"),
    Argument("frame_rate", number, "frames per second", float, "FPS"),
    Argument("seed", whole, "the same seed gives the same bits (default: drawn)", int, "N"),
    Argument("num_inference_steps", whole, "of the first stage", int, "N"),
    Argument("sampler", text, "of every stage: euler, res_2s, ...", str, "NAME"),
    Argument("guidance", _heavy("guidance"), "guidance scales of the first stage, as in video=3,audio=7",
             _parse_guidance, "SCALES"),
    Argument("images", _heavy("images"), "a picture that the film shows: PATH, PATH@FRAME or PATH@FRAME@STRENGTH",
             _parse_picture, "PICTURE", many=True),
    Argument("video", _heavy("clip"), "the clip to retake or extend", str, "PATH"),
    Argument("waveform", _heavy("waveform"), "the sound to film, or that of the clip", str, "PATH"),
    Argument("window", window, "seconds of a clip to make anew, as in 1.5,2.25", _parse_numbers, "FROM,TO"),
    Argument("num_context_frames", whole, "frames of a clip's end that its extension begins with", int, "N"),
    Argument("generate_audio", switch, "make sound too"),
    Argument("adapters", _heavy("adapters"), "LoRAs by name, with strengths"),
    Argument("distilled_adapter", _heavy("adapter"), "the distilled LoRA and its strength in each stage"),
    Argument("enhance_prompt", switch, "have the language model rewrite the prompt first"),
    Argument("output_type", text, "frames or latents"),
    Argument("prompt_embeds", _heavy("embeds"), "in place of the prompt"),
    Argument("negative_prompt_embeds", _heavy("embeds"), "in place of negative_prompt"),
    Argument("sigmas", numbers, "noise levels of the first stage, descending", _parse_numbers, "S,S,..."),
    Argument("stage_2_sigmas", numbers, "those of the second stage", _parse_numbers, "S,S,..."),
    Argument("latents", _heavy("latents"), "in place of the first stage's noise"),
    Argument("noise", _heavy("noise"), "makes the source of all noise"),
)  # fmt: skip
"""All fields of `GenerationParams` but the prompt."""

_BY_NAME = {argument.name: argument for argument in ARGUMENTS}


def read_params(prompt: Any, given: Mapping[str, Any]) -> GenerationParams:
    """What a user asks for; None is as if it were not given.

    Raises:
        InvalidRequest: no argument has such a name, or a value is of a wrong kind.
    """
    from braid.diffusion.params import GenerationParams

    check_names(given)
    values = {name: _BY_NAME[name].read(name, value) for name, value in given.items() if value is not None}
    return GenerationParams(prompt=text("prompt", prompt), **values)


def check_names(given: Mapping[str, Any]) -> None:
    """Raises: InvalidRequest: with the nearest right name."""
    for name in given:
        if name not in _BY_NAME:
            near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_BY_NAME)}"
            raise InvalidRequest(f"there is no argument {name!r}; {advice}", param=name)
