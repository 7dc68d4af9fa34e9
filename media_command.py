"""`braid video` and `braid image`: one generation from the terminal, with a bar that says how far it is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from braid.config import OFFLOADS, QUANTIZATIONS
from braid.diffusion.arguments import ARGUMENTS, Argument

if TYPE_CHECKING:
    from braid.config import LoraConfig
    from braid.diffusion.generation import GeneratedMedia, Update
    from braid.diffusion.generator import Generation

BAR_WIDTH = 24
NOT_OF_A_PICTURE = ("num_frames", "frame_rate", "video", "waveform", "window", "num_context_frames")


def add_media_command(parser: argparse.ArgumentParser, parse_bytes: Callable[[str], int], *, is_picture: bool) -> None:
    """The arguments of one of the two commands."""
    example = "x.png" if is_picture else "x.mp4"
    parser.add_argument("prompt", help="what is to be seen and heard")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=f"where to, such as {example}")
    parser.add_argument("--model", default="braid-tiny", metavar="PATH", help="an LTX-2 checkpoint: file or folder")
    parser.add_argument("--upsampler", metavar="PATH", help="its latent upsampler, for pipelines of two stages")
    parser.add_argument("--distilled-lora", metavar="PATH", help="its distilled LoRA, for the same")
    parser.add_argument("--lora", action="append", default=[], metavar="PATH[=STRENGTH]", help="may be repeated")
    parser.add_argument("--llm", metavar="NAME", help="the language model of its prompts (default: as it says)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--dtype", help="float32 or bfloat16, of the networks (default: that of the files)")
    parser.add_argument("--offload", choices=OFFLOADS, help="what leaves a GPU while it is not used (default: none)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="8-bit products: less memory, another result")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--memory", type=parse_bytes, metavar="SIZE", help="budget for weights and work, as in 8GiB")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--enhance-prompt", action="store_true", help="have the language model rewrite it first")
    if not is_picture:
        parser.add_argument("--silent", action="store_true", help="make no sound")
    for argument in _offered(is_picture):
        parser.add_argument(
            argument.option,
            dest=argument.name,
            type=_typed(argument),
            metavar=argument.metavar or "TEXT",
            help=argument.help,
            action="append" if argument.many else "store",
        )
    parser.set_defaults(run=make_picture if is_picture else make_film)


def _offered(is_picture: bool) -> list[Argument]:
    return [
        argument
        for argument in ARGUMENTS
        if argument.parse is not None and not (is_picture and argument.name in NOT_OF_A_PICTURE)
    ]


def _typed(argument: Argument) -> Callable[[str], Any]:
    """The option's word as a value, with a message that a person can use."""
    assert argument.parse is not None
    parse = argument.parse

    def read(word: str) -> Any:
        try:
            return parse(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not {argument.metavar}: {argument.help}") from None

    return read


def make_film(arguments: argparse.Namespace) -> int:
    """`braid video`."""
    return _make(arguments, {"generate_audio": False} if arguments.silent else {}, is_picture=False)


def make_picture(arguments: argparse.Namespace) -> int:
    """`braid image`."""
    return _make(arguments, {"num_frames": 1}, is_picture=True)


def _make(arguments: argparse.Namespace, more: dict[str, Any], *, is_picture: bool) -> int:
    from braid import DiffGenerator

    params = {argument.name: getattr(arguments, argument.name) for argument in _offered(is_picture)} | more
    with DiffGenerator.from_pretrained(
        arguments.model,
        device=arguments.device,
        loras=[read_lora(word) for word in arguments.lora],
        upsampler=arguments.upsampler,
        distilled_lora=arguments.distilled_lora,
        llm=arguments.llm,
        dtype=arguments.dtype,
        offload=arguments.offload,
        quantization=arguments.quantization,
        num_threads=arguments.threads,
        memory_budget_bytes=arguments.memory,
    ) as generator:
        generation = generator.start(
            arguments.prompt,
            path=arguments.output,
            keep_frames=False,
            enhance_prompt=arguments.enhance_prompt,
            **params,
        )
        media = follow(generation, sys.stderr, is_quiet=arguments.quiet)
    print(_summary(media))
    return 0


def read_lora(word: str) -> LoraConfig:
    """`PATH` or `PATH=STRENGTH`; several strengths, one a stage, with commas."""
    from braid.config import LoraConfig
    from braid.errors import InvalidRequest

    path, equals, strengths = word.rpartition("=")
    if not equals:
        return LoraConfig(path=word)
    try:
        return LoraConfig(path=path, strengths=tuple(float(part) for part in strengths.split(",")))
    except ValueError:
        raise InvalidRequest(f"--lora {word}: {strengths!r} is no strength, such as 0.8", param="loras") from None


def follow(generation: Generation, out: TextIO, *, is_quiet: bool = False) -> GeneratedMedia:
    """Wait for a generation and show how far it is: a bar on a terminal, else a line a stage. Ctrl-C cancels it."""
    with generation:
        if is_quiet:
            return generation.result()
        try:
            (_draw_bar if out.isatty() else _list_stages)(generation, out)
        except KeyboardInterrupt:
            print("braid: cancelled", file=out)
            raise
        return generation.result()


def _draw_bar(updates: Iterable[Update], out: TextIO) -> None:
    for update in updates:
        print(f"\r\x1b[K{bar_line(update)}", end="", file=out, flush=True)
    print(file=out)


def _list_stages(updates: Iterable[Update], out: TextIO) -> None:
    stage = ""
    for update in updates:
        if update.stage != stage:
            stage = update.stage
            print(f"{update.elapsed_s:7.1f} s  {stage}", file=out, flush=True)


def bar_line(update: Update) -> str:
    """How far the stage of an update is."""
    return progress_line(update.stage, update.step, update.num_steps, update.stage_left_s)


def progress_line(stage: str, step: int, num_steps: int, left_s: float | None) -> str:
    """`stage_1  [######------]  4/8  12 s left`."""
    filled = BAR_WIDTH * step // max(num_steps, 1)
    left = "" if left_s is None else f"  {_seconds(left_s)} left"
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    return f"{stage:14} [{bar}] {step}/{num_steps}{left}"


def _seconds(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds >= 60 else f"{seconds:.0f} s"


def _summary(media: GeneratedMedia) -> str:
    if media.frames_shape is None:
        return f"{media.path}: sound, seed {media.seed}"
    num_frames, height, width, _ = media.frames_shape
    sound = "" if media.audio is None else f", sound at {media.sample_rate} Hz"
    return f"{media.path}: {num_frames} x {width}x{height} at {media.fps:g} fps{sound}, seed {media.seed}"
