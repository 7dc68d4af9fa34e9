"""The `braid` command: its arguments, its messages, its exit codes."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from braid import cli
from braid.cli import build_parser, config_from, main, parse_bytes, serve_config_from, talk
from braid.errors import InvalidRequest
from braid.kernels.cpu.library import reasons_against


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("8GiB", 8 << 30), ("512MiB", 512 << 20), ("1.5g", 3 << 29), ("2GB", 2 * 10**9), ("4096", 4096), ("9 kb", 9000)],
)
def test_sizes_are_read_with_their_units(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "8 gallons", "-1GiB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="8GiB"):
        parse_bytes(text)


def test_every_engine_option_reaches_the_config() -> None:
    line = "serve --model m --alias a --alias b --device cpu --kernels torch --threads 2 --memory 1GiB --fast"
    config = config_from(build_parser().parse_args([*line.split(), "--context-length", "512", "--max-waiting", "9"]))
    assert (config.model, config.aliases, config.device, config.kernels) == ("m", ("a", "b"), "cpu", "torch")
    assert (config.num_threads, config.memory_budget_bytes, config.exact) == (2, 1 << 30, False)
    assert (config.context_length, config.max_waiting_requests) == (512, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["sing"], "sing"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--memory", "much"], "8GiB"),
        (["serve", "--no-such-thing"], "--no-such-thing"),
        (["bench", "song"], "song"),
    ],
)
def test_wrong_arguments_are_told_and_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--host", "0.0.0.0"], "--allow-remote"),
        (["serve", "--port", "70000"], "port=70000"),
        (["serve", "--threads", "0"], "num_threads=0"),
        (["serve", "--device", "tpu"], "device='tpu'"),
        (["serve", "--context-length", "-5"], "context_length=-5"),
        (["chat", "--model", ""], "model is empty"),
        (["kernels", "--device", "cpu", "extra"], "extra"),
    ],
)
def test_wrong_values_exit_with_2_and_name_the_value(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_every_media_option_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAID_DATA_DIR", "/data")
    words = "--video m --upsampler u --distilled-lora d --lora a.safetensors=0.5 --video-dtype bfloat16 --offload cpu"
    more = "--server-name left --quota 1GiB --max-films 3 --max-pictures 5 --job-database sqlite:////x"
    config = serve_config_from(build_parser().parse_args(["serve", *words.split(), *more.split()]))
    assert config.video is not None
    assert (config.video.model, config.video.upsampler, config.video.distilled_lora) == ("m", "u", "d")
    assert (config.video.dtype, config.video.offload) == ("bfloat16", "cpu")
    assert [(lora.path, lora.strengths) for lora in config.video.loras] == [("a.safetensors", (0.5,))]
    assert (config.data_dir, config.server_name, config.quota_bytes) == ("/data", "left", 1 << 30)
    assert (config.max_films, config.max_pictures, config.job_database) == (3, 5, "sqlite:////x")


def test_the_job_database_may_be_named_where_others_cannot_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAID_JOB_DATABASE", "postgresql://ann:hunter2@db/jobs")
    parse = build_parser().parse_args
    assert serve_config_from(parse(["serve"])).job_database == "postgresql://ann:hunter2@db/jobs"
    assert serve_config_from(parse(["serve", "--job-database", "sqlite:////x"])).job_database == "sqlite:////x"


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("postgresql+psycopg://ann:hunter2@db/jobs", True),
        ("postgresql+psycopg://ann:hunter%402/x@db/jobs", True),
        ("postgresql+psycopg://ann@db/jobs?password=hunter2", True),
        ("postgresql+psycopg:///jobs?user=ann&sslpassword=hunter2", True),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2", True),
        ("postgresql+psycopg://ann@db:5432/jobs?passfile=/etc/braid/pgpass", False),
        ("postgresql+psycopg:///jobs?host=/run/postgresql", False),
        ("sqlite:////ann:hunter2@x", False),
    ],
)
def test_an_argument_has_no_password_of_the_job_database(url: str, is_refused: bool) -> None:
    arguments = build_parser().parse_args(["serve", "--job-database", url])
    if not is_refused:
        assert serve_config_from(arguments).job_database == url
        return
    with pytest.raises(InvalidRequest, match="BRAID_JOB_DATABASE") as refused:
        serve_config_from(arguments)
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    ("words", "model", "takes_language_of_video"),
    [("", "smollm2", False), ("--video m", "smollm2", True), ("--video m --model gemma", "gemma", False)],
)
def test_a_video_model_brings_its_language_model_unless_one_is_named(
    words: str, model: str, takes_language_of_video: bool
) -> None:
    config = serve_config_from(build_parser().parse_args(["serve", *words.split()]))
    assert (config.engine.model, config.takes_language_of_video) == (model, takes_language_of_video)


def test_help_imports_nothing_slow() -> None:
    code = "import sys, braid.cli; braid.cli.build_parser(); print(len(sys.modules), 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_modules, has_torch = answer.stdout.split()
    assert has_torch == "False"
    assert int(num_modules) < 300


class FakeFace:
    """Answers in pieces; remembers the conversation that it was given."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self._answers = iter(answers)
        self.asked: list[list[dict[str, Any]]] = []

    def chat(self, messages: list[dict[str, Any]], _: object, *, stream: bool) -> Iterator[str]:
        assert stream
        self.asked.append([dict(message) for message in messages])
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return iter(answer)


