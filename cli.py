"""The `braid` command. Each subcommand imports what it needs when it runs, so that `--help` costs no torch."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braid.access_options import add_access_options, read_access
from braid.config import OFFLOADS, QUANTIZATIONS
from braid.errors import BraidError, InvalidRequest
from braid.jobs_command import add_jobs_command
from braid.keys_command import add_keys_command
from braid.media_command import add_media_command
from braid.trace_command import add_trace_command

if TYPE_CHECKING:
    from braid.config import BraidConfig, ServeConfig
    from braid.factory import LLM
    from braid.llm_core.engine.messages import SamplingParams

BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}

DEFAULT_MODEL = "smollm2"
JOB_DATABASE = "BRAID_JOB_DATABASE"
"""The variable that holds the URL of the job database: it may have a password in it, and others can read arguments."""
BENCHMARKS = {"chat": "cpu_chat.py", "quality": "quality.py"}

WRONG_ARGUMENTS = 2
"""Exit code, as argparse uses it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code: 0, 1 where it failed, 2 for wrong arguments."""
    arguments = build_parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except InvalidRequest as error:
        print(f"braid: {error.message}", file=sys.stderr)
        return WRONG_ARGUMENTS
    except BraidError as error:
        print(f"braid: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and their arguments."""
    parser = argparse.ArgumentParser(prog="braid", description="One server for one machine: chat, pictures, films.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="answer HTTP with OpenAI's API"))
    _add_chat(commands.add_parser("chat", help="talk in the terminal"))
    film = commands.add_parser("video", help="make a film with sound")
    add_media_command(film, parse_bytes, is_picture=False)
    add_media_command(commands.add_parser("image", help="make a picture"), parse_bytes, is_picture=True)
    _add_bench(commands.add_parser("bench", help="measure speed, and how much of a prompt is filmed"))
    add_jobs_command(commands.add_parser("jobs", help="list, follow and cancel the jobs of a running server"))
    add_keys_command(commands.add_parser("keys", help="make API keys"))
    add_trace_command(commands.add_parser("trace", help="where a request's time went"))
    models = commands.add_parser("models", help="what can be given to --model")
    models.set_defaults(run=list_models)
    kernels = commands.add_parser("kernels", help="which kernels the same options make serve use, and why not others")
    _add_engine_options(kernels)
    kernels.set_defaults(run=list_kernels)
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a folder, a GGUF file, smollm2, or a hub id")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--kernels", help="backend to prefer, as `braid kernels` lists them")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--memory", type=parse_bytes, metavar="SIZE", help="budget for weights and caches, as in 8GiB")
    parser.add_argument("--dtype", help="float32 or bfloat16, of what is not quantised (default: chosen)")
    parser.add_argument("--fast", action="store_true", help="faster arithmetic with slightly different results")
    parser.add_argument("--context-length", type=int, metavar="N", help="tokens of prompt and answer together")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_engine_options(parser)
    parser.add_argument("--alias", action="append", default=[], metavar="NAME", help="one more name of the model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--allow-remote", action="store_true", help="let --host be reached by other machines, keyless")
    parser.add_argument("--max-waiting", type=int, metavar="N", help="waiting requests before 429 (default: 256)")
    _add_media_options(parser)
    add_access_options(parser)
    parser.set_defaults(run=serve, model=None)


def _add_media_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video", metavar="PATH", help="an LTX-2 checkpoint, file or folder, for pictures and films")
    parser.add_argument("--upsampler", metavar="PATH", help="its latent upsampler, for pipelines of two stages")
    parser.add_argument("--distilled-lora", metavar="PATH", help="its distilled LoRA, for the same")
    parser.add_argument("--lora", action="append", default=[], metavar="PATH[=STRENGTH]", help="may be repeated")
    parser.add_argument("--video-dtype", metavar="DTYPE", help="float32 or bfloat16, of its networks")
    parser.add_argument("--offload", choices=OFFLOADS, help="what leaves a GPU while it is not used (default: none)")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="8-bit products: less memory, another result")
    parser.add_argument("--data-dir", metavar="PATH", help="where jobs are kept (default: $BRAID_DATA_DIR)")
    parser.add_argument(
        "--job-database",
        metavar="URL",
        help=f"for servers that share a queue; with a password only as ${JOB_DATABASE} (default: in --data-dir)",
    )
    parser.add_argument("--server-name", default="", metavar="NAME", help="of one of several that share --data-dir")
    parser.add_argument("--quota", type=parse_bytes, dest="quota_bytes", metavar="SIZE", help="of all stored jobs")
    parser.add_argument("--max-films", type=int, metavar="N", help="films worked on side by side (default: 2)")
    parser.add_argument("--max-pictures", type=int, metavar="N", help="pictures, the same (default: 4)")


