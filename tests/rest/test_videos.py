"""Films over plain HTTP: asked for, watched, fetched, listed, cancelled, made again."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import pytest
from conftest import Studio
from prometheus_client.parser import text_string_to_metric_families
from scripted_studio import content

PNG = b"\x89PNG\r\n\x1a\n picture"
MP4 = b"\0\0\0\x18ftypisom film"


def ask(web: httpx.Client, prompt: str = "a red circle", **fields: Any) -> dict[str, Any]:
    response = web.post("/v1/videos", json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


def ended(web: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while job["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
        job = web.get(f"/v1/videos/{job['id']}").json()
    return job


def events(web: httpx.Client, url: str) -> list[tuple[str, Any]]:
    with web.stream("GET", url) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(response.iter_text()).split("\n\n")
    pairs = [block.removeprefix("event: ").split("\ndata: ") for block in blocks if block.startswith("event: ")]
    return [(name, json.loads(data)) for name, data in pairs]


# -- asking ------------------------------------------------------------------------------------------------------------


def test_a_film_is_asked_for_and_fetched(web: httpx.Client) -> None:
    job = ask(web, "a red circle", seed=5)
    assert (job["object"], job["status"], job["model"], job["prompt"]) == (
        "video", "queued", "scripted-film", "a red circle"
    )  # fmt: skip
    done = ended(web, job)
    assert (done["status"], done["progress"], done["size"], done["seconds"]) == ("completed", 100, "96x64", "1.042")
    assert set(done["files"]) == {"video", "thumbnail", "spritesheet", "first_frame", "audio"}
    for variant in done["files"]:
        response = web.get(f"/v1/videos/{job['id']}/content", params={"variant": variant})
        assert response.content == content(variant, 5)
    assert web.get(f"/v1/videos/{job['id']}/content").headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("as_form", [False, True])
def test_every_argument_reaches_the_engine_by_its_own_name(web: httpx.Client, studio: Studio, as_form: bool) -> None:
    arguments = {
        "negative_prompt": "rain", "height": 64, "width": 128, "num_frames": 17, "frame_rate": 12.5, "seed": -3,
        "num_inference_steps": 7, "sampler": "euler", "guidance": {"video": {"guidance_scale": 3, "stg_blocks": [1]}},
        "window": [0.5, 1], "num_context_frames": 9, "generate_audio": False, "enhance_prompt": True,
        "output_type": "frames", "sigmas": [1, 0.5, 0], "stage_2_sigmas": [0.5, 0],
    }  # fmt: skip
    fields = arguments | {
        "prompt": "x", "pipeline": "hq", "adapters": {"style": [0.5, 1]}, "distilled_adapter": "fast",
        "priority": "interactive",
    }  # fmt: skip
    if as_form:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        response = web.post("/v1/videos", files={name: (None, text) for name, text in texts.items()})
    else:
        response = web.post("/v1/videos", json=fields)
    assert response.status_code == 200, response.text
    assert studio.engine.resolved[0].kind == "video"
    assert studio.engine.resolved[0].params == arguments | {
        "prompt": "x",
        "pipeline": "two_stage_hq",
        "adapters": [{"name": "style", "strengths": [0.5, 1]}],
        "distilled_adapter": {"name": "fast", "strengths": [1.0]},
    }
    assert studio.desk.store.get(response.json()["id"]).priority == 2


def test_sizes_and_lengths_become_the_nearest_that_the_model_makes(web: httpx.Client, studio: Studio) -> None:
    job = ask(web, size="1280x720", seconds="4")
    assert (job["size"], job["seconds"], job["params"]["num_frames"]) == ("1280x736", "4", 97)
    job = ask(web, size="1280x720", seconds=4, frame_rate=12, quality="high")
    assert (job["size"], job["params"]["num_frames"]) == ("1280x704", 49)
    assert job["params"]["pipeline"] == "two_stage_hq"
    assert ask(web, size="auto", seconds="0.01")["params"]["num_frames"] == 9


@pytest.mark.parametrize(
    "reference",
    [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        base64.b64encode(PNG).decode(),
        {"image_url": "data:image/png;base64," + base64.b64encode(PNG).decode()},
        {"image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()}},
        {"b64_json": base64.b64encode(PNG).decode()},
    ],
)
def test_a_first_frame_comes_in_many_forms(web: httpx.Client, studio: Studio, reference: Any) -> None:
    ask(web, input_reference=reference, input_reference_strength=0.5)
    (image,) = studio.engine.resolved[0].params["images"]
    assert (image["frame_index"], image["strength"]) == (0, 0.5)
    assert studio.engine.uploads == [{image["image"]["input"]: PNG}]
    assert image["image"]["input"].endswith(".png")


def test_a_first_frame_may_be_a_file_of_a_form(web: httpx.Client, studio: Studio) -> None:
    answer = web.post("/v1/videos", data={"prompt": "x", "seed": "4"}, files={"input_reference": ("../../a.exe", PNG)})
    job = studio.desk.store.get(answer.json()["id"])
    assert [stored.name for stored in job.inputs] == ["images_0_image.png"]
    assert studio.engine.uploads == [{"images_0_image.png": PNG}]
    assert not list((studio.root / "staging").glob("*/*"))


def test_a_first_frame_may_be_another_jobs(web: httpx.Client, studio: Studio) -> None:
    film = ended(web, ask(web))
    ask(web, input_reference={"id": film["id"]})
    (image,) = studio.engine.resolved[1].params["images"]
    assert image["image"] == {"job": film["id"], "file": "first_frame"}


def test_an_idempotency_key_gives_the_same_job_though_its_seed_was_drawn(web: httpx.Client, studio: Studio) -> None:
    headers = {"idempotency-key": "again-1"}
    first = web.post("/v1/videos", json={"prompt": "x"}, headers=headers).json()
    again = web.post("/v1/videos", json={"prompt": "x"}, headers=headers).json()
    assert again["id"] == first["id"]
    assert len(studio.engine.resolved) == 1
    other = web.post("/v1/videos", json={"prompt": "y"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"


# -- looking -----------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_in_pages_by_kind(web: httpx.Client) -> None:
    jobs = [ended(web, ask(web, f"film {index}")) for index in range(3)]
    web.post("/v1/audio/generations", json={"prompt": "not a film"})
    page = web.get("/v1/videos", params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == [jobs[2]["id"], jobs[1]["id"]]
    assert (page["object"], page["has_more"], page["last_id"]) == ("list", True, jobs[1]["id"])
    rest = web.get("/v1/videos", params={"after": page["last_id"], "limit": 1}).json()
    assert [job["id"] for job in rest["data"]] == [jobs[0]["id"]]


def test_a_waiting_job_tells_its_place_and_when_to_ask_again(web: httpx.Client, studio: Studio) -> None:
    blocker = ask(web, "!wait")
    while web.get(f"/v1/videos/{blocker['id']}").json()["status"] == "queued":
        time.sleep(0.01)
    ahead, job = ask(web), ask(web)
    response = web.get(f"/v1/videos/{job['id']}")
    body = response.json()
    assert (body["status"], body["queue_position"]) == ("queued", 1)
    assert 16 <= body["eta_s"] <= 24  # two of 8 s, and what the one under way still takes
    assert 2000 <= int(response.headers["openai-poll-after-ms"]) <= 3000
    web.post(f"/v1/videos/{blocker['id']}/cancel")
    assert ended(web, job)["status"] == "completed"
    assert "openai-poll-after-ms" not in web.get(f"/v1/videos/{job['id']}").headers
    assert ended(web, ahead)["status"] == "completed"


def test_events_tell_progress_previews_and_the_end(web: httpx.Client) -> None:
    job = ask(web, "!steps")
    told = events(web, f"/v1/videos/{job['id']}/events")
    names = [name for name, _ in told]
    assert (names[0], names[-1]) == ("progress", "done")
    assert "preview" in names
    preview = next(data for name, data in told if name == "preview")
    assert base64.b64decode(preview["b64_json"]).startswith(b"\xff\xd8 preview")
    live = [data for name, data in told if name == "progress" and data["step"]]
    assert live[-1]["num_steps"] == 4
    assert [data["progress"] for data in live] == sorted(data["progress"] for data in live)
    assert told[-1][1]["status"] == "completed"
    assert events(web, f"/v1/videos/{job['id']}/events") == [("done", told[-1][1])]


def test_a_failed_job_says_why_everywhere(web: httpx.Client) -> None:
    job = ended(web, ask(web, "!fail"))
    assert (job["status"], job["error"]["code"], job["error"]["message"]) == (
        "failed", "no_good", "the decoder met a NaN"
    )  # fmt: skip
    assert events(web, f"/v1/videos/{job['id']}/events")[-1][1]["error"]["code"] == "no_good"
    content = web.get(f"/v1/videos/{job['id']}/content")
    assert (content.status_code, content.json()["error"]["code"]) == (409, "job_not_finished")


def wait_for_watchers(studio: Studio, number: int) -> None:
    deadline = time.monotonic() + 30
    while studio.desk.news.num_watched != number and time.monotonic() < deadline:
        time.sleep(0.01)
    assert studio.desk.news.num_watched == number


def test_a_watcher_that_leaves_is_forgotten(web: httpx.Client, studio: Studio) -> None:
    wait_for_watchers(studio, 0)
    job = ask(web, "!wait")
    try:
        with web.stream("GET", f"/v1/videos/{job['id']}/events") as response:
            pieces = response.iter_text()  # a dropped iterator closes the stream
            assert next(pieces).startswith("event: progress")
            wait_for_watchers(studio, 1)
        wait_for_watchers(studio, 0)
    finally:
        web.delete(f"/v1/videos/{job['id']}")


# -- ending ------------------------------------------------------------------------------------------------------------


def test_a_running_job_is_cancelled(web: httpx.Client, studio: Studio) -> None:
    job = ask(web, "!wait")
    body = web.post(f"/v1/videos/{job['id']}/cancel").json()
    assert (body["status"], body["cancel_requested"]) == ("cancelled", True)
    assert studio.engine.cancelled.get(timeout=5) == job["id"]
    assert web.post(f"/v1/videos/{job['id']}/cancel").status_code == 200
    assert events(web, f"/v1/videos/{job['id']}/events")[-1] == ("done", body)


def test_a_job_that_is_cancelled_in_the_queue_leaves_its_span_and_is_counted_once(web: httpx.Client) -> None:
    def num_cancelled() -> float:
        families = text_string_to_metric_families(web.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == "braid_jobs_total")
        labels = {"kind": "video", "status": "cancelled"}
        return next((sample.value for sample in samples if sample.labels == labels), 0.0)

    blocker = ask(web, "!wait")
    while web.get(f"/v1/videos/{blocker['id']}").json()["status"] == "queued":
        time.sleep(0.01)
    before = num_cancelled()
    trace_id, caller = "7bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace_id}-{caller}-01"}
    job = web.post("/v1/videos", json={"prompt": "x"}, headers=headers).json()
    for _ in range(2):
        assert web.post(f"/v1/videos/{job['id']}/cancel").json()["status"] == "cancelled"
    assert num_cancelled() == before + 1
    spans = {span["name"]: span for span in web.get(f"/v1/traces/{trace_id}").json()["spans"]}
    assert spans["POST /v1/videos"]["parent_id"] == caller
    assert spans["job"]["parent_id"] == spans["POST /v1/videos"]["span_id"]
    assert (spans["job"]["error"], spans["job"]["attributes"]["braid.job.id"]) == ("request_cancelled", job["id"])
    web.post(f"/v1/videos/{blocker['id']}/cancel")


def test_a_finished_job_cannot_be_cancelled(web: httpx.Client) -> None:
    job = ended(web, ask(web))
    response = web.post(f"/v1/videos/{job['id']}/cancel")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "job_is_final")


@pytest.mark.parametrize("prompt", ["done", "!wait"])
def test_a_deleted_job_is_gone_with_its_files(web: httpx.Client, studio: Studio, prompt: str) -> None:
    job = ask(web, prompt)
    if prompt == "done":
        ended(web, job)
    answer = web.delete(f"/v1/videos/{job['id']}")
    assert answer.json() == {"id": job["id"], "object": "video.deleted", "deleted": True}
    assert web.get(f"/v1/videos/{job['id']}").status_code == 404
    deadline = time.monotonic() + 30
    while (studio.root / "jobs" / job["id"]).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (studio.root / "jobs" / job["id"]).exists()


# -- of other films ----------------------------------------------------------------------------------------------------


def test_a_remix_keeps_all_but_what_it_replaces(web: httpx.Client, studio: Studio) -> None:
    answer = web.post("/v1/videos", data={"prompt": "a", "size": "64x64"}, files={"input_reference": ("a.png", PNG)})
    original = ended(web, answer.json())
    remix = web.post(f"/v1/videos/{original['id']}/remix", json={"prompt": "b", "seconds": "2"}).json()
    assert remix["remixed_from_video_id"] == original["id"]
    params = studio.engine.resolved[1].params
    assert (params["prompt"], params["width"], params["num_frames"], params["seed"]) == (
        "b", 64, 49, original["params"]["seed"]
    )  # fmt: skip
    assert studio.engine.uploads[1] == {"images_0_image.png": PNG}


def test_an_extension_begins_with_a_film(web: httpx.Client, studio: Studio) -> None:
    film = ended(web, ask(web, frame_rate=12.0))
    body = {"prompt": "on", "video": {"id": film["id"]}, "seconds": "4"}
    extension = web.post("/v1/videos/extensions", json=body).json()
    params = studio.engine.resolved[1].params
    assert (params["pipeline"], params["video"]) == ("extend", {"job": film["id"], "file": "video"})
    assert (params["num_frames"], extension["extended_from_video_id"]) == (49, film["id"])
    answer = web.post("/v1/videos/extensions", data={"prompt": "on"}, files={"video": ("a.mp4", MP4)})
    assert answer.status_code == 200, answer.text
    assert studio.engine.uploads[2] == {"video.mp4": MP4}


def test_an_edit_is_a_retake_of_a_window_or_begins_anew(web: httpx.Client, studio: Studio) -> None:
    film = ended(web, ask(web, width=128))
    web.post("/v1/videos/edits", json={"prompt": "b", "video": {"id": film["id"]}, "window": [0.25, 0.75]})
    params = studio.engine.resolved[1].params
    assert (params["pipeline"], params["video"]["file"], params["window"]) == ("retake", "video", [0.25, 0.75])
    web.post("/v1/videos/edits", json={"prompt": "b", "video": {"id": film["id"]}, "input_reference_strength": 0.5})
    params = studio.engine.resolved[2].params
    assert params["images"] == [
        {"image": {"job": film["id"], "file": "first_frame"}, "frame_index": 0, "strength": 0.5}
    ]
    assert (params["width"], params["num_frames"]) == (128, 25)
    assert "video" not in params
    answer = web.post("/v1/videos/edits", data={"prompt": "b"}, files={"video": ("a.mp4", MP4)})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "window")


# -- what is wrong -----------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_required_parameter", "prompt"),
    ({"prompt": None}, "missing_required_parameter", "prompt"),
    ({"prompt": 3}, "invalid_type", "prompt"),
    ({"prompt": "x", "promt": "y"}, "unknown_parameter", "promt"),
    ({"prompt": "x", "extra_body": {"sed": 1}}, "unknown_parameter", "sed"),
    ({"prompt": "x", "extra_body": {"prompt": "y"}}, "invalid_form", "prompt"),
    ({"prompt": "x", "extra_body": 3}, "invalid_type", "extra_body"),
    ({"prompt": "x", "seed": "three"}, "invalid_type", "seed"),
    ({"prompt": "x", "seed": True}, "invalid_type", "seed"),
    ({"prompt": "x", "seed": 2**70}, "invalid_value", "seed"),
    ({"prompt": "x", "seconds": 0}, "invalid_value", "seconds"),
    ({"prompt": "x", "seconds": "four"}, "invalid_type", "seconds"),
    ({"prompt": "x", "seconds": 4, "num_frames": 9}, "invalid_value", "seconds"),
    ({"prompt": "x", "size": "big"}, "invalid_value", "size"),
    ({"prompt": "x", "size": "64x64", "width": 64}, "invalid_value", "size"),
    ({"prompt": "x", "quality": "best"}, "invalid_value", "quality"),
    ({"prompt": "x", "pipeline": "three_stage"}, "invalid_value", "pipeline"),
    ({"prompt": "x", "pipeline": "distilled", "seconds": 1}, "invalid_value", "pipeline"),
    ({"prompt": "x", "model": "sora-2"}, "model_not_found", "model"),
    ({"prompt": "x", "model": "scripted-135m"}, "model_not_found", "model"),
    ({"prompt": "x", "guidance": 3}, "invalid_type", "guidance"),
    ({"prompt": "x", "sigmas": [1, "a"]}, "invalid_type", "sigmas.1"),
    ({"prompt": "x", "latents": [1]}, "unsupported_parameter", "latents"),
    ({"prompt": "x", "output_type": "latents"}, "invalid_value", "output_type"),
    ({"prompt": "x", "input_reference": "/etc/passwd"}, "invalid_value", "input_reference"),
    ({"prompt": "x", "input_reference": "file:///etc/passwd"}, "invalid_value", "input_reference"),
    ({"prompt": "x", "input_reference": "data:image/png;base64"}, "invalid_value", "input_reference"),
    ({"prompt": "x", "input_reference": ""}, "invalid_value", "input_reference"),
    ({"prompt": "x", "input_reference": 3}, "invalid_type", "input_reference"),
    ({"prompt": "x", "input_reference": {"path": "a"}}, "invalid_value", "input_reference"),
    ({"prompt": "x", "input_reference": {"id": "../x"}}, "invalid_value", "input_reference.id"),
    ({"prompt": "x", "input_reference": {"id": "video_" + "0" * 32}}, "not_found", None),
    ({"prompt": "x", "input_reference": "http://localhost/a.png"}, "unsupported_parameter", "images.0.image"),
    ({"prompt": "x", "input_reference_strength": 0.5}, "missing_required_parameter", "input_reference"),
    ({"prompt": "x", "images": [{"image": "QUJD", "index": 1}]}, "unknown_parameter", "images.0.index"),
    ({"prompt": "x", "images": ["QUJD"], "input_reference": "QUJD"}, "invalid_value", "input_reference"),
    ({"prompt": "x", "adapters": [["a"]]}, "invalid_type", "adapters.0"),
    ({"prompt": "x", "adapters": [{"path": "/a"}]}, "unknown_parameter", "adapters.0.path"),
    ({"prompt": "x", "priority": "urgent"}, "invalid_value", "priority"),
    ({"prompt": "x", "webhook_url": "https://example.org/x"}, "unsupported_parameter", "webhook_url"),
    ({"prompt": "!refuse"}, "invalid_value", "height"),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("body", "code", "param"), WRONG, ids=[f"{code}-{param}" for _, code, param in WRONG])
def test_a_wrong_request_is_told_what_is_wrong(
    web: httpx.Client, studio: Studio, body: dict[str, Any], code: str, param: str | None
) -> None:
    before = len(studio.desk.store.page().jobs)
    response = web.post("/v1/videos", json=body)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert response.status_code == (404 if code in ("not_found", "model_not_found") else 400)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert param.split(".")[0] in error["message"]
    assert len(studio.desk.store.page().jobs) == before


@pytest.mark.parametrize(
    ("method", "url", "status", "param"),
    [
        ("GET", "/v1/videos?limit=0", 400, "limit"),
        ("GET", "/v1/videos?limit=many", 400, "limit"),
        ("GET", "/v1/videos?order=up", 400, "order"),
        ("GET", "/v1/videos?after=video_x", 404, "after"),
        ("GET", "/v1/videos?page=2", 400, "page"),
        ("GET", "/v1/videos?limit=1&limit=2", 400, "limit"),
        ("GET", "/v1/videos/none", 404, None),
        ("GET", "/v1/videos/none/events", 404, None),
        ("GET", "/v1/videos/none/content", 404, None),
        ("POST", "/v1/videos/none/cancel", 404, None),
        ("DELETE", "/v1/videos/none", 404, None),
        ("PUT", "/v1/videos", 405, None),
        ("POST", "/v1/videos/none", 405, None),
        ("POST", "/v1/videos/characters", 405, None),
    ],
)
def test_a_wrong_url_is_told_so(web: httpx.Client, method: str, url: str, status: int, param: str | None) -> None:
    response = web.request(method, url)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_a_wrong_method_is_told_all_that_are_right(web: httpx.Client) -> None:
    assert web.put("/v1/videos").headers["allow"] == "GET, HEAD, POST"


def test_a_job_is_found_under_its_own_kind_only(web: httpx.Client) -> None:
    job = ask(web)
    assert web.get(f"/v1/images/{job['id']}").status_code == 404
    assert web.delete(f"/v1/audio/{job['id']}").status_code == 404
    assert web.get(f"/v1/videos/{job['id']}").status_code == 200


def test_a_body_that_is_too_long_is_cut_off(web: httpx.Client) -> None:
    files = {"input_reference": ("a.png", b"x" * 1_000_001)}
    response = web.post("/v1/videos", data={"prompt": "x"}, files=files)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
