"""How processes end while work is under way: quietly, with the exit code that was meant."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest

from braid.tests.diffusion.film_files import write_film_files

NUM_STOPS = 25 if os.environ.get("BRAID_SOAK") else 1
STOP_S = 30.0

BUSY = """
    import sys, threading, time
    import torch

    torch.set_num_threads(1)
    x = torch.randn(64, 64)

    def work():
        while True:
            x @ x

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=120
    )


def test_an_engine_process_ends_although_threads_are_inside_of_pytorch() -> None:
    ended = run(BUSY + "    from braid.server import end_process\n    end_process(7)\n")
    assert (ended.returncode, ended.stderr) == (7, "")


FORGETFUL = """
    import sys, time
    import torch
    from braid.llm_core.core import Request, StepResult
    from braid.llm_core.core import Offer, RequestClass
    from braid.llm_core.engine.engine import Engine, WorkRequest
    from braid.llm_core.engine.messages import EngineReady
    from braid.llm_core.scheduler.loop import Scheduler

    torch.set_num_threads(1)
    x = torch.randn(64, 64)

    class Endless:
        name = "endless"
        ids = []
        def accepts(self, params): return True
        def admit(self, request, now): self.ids.append(request.id)
        def offers(self, now):
            return [Offer(one, "endless", "work", None, RequestClass.BATCH, now, 1.0) for one in self.ids]
        def run(self, offers, budget_ms):
            for _ in range(50):
                x @ x
            return StepResult((offers[0].request_id,), "work", 1, 1.0)
        def cancel(self, request_id, error):
            self.ids.remove(request_id)
            return True

    engine = Engine(
        Scheduler([Endless()]), ready=EngineReady(()), intake=None, stats=dict, release=lambda: print("released")
    )
    engine.submit(WorkRequest(id="a", work=None), lambda event: None)
    time.sleep(0.3)
"""


def test_a_program_that_forgets_to_close_its_engine_ends_well() -> None:
    ended = run(FORGETFUL)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "released\n", "")


def load(url: str, seed: int, is_over: threading.Event) -> None:
    """Chats, films and pictures, until the server is gone."""
    rng = random.Random(seed)
    film = {"prompt": "a fox", "pipeline": "one_stage", "height": 64, "width": 64, "num_frames": 9}
    with httpx.Client(base_url=url, timeout=5) as client:
        while not is_over.is_set():
            asked = rng.choice(["chat", "chat", "film", "picture"])
            try:
                if asked == "chat":
                    message = {"role": "user", "content": "x " * rng.randint(1, 80)}
                    client.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 20})
                elif asked == "film":
                    client.post("/v1/videos", json=film | {"num_inference_steps": 5})
                else:
                    client.post("/v1/images/generations", json={"prompt": "a fox", "size": "64x64"})
            except httpx.HTTPError:
                time.sleep(0.05)


@pytest.mark.slow
def test_a_server_stops_under_load_without_a_word_of_trouble(tmp_path: Path) -> None:
    folder = write_film_files(tmp_path)
    for number in range(NUM_STOPS):
        errors = stop_under_load(folder, number, waits_for_films=number % 2 == 0)
        assert not re.search("terminate called|FATAL|Traceback|internal error", errors), errors[-4000:]


def stop_under_load(folder: Path, seed: int, *, waits_for_films: bool) -> str:
    """What the server wrote on standard error until its end."""
    command = [sys.executable, "-m", "braid.cli", "serve", "--port", "0", "--threads", "2", "--memory", "1GiB"]
    command += ["--video", str(folder / "model.safetensors"), "--data-dir", str(folder / "data")]
    log = folder / "errors.txt"
    with log.open("w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as server:
        assert server.stdout is not None
        url = ""
        for line in server.stdout:
            url = url or line.partition("ready at ")[2].partition(" ")[0]
            if line.startswith("Ready, too:") or (url and not waits_for_films):
                break
        is_over = threading.Event()
        clients = [threading.Thread(target=load, args=(url, seed * 100 + i, is_over)) for i in range(6)]
        for client in clients:
            client.start()
        time.sleep(1.0 + random.Random(seed).random())
        server.terminate()
        try:
            assert server.wait(STOP_S) == 0
        finally:
            server.kill()
            is_over.set()
            for client in clients:
                client.join()
    return log.read_text()
