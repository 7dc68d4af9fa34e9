"""Pictures: the request waits for them, or hears of them while they are made."""

from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import httpx
import pytest
from conftest import Studio
from scripted_studio import content

PNG = b"\x89PNG\r\n\x1a\n picture"
URL = "/v1/images/generations"


def make(web: httpx.Client, prompt: str = "a red circle", **fields: Any) -> dict[str, Any]:
    response = web.post(URL, json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


def running(studio: Studio) -> list[str]:
    return [job.id for job in studio.desk.store.unfinished()]


def wait_until_idle(studio: Studio) -> None:
    deadline = time.monotonic() + 30
    while running(studio) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(studio) == []


def test_several_pictures_have_seeds_that_follow_each_other(web: httpx.Client, studio: Studio) -> None:
    body = make(web, n=3, seed=40, size="128x64", output_format="webp", output_compression=50)
    assert [base64.b64decode(item["b64_json"]) for item in body["data"]] == [
        content("image", seed) for seed in (40, 41, 42)
    ]
    assert [item["seed"] for item in body["data"]] == [40, 41, 42]
    assert (body["size"], body["output_format"], body["background"]) == ("128x64", "webp", "opaque")
    assert len(studio.engine.resolved) == 1
    params = studio.engine.resolved[0].params
    assert (params["output_format"], params["output_compression"]) == ("webp", 50)
    assert "n" not in params


def test_a_rewritten_prompt_is_told(web: httpx.Client) -> None:
    (rewritten,) = make(web, "a cat", enhance_prompt=True)["data"]
    assert rewritten["revised_prompt"] == "a cat, rewritten"
    job = web.get(f"/v1/images/{rewritten['id']}").json()
    assert (job["prompt"], job["revised_prompt"]) == ("a cat", "a cat, rewritten")
    (plain,) = make(web, "a cat")["data"]
    assert "revised_prompt" not in plain
    assert web.get(f"/v1/images/{plain['id']}").json()["revised_prompt"] is None


def test_a_picture_may_be_fetched_by_url_and_stays_in_the_gallery(web: httpx.Client) -> None:
    (item,) = make(web, response_format="url", seed=3)["data"]
    assert web.get(item["url"]).content == content("image", 3)
    listed = web.get("/v1/images").json()["data"][0]
    assert (listed["id"], listed["object"], listed["files"]) == (item["id"], "image", ["image"])
    assert web.delete(f"/v1/images/{item['id']}").json()["object"] == "image.deleted"
    assert web.get(item["url"]).status_code == 404


def test_a_client_that_leaves_cancels_its_pictures(web: httpx.Client, studio: Studio) -> None:
    with pytest.raises(httpx.ReadTimeout):
        web.post(URL, json={"prompt": "!wait", "n": 2}, timeout=0.5)
    wait_until_idle(studio)
    assert {job.status for job in studio.desk.store.page(limit=2).jobs} == {"cancelled"}


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("!fail", 500, "no_good"), ("!full", 507, "disk_full"), ("!refuse", 400, "invalid_value")],
)
def test_a_picture_that_is_not_made_is_an_error(
    web: httpx.Client, studio: Studio, prompt: str, status: int, code: str
) -> None:
    response = web.post(URL, json={"prompt": prompt, "n": 2})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    wait_until_idle(studio)


def test_a_picture_that_somebody_cancels_is_an_error(web: httpx.Client, studio: Studio) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(web.post(URL, json={"prompt": "!wait"})))
    asking.start()
    while not running(studio):
        time.sleep(0.01)
    assert httpx.post(f"{studio.server.url}/v1/images/{running(studio)[0]}/cancel").json()["status"] == "cancelled"
    asking.join()
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (409, "job_cancelled")


