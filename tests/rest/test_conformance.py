"""The conformance suite: every route with a right and a wrong request, by raw httpx and by OpenAI's client.

`RIGHT` and `WRONG` are tables over the app's own routes, and a test fails where a route has no row. Each row is sent
twice, by both clients, and what comes back must be what the OpenAPI document says. `TYPED` calls the methods that
OpenAI's client has names for. More of each route's rules are tested in its own file.
"""

from __future__ import annotations

import base64
import io
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from conftest import Studio
from scripted_studio import DEFAULTS
from starlette.routing import Route

from braid.diffusion.jobs.records import NewJob
from braid.rest.app import create_app
from braid.rest.openapi import document
from braid.rest.operations import OPERATIONS

PNG = b"\x89PNG\r\n\x1a\n picture"
CLIP = b"\0\0\0\x18ftypisom"
TALK = {"messages": [{"role": "user", "content": "hello there"}]}
NONE = "video_" + "0" * 32
CREATE = {"video": "/v1/videos", "image": "/v1/images/generations", "audio": "/v1/audio/generations"}
TIMEOUT_S = 30.0
Fill = Callable[[str, str], str]
"""(text, kind) to the text with jobs in its places."""


@dataclass(frozen=True)
class Row:
    """A request and what its answer must be. `{finished}`, `{fresh}` and `{waiting}` in the URL are jobs."""

    route: str
    """Method and path, as the app has them."""
    url: str = ""
    """None given is the route's own."""
    status: int = 200
    code: str | None = None
    param: str | None = None
    send: dict[str, Any] = field(default_factory=dict)
    """As httpx takes it: json, data, files, content, headers."""

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def target(self) -> str:
        return self.url or self.route.partition(" ")[2]


def right(route: str, url: str = "", *, status: int = 200, **send: Any) -> Row:
    return Row(route, url, status, send=send)


def wrong(route: str, status: int, code: str, param: str | None, url: str = "", **send: Any) -> Row:
    return Row(route, url, status, code, param, send)


def of_job(kind: str, path: str, list_path: str) -> tuple[list[Row], list[Row]]:
    """What every kind of job has."""
    one = f"{path}/{{id}}"
    good = [
        right(f"GET {list_path}", f"{list_path}?limit=1&order=asc"),
        right(f"GET {one}", f"{path}/{{finished}}"),
        right(f"GET {one}", f"{path}/{{waiting}}"),
        right(f"DELETE {one}", f"{path}/{{fresh}}"),
        right(f"DELETE {one}", f"{path}/{{waiting}}"),
        right(f"POST {one}/cancel", f"{path}/{{waiting}}/cancel"),
        right(f"GET {one}/events", f"{path}/{{finished}}/events"),
        right(f"GET {one}/content", f"{path}/{{finished}}/content"),
        right(f"GET {one}/content", f"{path}/{{finished}}/content", status=206, headers={"range": "bytes=0-9"}),
    ]
    unknown = f"{path}/{kind}_{'0' * 32}"
    bad = [
        wrong(f"GET {list_path}", 400, "invalid_value", "limit", f"{list_path}?limit=0"),
        wrong(f"GET {list_path}", 404, "not_found", "after", f"{list_path}?after=x"),
        wrong(f"GET {one}", 404, "not_found", None, unknown),
        wrong(f"DELETE {one}", 404, "not_found", None, unknown),
        wrong(f"POST {one}/cancel", 404, "not_found", None, f"{unknown}/cancel"),
        wrong(f"POST {one}/cancel", 409, "job_is_final", None, f"{path}/{{finished}}/cancel"),
        wrong(f"GET {one}/events", 404, "not_found", None, f"{unknown}/events"),
        wrong(f"GET {one}/events", 400, "unknown_parameter", "since", f"{path}/{{finished}}/events?since=1"),
        wrong(f"GET {one}/content", 409, "job_not_finished", None, f"{path}/{{waiting}}/content"),
        wrong(f"GET {one}/content", 400, "invalid_value", "variant", f"{path}/{{finished}}/content?variant=x"),
        wrong(f"GET {one}/content", 416, "range_not_satisfiable", None, f"{path}/{{finished}}/content",
              headers={"range": "bytes=900000-"}),
    ]  # fmt: skip
    return good, bad


