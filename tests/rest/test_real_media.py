"""A whole server with a toy video model: HTTP in one process, the engine in another, real files in the end."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest
from PIL import Image

from braid.tests.diffusion.film_files import write_film_files

TIMEOUT_S = 120.0
HEAVY = {"torch", "numpy", "PIL", "av", "diffusers", "transformers"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_film_files(tmp_path_factory.mktemp("toy"))
    options = ["--video", "model.safetensors", "--upsampler", "upsampler.safetensors"]
    options += ["--distilled-lora", "distilled.safetensors", "--data-dir", "data", "--port", "0"]
    command = [sys.executable, "-m", "braid.cli", "serve", *options, "--memory", "1GiB", "--threads", "2"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        greeting = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", greeting)
        assert found, greeting
        wait(lambda: httpx.get(f"{found[0]}/ready").json()["modalities"]["video"]["ready"])
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        yield client


def wait(check: Any) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def made(http: httpx.Client, url: str, **body: Any) -> dict[str, Any]:
    response = http.post(url, json={"prompt": "a red circle", **body})
    assert response.status_code == 200, response.text
    one = (
        f"{url.removesuffix('/generations').removesuffix('/extensions').removesuffix('/edits')}/{response.json()['id']}"
    )
    job = wait(lambda: (found := http.get(one).json())["status"] in ("completed", "failed", "cancelled") and found)
    assert (job["status"], job["notes"]) == ("completed", []), job
    return dict(job)


def test_a_film_has_all_its_files(http: httpx.Client) -> None:
    job = made(http, "/v1/videos", seed=3, pipeline="one-stage", size="70x60", seconds="0.4")
    assert (job["size"], job["params"]["num_frames"], job["seconds"]) == ("64x64", 9, "0.4")
    variants = {name: http.get(f"/v1/videos/{job['id']}/content?variant={name}") for name in job["files"]}
    assert all(response.status_code == 200 for response in variants.values())
    with av.open(io.BytesIO(variants["video"].content)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 9
    for name in ("thumbnail", "spritesheet", "first_frame"):
        picture = Image.open(io.BytesIO(variants[name].content))
        picture.load()
        assert variants[name].headers["content-type"] == f"image/{(picture.format or '').lower()}"
    again = made(http, "/v1/videos", seed=3, pipeline="one-stage", size="70x60", seconds="0.4")
    assert http.head(f"/v1/videos/{again['id']}/content").headers["etag"] == variants["video"].headers["etag"]


def test_films_are_made_of_films(http: httpx.Client) -> None:
    film = made(http, "/v1/videos", pipeline="one-stage", width=64, height=64, num_frames=17)
    longer = made(http, "/v1/videos/extensions", video={"id": film["id"]}, num_frames=17)
    assert longer["extended_from_video_id"] == film["id"]
    retake = made(http, "/v1/videos/edits", video={"id": film["id"]}, window=[0.2, 0.5])
    assert (retake["params"]["pipeline"], retake["params"]["num_frames"]) == ("retake", 17)
    edit = made(http, "/v1/videos/edits", video={"id": film["id"]}, input_reference_strength=0.5)
    assert edit["params"]["images"][0]["strength"] == 0.5
    remix = http.post(f"/v1/videos/{film['id']}/remix", json={"prompt": "a blue square"}).json()
    assert remix["params"]["seed"] == film["params"]["seed"]
    assert remix["params"]["num_frames"] == 17


def test_pictures_and_edits_of_them(http: httpx.Client) -> None:
    body = {"prompt": "a red circle", "n": 2, "size": "128x128", "output_format": "webp", "output_compression": 80}
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    pictures = [base64.b64decode(item["b64_json"]) for item in answer.json()["data"]]
    assert len(set(pictures)) == 2
    first = Image.open(io.BytesIO(pictures[0]))
    assert (first.format, first.size) == ("WEBP", (128, 128))
    files = {"image": ("a.webp", pictures[0])}
    edited = http.post("/v1/images/edits", data={"prompt": "blue", "size": "128x128"}, files=files)
    assert edited.status_code == 200, edited.text
    assert Image.open(io.BytesIO(base64.b64decode(edited.json()["data"][0]["b64_json"]))).format == "PNG"


def test_partial_pictures_are_real_ones(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=TIMEOUT_S) as client:
        told = list(
            client.images.generate(
                prompt="a red circle",
                size="128x128",
                stream=True,
                partial_images=3,
                extra_body={"num_inference_steps": 4},
            )
        )
    assert told[-1].type == "image_generation.completed"
    partial = [event for event in told if event.type == "image_generation.partial_image"]
    assert partial
    assert all(Image.open(io.BytesIO(base64.b64decode(event.b64_json))).format == "JPEG" for event in partial)


def test_sound(http: httpx.Client) -> None:
    job = made(http, "/v1/audio/generations", seconds=1)
    wave = http.get(f"/v1/audio/{job['id']}/content").content
    with av.open(io.BytesIO(wave)) as sound:
        assert sum(frame.samples for frame in sound.decode(audio=0)) > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "height": 65}, "height"),
        ({"prompt": "x", "num_frames": 8}, "num_frames"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x", "adapters": ["none"]}, "adapters"),
        ({"prompt": "x", "guidance": {"video": {"scale": 3}}}, "guidance.video.scale"),
        ({"prompt": "x", "input_reference": "QUJDRA=="}, "images.0.image"),
        ({"prompt": "x", "sampler": "magic"}, "sampler"),
    ],
)
def test_what_the_model_cannot_do_is_refused_at_once(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = http.post("/v1/videos", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_a_film_is_cancelled_while_chat_goes_on(http: httpx.Client) -> None:
    job = http.post("/v1/videos", json={"prompt": "x", "num_inference_steps": 500, "width": 128, "height": 128}).json()
    wait(lambda: http.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress")
    chat = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})
    assert chat.status_code == 200, chat.text
    steps = wait(lambda: http.get("/v1/activity?seconds=10").json()["steps"])
    assert steps
    assert http.post(f"/v1/videos/{job['id']}/cancel").json()["status"] == "cancelled"


def test_the_model_tells_what_it_can_do(http: httpx.Client) -> None:
    cards = http.get("/v1/models").json()["data"]
    film = next(card for card in cards if "video" in card["capabilities"])
    pipelines = {one["name"]: one for one in film["generation"]["pipelines"]}
    assert {"one_stage", "two_stage_hq", "extend"} <= pipelines.keys()
    defaults = pipelines["one_stage"]["defaults"]
    assert defaults["guidance"]["video"]["guidance_scale"] > 1
    assert defaults["negative_prompt"]
    assert film["generation"]["adapters"] == []  # the distilled one is not for people to choose
    job = made(http, "/v1/videos", **{**defaults, "num_inference_steps": 1, "num_frames": 9, "pipeline": "one_stage"})
    assert job["params"]["guidance"]["video"]["guidance_scale"] == defaults["guidance"]["video"]["guidance_scale"]


def test_http_imports_nothing_heavy() -> None:
    code = "import braid.rest.app, braid.rest.jobs, braid.job_storage, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_no_path_of_the_machine_is_told(http: httpx.Client, tmp_path: Path) -> None:
    made(http, "/v1/videos", pipeline="one-stage")
    assert str(tmp_path.parent) not in http.get("/v1/videos").text
