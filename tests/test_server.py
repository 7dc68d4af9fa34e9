"""`braid serve` as a process: start, death of the engine, stop, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from braid.benchmarks.http_chat import free_port
from braid.config import BraidConfig, ServeConfig
from braid.errors import InvalidRequest
from braid.rest.child_process import start_child
from braid.server import (
    JOB_DATABASE_VARIABLE,
    CannotListen,
    Listen,
    bind,
    child_command,
    child_environment,
    main,
    serve,
)

CHILD = [sys.executable, str(Path(__file__).parent / "rest" / "scripted_child.py")]
SERVE = """
import json, sys
from braid.config import BraidConfig, ServeConfig
from braid.server import Listen, serve
listen, command = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.exit(serve(ServeConfig(engine=BraidConfig(model="scripted")), Listen(**listen), engine_command=command))
"""
HEAVY = ("torch", "transformers", "numpy", "fastapi.testclient")


class Process:
    """A running server; `url` is known once it has greeted."""

    def __init__(self, *options: str, port: int = 0, **listen: Any) -> None:
        arguments = [json.dumps({"port": port, **listen}), json.dumps([*CHILD, *options])]
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{port}"
        self.greeting = ""

    def wait_greeting(self) -> None:
        assert self.popen.stdout is not None
        self.greeting = self.popen.stdout.readline() + self.popen.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", self.greeting)
        assert found, self.greeting
        self.url = found[0]

    @property
    def engine(self) -> psutil.Process:
        (child,) = psutil.Process(self.popen.pid).children()
        return child

    def ask(self, text: str, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=20)


@contextmanager
def running(*options: str, wait: bool = True, **listen: Any) -> Iterator[Process]:
    process = Process(*options, **listen)
    try:
        if wait:
            process.wait_greeting()
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


def until(check: Any, timeout_s: float = 15) -> Any:
    """The first true answer of a check; connection errors are no answer."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if answer := check():
                return answer
        except (httpx.TransportError, psutil.Error, ValueError):
            pass
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s")