PROTOBUF = {"content-type": "application/x-protobuf"}
AS_JSON, AS_TEXT = {"content-type": "application/json"}, {"content-type": "text/plain"}
JOBS = [
    of_job("video", "/v1/videos", "/v1/videos"),
    of_job("image", "/v1/images", "/v1/images"),
    of_job("audio", "/v1/audio", "/v1/audio/generations"),
]
RIGHT = [
    right("POST /v1/chat/completions", json=TALK),
    right("POST /v1/chat/completions", json=TALK | {"stream": True, "stream_options": {"include_usage": True}}),
    right("POST /v1/completions", json={"prompt": ["a", "b c"], "max_tokens": 2, "logprobs": 1}),
    right("POST /v1/completions", json={"prompt": "a b", "stream": True}),
    right("POST /v1/images/generations", json={"prompt": "x", "n": 2, "size": "64x64", "response_format": "url"}),
    right("POST /v1/images/generations", json={"prompt": "x", "stream": True, "partial_images": 2}),
    right("POST /v1/images/edits", data={"prompt": "x"}, files={"image": ("a.png", PNG)}),
    right("POST /v1/images/edits", json={"prompt": "x", "image": base64.b64encode(PNG).decode()}),
    right("POST /v1/videos", json={"prompt": "x", "seconds": "1", "size": "64x64", "seed": 4}),
    right("POST /v1/videos", data={"prompt": "x", "adapters": '["a"]'}, files={"input_reference": ("a.png", PNG)}),
    right("POST /v1/videos/extensions", json={"prompt": "x", "video": {"id": "{finished}"}, "seconds": "8"}),
    right("POST /v1/videos/extensions", data={"prompt": "x"}, files={"video": ("a.mp4", CLIP)}),
    right("POST /v1/videos/edits", json={"prompt": "x", "video": {"id": "{finished}"}}),
    right("POST /v1/videos/edits", data={"prompt": "x", "window": "[0, 1]"}, files={"video": ("a.mp4", CLIP)}),
    right("POST /v1/videos/{id}/remix", "/v1/videos/{finished}/remix", json={"prompt": "y", "seconds": 2}),
    right("POST /v1/audio/generations", json={"prompt": "rain", "seconds": 1}),
    *(row for good, _ in JOBS for row in good),
    right("GET /v1/activity", "/v1/activity?seconds=1"),
    right("GET /v1/timeline", "/v1/timeline?seconds=5&format=chrome"),
    right("GET /v1/traces", "/v1/traces?limit=3"),
    right("POST /v1/traces", content=b"\n\0", headers=PROTOBUF),
    right("GET /v1/traces/{id}", "/v1/traces/{trace}"),
    right("GET /v1/models"),
    right("GET /v1/models/{model}", "/v1/models/scripted"),
    right("GET /health"),
    right("GET /ready"),
    right("GET /stats"),
    right("GET /metrics"),
    right("GET /openapi.json"),
    right("GET /"),
    right("GET /page/{version}/{path}", "{a_file}"),
    right("GET /timeline"),
    right("GET /trace/{id}", "/trace/anything"),
    right("GET /timeline/files/{version}/{path}", "{a_timeline_file}"),
]
WRONG = [
    wrong("POST /v1/chat/completions", 400, "missing_required_parameter", "messages", json={}),
    wrong("POST /v1/chat/completions", 400, "invalid_value", "temperature", json=TALK | {"temperature": 3}),
    wrong("POST /v1/chat/completions", 400, "invalid_json", None, content="{", headers=AS_JSON),
    wrong("POST /v1/chat/completions", 415, "unsupported_media_type", None, content="a", headers=AS_TEXT),
    wrong("POST /v1/chat/completions", 404, "model_not_found", "model", json=TALK | {"model": "gpt-9"}),
    wrong("POST /v1/completions", 400, "missing_required_parameter", "prompt", json={}),
    wrong("POST /v1/completions", 400, "unsupported_parameter", "suffix", json={"prompt": "a", "suffix": "b"}),
    wrong("POST /v1/images/generations", 400, "invalid_value", "n", json={"prompt": "x", "n": 0}),
    wrong("POST /v1/images/edits", 400, "unsupported_parameter", "mask", data={"prompt": "x"},
          files={"image": ("a.png", PNG), "mask": ("m.png", PNG)}),
    wrong("POST /v1/videos", 400, "unknown_parameter", "sed", json={"prompt": "x", "sed": 1}),
    wrong("POST /v1/videos", 400, "invalid_type", "seed", data={"prompt": "x", "seed": "many"},
          files={"input_reference": ("a.png", PNG)}),
    wrong("POST /v1/videos/extensions", 404, "not_found", None, json={"prompt": "x", "video": {"id": NONE}}),
    wrong("POST /v1/videos/edits", 400, "missing_required_parameter", "window", data={"prompt": "x"},
          files={"video": ("a.mp4", CLIP)}),
    wrong("POST /v1/videos/{id}/remix", 404, "not_found", None, f"/v1/videos/{NONE}/remix", json={"prompt": "x"}),
    wrong("POST /v1/audio/generations", 400, "unsupported_parameter", "width", json={"prompt": "x", "width": 64}),
    *(row for _, bad in JOBS for row in bad),
    wrong("GET /v1/activity", 400, "invalid_value", "seconds", "/v1/activity?seconds=61"),
    wrong("GET /v1/timeline", 400, "invalid_type", "seconds", "/v1/timeline?seconds=long"),
    wrong("GET /v1/traces", 400, "invalid_value", "limit", "/v1/traces?limit=501"),
    wrong("POST /v1/traces", 415, "unsupported_media_type", None, json={}),
    wrong("GET /v1/traces/{id}", 404, "not_found", None, "/v1/traces/none"),
    wrong("GET /v1/models/{model}", 404, "model_not_found", "model", "/v1/models/gpt-9"),
    wrong("GET /page/{version}/{path}", 404, "not_found", None, "/page/1/../../server.py"),
    wrong("GET /timeline/files/{version}/{path}", 404, "not_found", None, "/timeline/files/1/none.js"),
]  # fmt: skip
CANNOT_BE_WRONG = {
    "GET /v1/models", "GET /health", "GET /ready", "GET /stats", "GET /metrics", "GET /openapi.json", "GET /",
    "GET /timeline", "GET /trace/{id}",
}  # fmt: skip
"""They take nothing, or anything."""


