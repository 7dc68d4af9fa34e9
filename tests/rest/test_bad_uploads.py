"""Broken media over HTTP, against a real server with a toy model: what is wrong with a file is the client's mistake.

`BRAID_SOAK=1` sends many more.
"""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
import time
import wave
from collections.abc import Iterator

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from braid.tests.diffusion.film_files import write_film_files

NUM_FILES = 600 if os.environ.get("BRAID_SOAK") else 12
TIMEOUT_S = 120.0
FIELDS = {"prompt": "a red circle", "pipeline": "one_stage", "num_inference_steps": "1"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = write_film_files(tmp_path_factory.mktemp("toy"))
    options = ["--video", "model.safetensors", "--upsampler", "upsampler.safetensors"]
    options += ["--distilled-lora", "distilled.safetensors", "--data-dir", "data", "--port", "0"]
    options += ["--memory", "1GiB", "--threads", "2"]
    command = [sys.executable, "-m", "braid.cli", "serve", *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        assert found
        with httpx.Client(base_url=found[0], timeout=TIMEOUT_S) as client:
            deadline = time.monotonic() + TIMEOUT_S
            while not client.get("/ready").json()["modalities"]["video"]["ready"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=60)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def mp4() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height = 64, 64
        for _ in range(9):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        film.mux(stream.encode())
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((2, 2, 16000, 0, "NONE", ""))
        sound.writeframes(bytes(4 * 8000))
    return file.getvalue()


def mutated(data: bytes, random: random.Random) -> bytes:
    """Cut, with bytes changed, repeated or put in."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 8)):
        place = random.randrange(len(changed) or 1)
        kind = random.randrange(4)
        if kind == 0:
            changed[place : place + 1] = bytes([random.randrange(256)])
        elif kind == 1:
            del changed[place : place + random.randint(1, 1 + len(changed) // 4)]
        elif kind == 2:
            changed[place:place] = random.randbytes(random.randint(1, 64))
        else:
            changed[place : place + 4] = random.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    return bytes(changed)


KINDS = {
    "picture": (png, "first.png", "image"),
    "film": (mp4, "clip.mp4", "video"),
    "sound": (wav, "s.wav", "waveform"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_the_clients_mistake(http: httpx.Client, kind: str) -> None:
    make, name, field = KINDS[kind]
    whole, chance = make(), random.Random(kind)
    url, more = ("/v1/images/edits", {}) if kind == "picture" else ("/v1/videos", {"num_frames": "9"})
    if kind == "film":
        more |= {"pipeline": "retake", "window": "[0, 0.2]"}
    elif kind == "sound":
        more |= {"pipeline": "a2vid"}
    for index in range(NUM_FILES):
        data = mutated(whole, chance) if index else whole
        answer = http.post(url, data=FIELDS | {"size": "64x64"} | more, files={field: (name, data)})
        assert answer.status_code < 500, answer.text
        assert index or answer.status_code == 200, answer.text  # so the others fail for what is broken in them
        if answer.status_code == 200 and kind != "picture":
            http.delete(f"/v1/videos/{answer.json()['id']}")


def test_a_broken_form_is_the_clients_mistake(http: httpx.Client) -> None:
    request = http.build_request("POST", "/v1/images/edits", data=FIELDS, files={"image": ("a.png", png())})
    body, chance = request.read(), random.Random(0)
    headers = {"content-type": request.headers["content-type"]}
    for _ in range(NUM_FILES):
        answer = http.post("/v1/images/edits", content=mutated(body, chance), headers=headers)
        assert answer.status_code < 500, answer.text
