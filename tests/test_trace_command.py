"""`braid trace` against a server, and what it says when there is none."""

from __future__ import annotations

import argparse
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest

from braid.errors import InvalidRequest
from braid.tests.tracing.stage import Stage
from braid.tests.tracing.test_trace_builder import play_film
from braid.trace_command import ServerSaysNo, add_trace_command
from braid.tracing.chrome_trace import chrome_trace
from braid.tracing.trace_store import TraceStore
from braid.tracing.waterfall import waterfall


@pytest.fixture(scope="module")
def store() -> TraceStore:
    stage, store = Stage(), TraceStore()
    play_film(stage)
    stage.finish()
    store.add(stage.spans)
    return store


@pytest.fixture
def url(store: TraceStore) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            name = path.removeprefix("/v1/traces").lstrip("/")
            spans = store.get(store.trace_of(name) or name)
            body: object = {"data": store.recent()}
            if name:
                body = chrome_trace(spans) if "chrome" in query else {"spans": spans}
            if name and not spans:
                body = {"error": {"message": f"there is no trace {name!r}"}}
            if self.headers["authorization"] == "Bearer wrong":
                body = {"error": {"message": "this key is not known"}}
            is_error = isinstance(body, dict) and "error" in body
            self.send_response(404 if is_error else 200)
            self.end_headers()
            self.wfile.write(msgspec.json.encode(body))

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_trace_command(parser)
    parsed = parser.parse_args(arguments)
    code: int = parsed.run(parsed)
    return code


def test_a_trace_is_printed_as_a_tree_with_bars(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("film", "--url", url, "--width", "100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("request") and lines[0].count("━") == 52
    steps = [line for line in lines if line.startswith("    sampler step")]
    assert len(steps) == 2 and all("device_ms=40" in line for line in steps)
    first, second = ((line.index("━"), line.rindex("━")) for line in steps)
    assert first[1] <= second[0]


def test_without_an_id_the_newest_are_listed(url: str, store: TraceStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", url) == 0
    assert capsys.readouterr().out.startswith(store.recent()[0].trace_id)


def test_names_that_other_programs_gave_cannot_command_the_terminal(
    url: str, store: TraceStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (ours,) = (span for span in store.get(store.recent()[0].trace_id) if span.parent_id is None)
    wild = {"name": "\x1b[2Jrequest\n", "error": "\x1b]0;x\x07", "attributes": {}}
    store.add([msgspec.structs.replace(ours, trace_id="f" * 32, **wild)])
    for arguments in ((), ("f" * 32,)):
        assert run(*arguments, "--url", url) == 0
        assert all(one.isprintable() for line in capsys.readouterr().out.splitlines() for one in line)


def test_a_trace_is_written_for_perfetto(url: str, tmp_path: Path) -> None:
    assert run("film", "--url", url, "--chrome", str(tmp_path / "trace.json")) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_what_the_server_refuses_is_said_in_its_words(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerSaysNo, match="there is no trace 'nothing'"):
        run("nothing", "--url", url)
    monkeypatch.setenv("BRAID_API_KEY", "wrong")
    with pytest.raises(ServerSaysNo, match="this key is not known"):
        run("film", "--url", url)


def test_without_a_server_the_message_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ServerSaysNo, match="braid serve"):
        run("--url", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("wrong", [("--width", "10"), ("--url", "file:///etc/passwd")])
def test_wrong_arguments_are_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        run("film", *wrong)


def test_nothing_is_drawn_of_nothing() -> None:
    assert list(waterfall([])) == []
