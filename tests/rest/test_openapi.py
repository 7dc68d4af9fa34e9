"""The document says what is true: its URLs are those that are served, its answers are those that are given."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Studio
from scripted_studio import STEP

from braid.rest.app import create_app
from braid.rest.openapi import document


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document()


def matches(value: Any, schema: dict[str, Any], described: dict[str, Any]) -> bool:
    """As much of JSON Schema as the document uses for answers."""
    if "$ref" in schema:
        return matches(value, described["components"]["schemas"][schema["$ref"].rpartition("/")[2]], described)
    if "anyOf" in schema:
        return any(matches(value, one, described) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "null": type(None)}
    if schema.get("type", "object") != "object":
        return isinstance(value, kinds[schema["type"]]) and all(
            matches(item, schema.get("items", {}), described) for item in (value if isinstance(value, list) else [])
        )
    known = schema.get("properties", {})
    return not schema or (
        isinstance(value, dict)
        and all(name in value for name in schema.get("required", ()))
        and all(matches(value[name], one, described) for name, one in known.items() if name in value)
    )


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", repr(described)))
    assert names
    assert names <= set(described["components"]["schemas"])


def test_every_url_but_the_pages_is_described(described: dict[str, Any], studio: Studio) -> None:
    served = {re.sub(r":path}", "}", route.path) for route in create_app(studio.engine).routes}  # type: ignore[attr-defined]
    pages = {"/", "/page/{version}/{path}", "/timeline", "/trace/{id}", "/timeline/files/{version}/{path}"}
    assert served - set(described["paths"]) == pages | {"/openapi.json"}


def test_it_is_served(web: httpx.Client, described: dict[str, Any]) -> None:
    assert web.get("/openapi.json").json() == described


def test_answers_are_as_described(web: httpx.Client, described: dict[str, Any]) -> None:
    def check(method: str, path: str, url: str, **body: Any) -> Any:
        response = web.request(method, url, **body)
        responses = described["paths"][path][method.lower()]["responses"]
        assert str(response.status_code) in responses, (path, response.text)
        schema = responses[str(response.status_code)]["content"]["application/json"]["schema"]
        assert matches(response.json(), schema, described), (path, response.json())
        return response.json()

    for kind, url in (("videos", "/v1/videos"), ("audio", "/v1/audio/generations")):
        job = check("POST", url, url, json={"prompt": "x"})
        one = f"/v1/{kind}/{{id}}"
        while check("GET", one, f"/v1/{kind}/{job['id']}")["status"] != "completed":
            time.sleep(0.02)
        check("GET", url, url)
        check("POST", f"{one}/cancel", f"/v1/{kind}/{job['id']}/cancel")
        check("DELETE", one, f"/v1/{kind}/{job['id']}")
        check("GET", one, f"/v1/{kind}/{job['id']}")
        check("POST", url, url, json={})
    check("POST", "/v1/images/generations", "/v1/images/generations", json={"prompt": "x"})
    check("POST", "/v1/images/generations", "/v1/images/generations", json={"prompt": "!fail"})
    check("GET", "/v1/images", "/v1/images")
    for url in ("/v1/activity", "/v1/models", "/ready", "/health", "/stats", "/v1/traces", "/v1/timeline"):
        check("GET", url, url)
    check("GET", "/v1/models/{model}", "/v1/models/film")
    check("GET", "/v1/models/{model}", "/v1/models/none")


def test_a_field_that_is_described_is_taken_and_another_is_not(web: httpx.Client, described: dict[str, Any]) -> None:
    for path in ("/v1/videos", "/v1/audio/generations", "/v1/images/generations", "/v1/images/edits"):
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
        for name in schema["properties"]:
            if name in schema["required"]:
                continue
            error = web.post(path, json={"prompt": "!refuse", name: None}).json()["error"]
            assert error["code"] != "unknown_parameter", (path, name)
        error = web.post(path, json={"prompt": "x", "nobody_knows_this": 1}).json()["error"]
        assert error["code"] == "unknown_parameter"


def test_what_can_be_asked_for_now_is_told_for_each_modality(web: httpx.Client, studio: Studio) -> None:
    import msgspec

    ready = studio.engine.ready
    assert all(state["ready"] for state in web.get("/ready").json()["modalities"].values())
    try:
        studio.engine.ready = msgspec.structs.replace(
            ready, models=ready.models[:1], modalities={"chat": "", "video": "the video model is loading"}
        )
        body = web.get("/ready").json()
        assert body["modalities"]["video"] == {"ready": False, "reason": "the video model is loading"}
        assert body["modalities"]["image"]["ready"] is False
        assert body["ready"] is True
        refused = web.post("/v1/videos", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["message"]) == (503, "the video model is loading")
        assert refused.headers["retry-after"]
    finally:
        studio.engine.ready = ready


def test_activity_is_what_the_engine_tells(web: httpx.Client) -> None:
    assert web.get("/v1/activity", params={"seconds": "1.5"}).json() == {
        "object": "activity", "now_s": 7.5, "steps": [{**STEP, "requests": ["video_1"]}]
    }  # fmt: skip
    assert web.get("/v1/activity?seconds=61").json()["error"]["param"] == "seconds"


def test_a_server_without_a_store_says_so(start_server: Any, studio: Studio) -> None:
    url = start_server(create_app(studio.engine)).url
    for method, path in (("GET", "/v1/videos"), ("POST", "/v1/videos"), ("POST", "/v1/images/generations")):
        response = httpx.request(method, url + path, json={"prompt": "x"} if method == "POST" else None)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


def test_every_url_and_every_field_is_in_the_docs(described: dict[str, Any]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"`{method.upper()} {path}`" in text
            bodies = operation.get("requestBody", {"content": {}})["content"]
            for name in bodies.get("multipart/form-data", {"schema": {"properties": {}}})["schema"]["properties"]:
                assert f"`{name}`" in text, (path, name)


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/traces/x", "/v1/timeline"])
def test_a_query_that_no_trace_route_has_is_refused(web: httpx.Client, path: str) -> None:
    assert web.get(path, params={"colour": "red"}).json()["error"]["code"] == "unknown_parameter"


def test_a_whole_number_with_a_point_is_a_whole_number(web: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "seed": 5.0}
    assert web.post("/v1/chat/completions", json=body).status_code == 200
    assert web.post("/v1/chat/completions", json=body | {"seed": 5.5}).json()["error"]["param"] == "seed"