def test_every_route_has_its_rows(studio: Studio) -> None:
    routes = {
        f"{method} {re.sub(r':path}', '}', route.path)}"
        for route in create_app(studio.engine).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {row.route for row in RIGHT} == routes
    assert {row.route for row in WRONG} == routes - CANNOT_BE_WRONG


# -- sending -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(document())


def finished(web: httpx.Client, kind: str) -> str:
    """The id of a new job."""
    answer = web.post(CREATE[kind], json={"prompt": "x"}).json()
    job_id = str(answer["data"][0]["id"] if kind == "image" else answer["id"])
    deadline = time.monotonic() + TIMEOUT_S
    while web.get(CREATE[kind].replace("/generations", "") + f"/{job_id}").json()["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return job_id


def named_in(web: httpx.Client, page: str) -> str:
    """A file that a page names."""
    return "/" + re.findall(r'src="/?([^"]+\.js)"', web.get(page).text)[0]


def traced(web: httpx.Client) -> str:
    """The id of a trace that is kept."""
    trace_id = secrets.token_hex(16)
    web.get("/v1/models", headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
    deadline = time.monotonic() + TIMEOUT_S
    while web.get(f"/v1/traces/{trace_id}").status_code != 200:
        assert time.monotonic() < deadline
    return trace_id


@pytest.fixture
def fill(web: httpx.Client, studio: Studio) -> Fill:
    """Puts jobs into the places of a text."""

    def job(place: str, kind: str) -> str:
        if place != "waiting":
            return finished(web, kind)
        return studio.desk.store.create(NewJob(kind=kind, params={**DEFAULTS, "prompt": "!wait", "seed": 1})).job.id

    def fill(text: str, kind: str) -> str:
        for place in ("finished", "fresh", "waiting"):
            if f"{{{place}}}" in text:
                text = text.replace(f"{{{place}}}", job(place, kind))
        for place, make in (("a_file", "/"), ("a_timeline_file", "/timeline")):
            if text == f"{{{place}}}":
                return named_in(web, make)
        return text.replace("{trace}", traced(web)) if "{trace}" in text else text

    return fill


def kind_of(row: Row) -> str:
    return "image" if "/images" in row.target else "audio" if "/audio" in row.target else "video"


def request_of(row: Row, fill: Fill) -> tuple[str, dict[str, Any]]:
    """The URL and what goes with it, with jobs in their places."""
    send = dict(row.send)
    if isinstance(send.get("json", {}).get("video"), dict):
        send["json"] = send["json"] | {"video": {"id": fill(send["json"]["video"]["id"], "video")}}
    return fill(row.target, kind_of(row)), send


def check(row: Row, response: httpx.Response, described: Any) -> None:
    response.request.read()  # forms are streamed
    assert response.status_code == row.status, response.text
    route = row.route.partition(" ")[2]
    if any(operation.path.replace(":path", "") == route for operation in OPERATIONS):
        described[route][row.method].validate_response(response)
    if row.code is not None:
        error = response.json()["error"]
        assert (error["code"], error["param"]) == (row.code, row.param), error
        assert error["type"] == "invalid_request_error"


def name(row: Row) -> str:
    return f"{row.route} {row.status} {row.code or ''}"


@pytest.mark.parametrize("row", [*RIGHT, *WRONG], ids=name)
def test_raw_http_is_answered_as_described(web: httpx.Client, fill: Fill, described: Any, row: Row) -> None:
    url, send = request_of(row, fill)
    check(row, web.request(row.method, url, **send), described)


@pytest.mark.parametrize("row", [row for row in [*RIGHT, *WRONG] if "/v1/" in row.route], ids=name)
def test_openais_client_is_answered_as_described(client: openai.OpenAI, fill: Fill, described: Any, row: Row) -> None:
    url, send = request_of(row, fill)
    options: dict[str, Any] = {"headers": send.get("headers", {})}
    body: dict[str, Any] = {}
    if row.method == "POST":
        body = {
            "body": send.get("json", send.get("data")),
            "files": send.get("files"),
            "content": send.get("content"),
        }
        if send.get("files"):
            options["headers"] = {"content-type": "multipart/form-data"}
    body = {key: value for key, value in body.items() if value is not None}
    call = getattr(client, row.method.lower())
    if row.code is None:
        check(row, call(url.removeprefix("/v1"), cast_to=httpx.Response, options=options, **body), described)
        return
    with pytest.raises(openai.APIStatusError) as caught:
        call(url.removeprefix("/v1"), cast_to=httpx.Response, options=options, **body)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (row.status, row.code, row.param)
    check(row, caught.value.response, described)


# -- what OpenAI's client has methods for ------------------------------------------------------------------------------


def file(data: bytes, name: str) -> io.BytesIO:
    opened = io.BytesIO(data)
    opened.name = name
    return opened


def film(client: openai.OpenAI) -> str:
    return client.videos.create_and_poll(prompt="x").id


Typed = tuple[Callable[[openai.OpenAI], Any], Callable[[openai.OpenAI], Any], type[openai.APIStatusError]]
"""A right call, a wrong one, and what the wrong one raises."""
USER: Any = TALK["messages"]
TYPED: dict[str, Typed] = {
    "chat": (
        lambda c: (
            c.chat.completions.create(model="scripted", messages=USER).choices[0].message.content == "hello there"
        ),
        lambda c: c.chat.completions.create(model="scripted", messages=[]),
        openai.BadRequestError,
    ),
    "complete": (
        lambda c: c.completions.create(model="scripted", prompt="a b").choices[0].text == "a b",
        lambda c: c.completions.create(model="none", prompt="a"),
        openai.NotFoundError,
    ),
    "generate_images": (
        lambda c: len(c.images.generate(prompt="x", n=2).data or []) == 2,
        lambda c: c.images.generate(prompt="x", n=11),
        openai.BadRequestError,
    ),
    "edit_image": (
        lambda c: (c.images.edit(prompt="x", image=[file(PNG, "a.png")]).data or [])[0].b64_json,
        lambda c: c.images.edit(prompt="x", image=[file(PNG, "a.png"), file(PNG, "b.png")]),
        openai.BadRequestError,
    ),
    "create_video": (
        lambda c: c.videos.create(prompt="x", size="720x1280", seconds="4").id.startswith("video_"),
        lambda c: c.videos.create(prompt="x", extra_body={"pipeline": "none"}),
        openai.BadRequestError,
    ),
    "get_video": (
        lambda c: c.videos.retrieve(film(c)).status == "completed",
        lambda c: c.videos.retrieve("none"),
        openai.NotFoundError,
    ),
    "list_videos": (
        lambda c: c.videos.list(limit=1, order="asc").data[0].object == "video",
        lambda c: c.videos.list(limit=1000),
        openai.BadRequestError,
    ),
    "delete_video": (
        lambda c: c.videos.delete(film(c)).deleted,
        lambda c: c.videos.delete("none"),
        openai.NotFoundError,
    ),
    "content_of_video": (
        lambda c: c.videos.download_content(film(c), variant="spritesheet").read(),
        lambda c: c.videos.download_content("none"),
        openai.NotFoundError,
    ),
    "remix_video": (
        lambda c: c.videos.remix(film(c), prompt="y").remixed_from_video_id,
        lambda c: c.videos.remix("none", prompt="y"),
        openai.NotFoundError,
    ),
    "extend_video": (
        lambda c: c.videos.extend(prompt="x", seconds="8", video=file(CLIP, "a.mp4")).seconds == "8",
        lambda c: c.videos.extend(prompt="x", seconds="8", video=file(b"", "a.mp4")),
        openai.BadRequestError,
    ),
    "edit_video": (
        lambda c: c.videos.edit(prompt="x", video=file(CLIP, "a.mp4"), extra_body={"window": [0, 1]}).id,
        lambda c: c.videos.edit(prompt="x", video=file(CLIP, "a.mp4")),
        openai.BadRequestError,
    ),
    "list_models": (lambda c: c.models.list().data, lambda c: c.models.retrieve("none"), openai.NotFoundError),
    "get_model": (lambda c: c.models.retrieve("film").id, lambda c: c.models.retrieve("a/b"), openai.NotFoundError),
}


@pytest.mark.parametrize("operation", TYPED)
def test_the_methods_of_openais_client_work_and_raise(client: openai.OpenAI, operation: str) -> None:
    works, fails, error = TYPED[operation]
    assert works(client)
    with pytest.raises(error) as caught:
        fails(client)
    assert caught.value.code