def streamed(web: httpx.Client, url: str = URL, **body: Any) -> list[dict[str, Any]]:
    with web.stream("POST", url, json={"prompt": "!steps", "stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        blocks = "".join(response.iter_text()).split("\n\n")
    told = []
    for block in blocks[:-1]:
        head, data = block.split("\ndata: ")
        told.append(json.loads(data))
        assert head == f"event: {told[-1].get('type', 'error')}"
    return told


def test_a_stream_has_partial_pictures_and_the_whole_one(web: httpx.Client, studio: Studio) -> None:
    told = streamed(web, partial_images=2, seed=9, output_format="jpeg")
    assert [item["type"].removeprefix("image_generation.") for item in told] == [
        "partial_image", "partial_image", "completed"
    ]  # fmt: skip
    assert [item["partial_image_index"] for item in told[:-1]] == [0, 1]
    assert base64.b64decode(told[0]["b64_json"]).startswith(b"\xff\xd8 preview")
    assert base64.b64decode(told[-1]["b64_json"]) == content("image", 9)
    assert told[-1]["usage"]["total_tokens"] == 0
    assert told[-1]["output_format"] == "jpeg"
    assert {item["id"] for item in told} == {studio.desk.store.page().jobs[0].id}
    assert studio.engine.resolved[0].params["preview_every"] == 1


def test_a_stream_without_previews_has_the_picture_only(web: httpx.Client) -> None:
    assert [item["type"] for item in streamed(web)] == ["image_generation.completed"]


def test_a_stream_that_fails_ends_with_an_error(web: httpx.Client) -> None:
    told = streamed(web, prompt="!fail", partial_images=3)
    assert told[-1]["error"]["code"] == "no_good"


def test_leaving_a_stream_cancels_its_picture(web: httpx.Client, studio: Studio) -> None:
    with web.stream("POST", URL, json={"prompt": "!wait", "stream": True, "partial_images": 1}) as response:
        assert response.status_code == 200
        while not running(studio):
            time.sleep(0.01)
    wait_until_idle(studio)
    assert studio.desk.store.page(limit=1).jobs[0].status == "cancelled"


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit_begins_with_a_picture(web: httpx.Client, studio: Studio, name: str) -> None:
    answer = web.post("/v1/images/edits", data={"prompt": "blue", "strength": "0.25"}, files={name: ("a.png", PNG)})
    assert answer.status_code == 200, answer.text
    params = studio.engine.resolved[0].params
    assert params["images"] == [{"strength": 0.25, "image": {"input": "images_0_image.png"}}]
    assert studio.engine.uploads == [{"images_0_image.png": PNG}]


def test_an_edit_may_be_streamed_and_be_json(web: httpx.Client) -> None:
    picture = {"image_url": "data:image/png;base64," + base64.b64encode(PNG).decode()}
    told = streamed(web, "/v1/images/edits", images=[picture], partial_images=1)
    assert [item["type"] for item in told] == ["image_edit.partial_image", "image_edit.completed"]


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (URL, {}, "missing_required_parameter", "prompt"),
    (URL, {"prompt": "x", "n": 11}, "invalid_value", "n"),
    (URL, {"prompt": "x", "n": 0}, "invalid_value", "n"),
    (URL, {"prompt": "x", "n": 2, "stream": True}, "unsupported_parameter", "n"),
    (URL, {"prompt": "x", "partial_images": 2}, "invalid_value", "partial_images"),
    (URL, {"prompt": "x", "partial_images": 4, "stream": True}, "invalid_value", "partial_images"),
    (URL, {"prompt": "x", "response_format": "jpeg"}, "invalid_value", "response_format"),
    (URL, {"prompt": "x", "output_format": "gif"}, "invalid_value", "output_format"),
    (URL, {"prompt": "x", "output_compression": 50}, "invalid_value", "output_compression"),
    (URL, {"prompt": "x", "background": "transparent"}, "invalid_value", "background"),
    (URL, {"prompt": "x", "style": "vivid"}, "unsupported_parameter", "style"),
    (URL, {"prompt": "x", "num_frames": 9}, "unsupported_parameter", "num_frames"),
    (URL, {"prompt": "x", "seed": 2**63 - 1}, "invalid_value", "seed"),
    (URL, {"prompt": "x", "colour": "red"}, "unknown_parameter", "colour"),
    (URL, {"prompt": "x", "model": "dall-e-3"}, "model_not_found", "model"),
    ("/v1/images/edits", {"prompt": "x"}, "missing_required_parameter", "image"),
    ("/v1/images/edits", {"prompt": "x", "image": []}, "invalid_type", "image"),
    ("/v1/images/edits", {"prompt": "x", "image": ["QUJD", "QUJD"]}, "unsupported_parameter", "image"),
    ("/v1/images/edits", {"prompt": "x", "images": ["QUJD", "QUJD"]}, "unsupported_parameter", "images"),
    ("/v1/images/edits", {"prompt": "x", "image": "QUJD", "images": ["QUJD"]}, "invalid_value", "images"),
    ("/v1/images/edits", {"prompt": "x", "image": "QUJD", "mask": "QUJD"}, "unsupported_parameter", "mask"),
]


@pytest.mark.parametrize(
    ("url", "body", "code", "param"), WRONG, ids=[f"{code}-{param}" for _, _, code, param in WRONG]
)
def test_a_wrong_request_is_told_what_is_wrong(
    web: httpx.Client, studio: Studio, url: str, body: dict[str, Any], code: str, param: str
) -> None:
    response = web.post(url, json=body)
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == (code, param), response.text
    assert response.status_code == (404 if code == "model_not_found" else 400)
    assert studio.engine.resolved == []


def test_pictures_whose_client_was_lost_with_the_server_are_cancelled(tmp_path: Any) -> None:
    with Studio(tmp_path) as first:
        first.engine.is_paused.set()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(first.server.url + URL, json={"prompt": "x"}, timeout=0.3)
        video = httpx.post(first.server.url + "/v1/videos", json={"prompt": "x"}).json()
        wait_for = time.monotonic() + 30
        while len(running(first)) > 1 and time.monotonic() < wait_for:
            time.sleep(0.01)
        picture = first.desk.store.create(orphan_of(first)).job
    with Studio(tmp_path) as second:
        for job_id, status in ((picture.id, "cancelled"), (video["id"], "completed")):
            deadline = time.monotonic() + 30
            while second.desk.store.get(job_id).status != status:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def orphan_of(studio: Studio) -> Any:
    """As a server that was killed leaves it."""
    from braid.diffusion.jobs.records import NewJob

    facts = {"synchronous": True, "server": ["http", studio.storage.generation]}
    return NewJob(kind="image", params={"prompt": "!wait", "seed": 1}, facts=facts)