def test_a_talk_remembers_and_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    face = FakeFace(["I am", " well"], ["Yes"], ["Who?"])
    system = {"role": "system", "content": "be kind"}
    talk(face, iter(["how are you", "really?", "/reset", "remember me?"]), [system])  # type: ignore[arg-type]
    assert capsys.readouterr().out == "I am well\nYes\nWho?\n"
    assert [[message["content"] for message in asked] for asked in face.asked] == [
        ["be kind", "how are you"],
        ["be kind", "how are you", "I am well", "really?"],
        ["be kind", "remember me?"],
    ]


def test_a_refused_question_is_told_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    face = FakeFace(InvalidRequest("too long"), ["fine"])
    talk(face, iter(["a book", "a word"]), [])  # type: ignore[arg-type]
    assert "too long" in capsys.readouterr().err
    assert [message["content"] for message in face.asked[1]] == ["a word"]


def test_a_benchmark_that_is_not_installed_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.BENCHMARKS, "chat", "no_such_benchmark.py")
    assert main(["bench", "chat"]) == 1
    assert "no_such_benchmark.py is in the source repository" in capsys.readouterr().err


def test_models_are_listed_by_name_architecture_and_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for name in ("smollm2", "LlamaForCausalLM", "gemma3", "Q4_K"):
        assert name in listed


def test_kernels_lists_variants_operations_and_what_runs_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("braid.kernels.cpu.library.read_cpu_flags", lambda: frozenset({"avx2"}))
    assert main(["kernels", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  avx2               not usable: the processor lacks f16c, fma" in lines
    assert "  rms_norm           torch" in lines
    sampler = re.compile(r"  sample +torch; not cpu_avx512_vnni: the processor lacks .*; not cpu_avx2: ")
    assert any(sampler.match(line) for line in lines)
    assert re.match("Each step of smollm2 is run by plain torch .* float32; .* the processor lacks .*f16c", lines[-1])


def test_kernels_names_the_variant_that_runs_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    usable = [name for name, reason in reasons_against().items() if reason is None]
    for name in usable:
        assert main(["kernels", "--device", "cpu", "--kernels", name, "--fast"]) == 0
        assert capsys.readouterr().out.endswith(f"smollm2 is run by the C++ kernels, {name}, fast mode.\n")


def test_kernels_refuses_what_serve_would_refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("braid.kernels.cpu.library.read_cpu_flags", lambda: frozenset())
    assert main(["kernels", "--device", "cpu", "--kernels", "cpp"]) == 2
    assert "kernels='cpp' cannot run smollm2: avx512_vnni: the processor lacks" in capsys.readouterr().err


def test_a_trace_is_asked_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "4bf9", "--url", "ftp://here"]) == 2
    assert "--url='ftp://here' must begin with http://" in capsys.readouterr().err