def _add_chat(parser: argparse.ArgumentParser) -> None:
    _add_engine_options(parser)
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--prompt", help="ask this, print the answer and end")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.set_defaults(run=chat)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="the benchmark's own arguments")
    parser.set_defaults(run=bench)


def parse_bytes(text: str) -> int:
    """`8GiB`, `512M` (binary), `8GB` (decimal) or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 8GiB or 512MiB")
    return int(float(match[1]) * BYTES[match[2]])


def config_from(arguments: argparse.Namespace) -> BraidConfig:
    """The engine's configuration from the command line.

    Raises:
        InvalidRequest: a value that can never be right.
    """
    from braid.config import BraidConfig

    more: dict[str, Any] = {}
    if getattr(arguments, "max_waiting", None) is not None:
        more["max_waiting_requests"] = arguments.max_waiting
    return BraidConfig(
        model=arguments.model,
        aliases=tuple(getattr(arguments, "alias", ())),
        device=arguments.device,
        kernels=arguments.kernels,
        num_threads=arguments.threads,
        memory_budget_bytes=arguments.memory,
        dtype=arguments.dtype,
        exact=not arguments.fast,
        context_length=arguments.context_length,
        **more,
    )


def serve_config_from(arguments: argparse.Namespace) -> ServeConfig:
    """The server's configuration from the command line and the environment.

    Raises:
        InvalidRequest: a value that can never be right.
    """
    from braid.config import ServeConfig, VideoConfig
    from braid.diffusion.jobs.directory import data_root
    from braid.job_storage import check_open_url
    from braid.media_command import read_lora

    takes_language_of_video = arguments.video is not None and arguments.model is None
    arguments.model = arguments.model or DEFAULT_MODEL
    video = None
    if arguments.video is not None:
        video = VideoConfig(
            model=arguments.video,
            upsampler=arguments.upsampler,
            distilled_lora=arguments.distilled_lora,
            loras=tuple(read_lora(word) for word in arguments.lora),
            dtype=arguments.video_dtype,
            offload=arguments.offload or OFFLOADS[0],
            quantization=arguments.quantization,
        )
    named = {name: getattr(arguments, name) for name in ("job_database", "quota_bytes", "max_films", "max_pictures")}
    if named["job_database"]:
        check_open_url(named["job_database"], JOB_DATABASE)
    named["job_database"] = named["job_database"] or os.environ.get(JOB_DATABASE) or None
    return ServeConfig(
        engine=config_from(arguments),
        video=video,
        takes_language_of_video=takes_language_of_video,
        data_dir=str(data_root(arguments.data_dir, os.environ)),
        server_name=arguments.server_name,
        **{name: value for name, value in named.items() if value is not None},
    )


def serve(arguments: argparse.Namespace) -> int:
    """`braid serve`."""
    from braid.server import Listen
    from braid.server import serve as serve_http
    from braid.tracing.logs import set_up_logs

    set_up_logs(os.environ, level="WARNING")
    access = read_access(arguments, os.environ)
    listen = Listen(
        host=arguments.host,
        port=arguments.port,
        has_keys=access.keys is not None,
        allow_remote=arguments.allow_remote,
    )
    return serve_http(serve_config_from(arguments), listen, access)


def chat(arguments: argparse.Namespace) -> int:
    """`braid chat`."""
    from braid import LLM, SamplingParams

    config = config_from(arguments)
    sampling = SamplingParams(
        temperature=arguments.temperature, max_tokens=arguments.max_tokens, seed=arguments.seed
    )
    with LLM(
        config.model,
        device=config.device,
        kernels=config.kernels,
        num_threads=config.num_threads,
        memory_budget_bytes=config.memory_budget_bytes,
        dtype=config.dtype,
        exact=config.exact,
        context_length=config.context_length,
    ) as llm:
        history = [{"role": "system", "content": arguments.system}] if arguments.system else []
        talk(llm, _questions(arguments.prompt), history, sampling)
    return 0


def talk(
    llm: LLM, questions: Iterator[str], history: list[dict[str, Any]], sampling: SamplingParams | None = None
) -> None:
    """Answer each question as text arrives. Ctrl-C ends an answer; `/reset` forgets the conversation."""
    num_kept = len(history)
    for question in questions:
        if question == "/reset":
            del history[num_kept:]
            continue
        history.append({"role": "user", "content": question})
        answer = ""
        try:
            for piece in llm.chat(history, sampling, stream=True):
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except BraidError as error:
            print(f"braid: {error.message}", file=sys.stderr)
            history.pop()
            continue
        print()
        history.append({"role": "assistant", "content": answer})


def _questions(only: str | None) -> Iterator[str]:
    if only is not None:
        yield only
        return
    if sys.stdin.isatty():
        print("Ask something. /reset starts anew, Ctrl-C ends an answer, Ctrl-D or /quit ends the talk.")
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question == "/quit":
            return
        if question:
            yield question


def list_models(_: argparse.Namespace) -> int:
    """`braid models`."""
    from braid.llm_core.loading import folder_config, gguf, gguf_model
    from braid.llm_core.loading.checkpoint import EMBEDDED_MODEL, embedded_model_path

    try:
        print(f"{EMBEDDED_MODEL}  {embedded_model_path()}")
    except BraidError as error:
        print(f"{EMBEDDED_MODEL}  not usable: {error.message}")
    print(f"A folder with config.json and safetensors: {', '.join(folder_config.ARCHITECTURES)}")
    print(f"A .gguf file: {', '.join(gguf_model.ARCHITECTURES)}")
    print(f"  with tensors of {', '.join(storage.name for storage in gguf.STORAGE_TYPES.values())}")
    print("A hub id, downloaded once: owner/name of such a folder or one GGUF file; owner/name:file.gguf of several.")
    return 0


def list_kernels(arguments: argparse.Namespace) -> int:
    """`braid kernels`. The model comes last: the rest is true of the machine, even where there is no such model."""
    from braid.factory import backend_of
    from braid.kernels.cpu.library import reasons_against
    from braid.kernels.ops import Ops
    from braid.llm_core.loading.checkpoint import open_checkpoint
    from braid.llm_core.models.choice import describe_choice

    backend = backend_of(config_from(arguments))
    print("C++ kernels for a whole step of a quantised language model on a CPU, fastest first:")
    for name, reason in reasons_against().items():
        print(f"  {name:18} {'usable' if reason is None else f'not usable: {reason}'}")
    print(f"Single operations on {backend.device}; a C++ step calls none of them but sample:")
    for report in Ops(backend.device, backend.kernels).describe():
        refused = "".join(f"; not {refusal.backend}: {refusal.reason}" for refusal in report.refused)
        print(f"  {report.op:18} {report.backend}{refused}")
    checkpoint = open_checkpoint(arguments.model)
    print(f"Each step of {checkpoint.name} is run by {describe_choice(checkpoint, backend)}.")
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """`braid bench`: runs a script of `benchmarks/`."""
    script = Path(__file__).parent / "benchmarks" / BENCHMARKS[arguments.name]
    if not script.exists():
        print(f"braid: benchmarks/{script.name} is in the source repository, not in this installation", file=sys.stderr)
        return 1
    before, sys.argv = sys.argv, [str(script), *arguments.rest]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    return 0


if __name__ == "__main__":
    sys.exit(main())
