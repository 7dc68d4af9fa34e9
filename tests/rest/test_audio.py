"""Sound from words: a job like a film."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from conftest import Studio
from scripted_studio import content


def test_sound_is_asked_for_and_fetched(web: httpx.Client, studio: Studio) -> None:
    job = web.post("/v1/audio/generations", json={"prompt": "rain", "seconds": 2, "seed": 6}).json()
    assert (job["object"], job["seconds"], job["size"]) == ("audio", "2", None)
    params = studio.engine.resolved[0].params
    assert (params["pipeline"], params["num_frames"]) == ("text_to_audio", 49)
    while job["status"] != "completed":
        time.sleep(0.02)
        job = web.get(f"/v1/audio/{job['id']}").json()
    response = web.get(f"/v1/audio/{job['id']}/content")
    assert (response.headers["content-type"], response.content) == ("audio/wav", content("audio", 6))
    assert web.get("/v1/audio/generations").json()["data"][0]["id"] == job["id"]
    assert web.delete(f"/v1/audio/{job['id']}").json()["object"] == "audio.deleted"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": "read this", "voice": "alloy"}, "unknown_parameter", "input"),
        ({"prompt": "x", "width": 64}, "unsupported_parameter", "width"),
        ({"prompt": "x", "seconds": -1}, "invalid_value", "seconds"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(web: httpx.Client, body: dict[str, Any], code: str, param: str) -> None:
    error = web.post("/v1/audio/generations", json=body).json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_reading_aloud_is_not_offered(web: httpx.Client) -> None:
    assert web.post("/v1/audio/speech", json={"input": "x", "voice": "alloy", "model": "m"}).status_code in (404, 405)