def test_the_greeting_has_the_url_and_a_curl_line_that_works() -> None:
    with running() as server:
        assert "scripted-135m" in server.greeting
        line = server.greeting.splitlines()[1].strip()
        answer = subprocess.run(["bash", "-c", f"{line} -s"], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == "What is the capital of France?"


def test_http_is_there_before_the_engine() -> None:
    with running("--slow-start", "6", wait=False, port=free_port()) as server:
        assert until(lambda: httpx.get(f"{server.url}/health").status_code) == 200
        ready = httpx.get(f"{server.url}/ready")
        assert ready.status_code == 503
        assert ready.json()["modalities"]["chat"]["reason"] == "the engine is loading scripted"
        refused = server.ask("a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"] == "1"
        server.wait_greeting()
        assert server.ask("a").status_code == 200


def test_a_killed_engine_ends_its_stream_with_an_error_and_comes_back() -> None:
    with running() as server:
        body = {"messages": [{"role": "user", "content": "a !wait"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            server.engine.kill()
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_died"
        until(lambda: httpx.get(f"{server.url}/ready").json()["generation"] == 2)
        assert server.ask("a b").json()["choices"][0]["message"]["content"] == "a b"


def test_a_request_that_kills_the_engine_gets_a_503_without_a_stream() -> None:
    with running() as server:
        response = server.ask("a !die")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_died")
        assert response.headers["retry-after"] == "1"


def test_a_killed_server_leaves_no_engine() -> None:
    with running() as server:
        engine = server.engine
        server.popen.kill()
        until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_lets_a_request_end_and_is_a_success(number: int) -> None:
    with running() as server:
        engine = server.engine
        body = {"messages": [{"role": "user", "content": "a" + 20 * " !slow b"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.popen.wait(10) == 0
        assert not engine.is_running()


def test_a_stop_cancels_what_does_not_end_in_time_and_says_so() -> None:
    with running(stop_grace_s=0.3) as server:
        body = {"messages": [{"role": "user", "content": "a !wait"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(signal.SIGTERM)
            assert "request_cancelled" in [line for line in lines if line][-1]
        assert server.popen.wait(10) == 0


def test_a_stop_while_loading_is_quick() -> None:
    with running("--slow-start", "60", wait=False, port=free_port()) as server:
        until(lambda: httpx.get(f"{server.url}/health").status_code)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(10) == 0


def test_the_whole_terminals_signal_does_not_end_the_engine_first() -> None:
    with running() as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            server.engine.send_signal(number)
        assert server.ask("a").status_code == 200
        assert httpx.get(f"{server.url}/ready").json()["generation"] == 1


def test_a_model_that_cannot_load_ends_the_server_with_its_message() -> None:
    with running("--broken", wait=False) as server:
        _, errors = server.popen.communicate(timeout=20)
        assert server.popen.returncode == 1
        assert "not b'GGUF'" in errors


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(CannotListen, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use.*--port"),
    ):
        serve(ServeConfig(), Listen(port=taken.getsockname()[1]), engine_command=["false"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_needs_keys_or_a_word_for_it(host: str) -> None:
    with pytest.raises(InvalidRequest, match="--api-keys, or say --allow-remote"):
        Listen(host=host)
    assert Listen(host=host, allow_remote=True).host == host
    assert Listen(host=host, has_keys=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8", "::1"])
def test_this_machines_own_addresses_are_allowed(host: str) -> None:
    assert Listen(host=host).port == 8000


@pytest.mark.parametrize("listen", [{"port": 65536}, {"port": -1}, {"host": "no.such.host.invalid"}])
def test_an_address_that_cannot_be_is_refused(listen: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Listen(**listen)


def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1"):
        bind(Listen(host="192.0.2.1", port=0, allow_remote=True))


def test_the_child_gets_the_whole_config() -> None:
    command = child_command(ServeConfig(engine=BraidConfig(model="m", aliases=("a",), num_threads=3)))
    assert json.loads(command[-1])["engine"] == {
        "model": "m",
        "aliases": ["a"],
        "device": None,
        "kernels": None,
        "num_threads": 3,
        "memory_budget_bytes": None,
        "exact": True,
        "max_waiting_requests": 256,
        "context_length": None,
        "dtype": None,
    }


def test_passwords_and_secrets_are_not_in_a_childs_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAID_WEBHOOK_SECRET", "not-for-engines")
    monkeypatch.setenv("BRAID_API_KEYS", "not-for-engines")
    config = ServeConfig(job_database="postgresql://ann:hunter2@db/jobs", data_dir="/data")
    command, environment = child_command(config), child_environment(config)
    assert "hunter2" not in " ".join(command)
    for use_tcp in (False, True):
        child = start_child([*CHILD, "--slow-start", "60"], 1, use_tcp=use_tcp, environment=environment)
        try:
            variables = until(lambda pid=child.process.pid: psutil.Process(pid).environ())
            assert variables[JOB_DATABASE_VARIABLE] == config.job_database
            assert "not-for-engines" not in variables.values()
        finally:
            child.process.kill()
            child.process.wait()
            for end in (child.sock, child.listener):
                if end is not None:
                    end.close()


def test_the_engine_opens_the_database_that_its_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ServeConfig] = []

    def build_serving(config: ServeConfig, tell: Any, on_crash: Any) -> SimpleNamespace:
        served.append(config)
        return SimpleNamespace(trace_of=None)

    monkeypatch.setattr("braid.serving.build_serving", build_serving)
    monkeypatch.setattr("braid.rest.child.run_child", lambda arguments, build: 0 if build(None) else 1)
    config = ServeConfig(job_database="postgresql://ann:hunter2@db/jobs")
    monkeypatch.setenv(JOB_DATABASE_VARIABLE, child_environment(config)[JOB_DATABASE_VARIABLE])
    link = ["--socket", "fd:0", "--parent", "1", "--generation", "1", "--files", "/nowhere"]
    assert main([*child_command(config)[4:], *link]) == 0
    assert served == [config]
    assert JOB_DATABASE_VARIABLE not in os.environ


def test_the_http_process_imports_neither_torch_nor_transformers() -> None:
    code = f"""
import sys, time
started = time.process_time()
import braid.server, braid.rest.app, braid.rest.supervisor, uvicorn
seconds = time.process_time() - started
assert not [name for name in {HEAVY!r} if name in sys.modules], sys.modules.keys()
print(seconds)
"""
    environment = {**os.environ, "PYTHONPATH": ""}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert float(answer.stdout) < 2.0  # of CPU; 0.5 s alone, and torch's 2 s would come on top


def test_a_spawn_needs_neither_fastapi_nor_uvicorn() -> None:
    code = "import sys, braid.server; assert not {'fastapi', 'uvicorn', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
