"""Bodies as clients send them: what OpenAI's client makes of nested values, and what is no form at all."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from conftest import Studio

URL = "/v1/videos"


def form(web: httpx.Client, parts: list[tuple[str, str]]) -> httpx.Response:
    return web.post(URL, files=[("prompt", (None, "x"))] + [(name, (None, value)) for name, value in parts])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "name", "value"),
    [
        ([("sigmas[]", "1"), ("sigmas[]", "0.5"), ("sigmas[]", "0")], "sigmas", [1, 0.5, 0]),
        ([("guidance[video][guidance_scale]", "3")], "guidance", {"video": {"guidance_scale": 3}}),
        ([("guidance[video][stg_blocks][]", "1")], "guidance", {"video": {"stg_blocks": [1]}}),
        ([("adapters[a]", "0.5")], "adapters", [{"name": "a", "strengths": [0.5]}]),
        ([("adapters[][name]", "a"), ("adapters[][strength]", "2")], "adapters", [{"name": "a", "strengths": [2]}]),
        (
            [
                ("adapters[][name]", "a"), ("adapters[][name]", "b"), ("adapters[][scale]", "2"),
                ("adapters[][scale]", "3"),
            ],
            "adapters",
            [{"name": "a", "strengths": [2]}, {"name": "b", "strengths": [3]}],
        ),
        ([("distilled_adapter[name]", "d"), ("distilled_adapter[strength]", "1")], "distilled_adapter",
         {"name": "d", "strengths": [1]}),
        ([("extra_body", '{"seed": 7}')], "seed", 7),
        ([("seed", " 7 ")], "seed", 7),
        ([("frame_rate", "1e1")], "frame_rate", 10),
        ([("generate_audio", "False")], "generate_audio", False),
        ([("negative_prompt", "")], "negative_prompt", ""),
    ],
)  # fmt: skip
def test_what_a_client_flattened_is_whole_again(
    web: httpx.Client, studio: Studio, parts: list[tuple[str, str]], name: str, value: Any
) -> None:
    response = form(web, parts)
    assert response.status_code == 200, response.text
    assert studio.engine.resolved[0].params[name] == value


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        (
            [("adapters[][name]", "a"), ("adapters[][name]", "b"), ("adapters[][scale]", "2")],
            "invalid_form",
            "adapters",
        ),
        ([("sigmas[]", "1"), ("sigmas[a]", "2")], "invalid_form", "sigmas"),
        ([("sigmas", "[1]"), ("sigmas[]", "2")], "invalid_form", "sigmas"),
        ([("seed", "1"), ("seed", "2")], "invalid_form", "seed"),
        ([("guidance[video]", "1"), ("guidance[video][rescale]", "2")], "invalid_form", "guidance[video]"),
        ([("a[b", "1")], "invalid_form", None),
        ([("", "1")], "invalid_form", None),
        ([("[]", "1")], "invalid_form", None),
        ([("sigmas", "[1,")], "invalid_json", "sigmas"),
        ([("sigmas", "[" * 5000)], "invalid_json", "sigmas"),
        ([("extra_body", "[]")], "invalid_type", "extra_body"),
        ([("seed", "1.5")], "invalid_type", "seed"),
        ([("seed", "")], "invalid_type", "seed"),
        ([("seed", "9" * 5000)], "invalid_type", "seed"),
        ([("seed", "१")], "invalid_type", "seed"),
        ([("frame_rate", "nan")], "invalid_type", "frame_rate"),
        ([("frame_rate", "inf")], "invalid_type", "frame_rate"),
        ([("generate_audio", "yes")], "invalid_type", "generate_audio"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_whole_is_refused(
    web: httpx.Client, studio: Studio, parts: list[tuple[str, str]], code: str, param: str | None
) -> None:
    response = form(web, parts)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert studio.engine.resolved == []


BOUNDARY = "multipart/form-data; boundary=b"
PART = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"nothing", BOUNDARY, 400, "invalid_form"),
        (b"", BOUNDARY, 400, None),
        (PART, BOUNDARY, 400, "invalid_form"),
        (PART + PART.replace(b"prompt", b"negative_prompt")[:-2], BOUNDARY, 400, "invalid_form"),
        (PART + PART.replace(b"prompt", b"negative_prompt") + b"--b", BOUNDARY, 400, "invalid_form"),
        (PART + b"--b--\r\nan epilogue", BOUNDARY, 200, None),
        (PART + b"--b--\r\n", "multipart/form-data", 400, "invalid_form"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", BOUNDARY, 400, "invalid_form"),
        (b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n", BOUNDARY, 400, "invalid_form"),
        (b'--b\r\ncontent-disposition: form-data; name="\xff\xfe"\r\n\r\nx\r\n--b--\r\n', BOUNDARY, 400, None),
        (PART + b"--b--\r\n", BOUNDARY + "; charset=punycode", None, None),
        (PART * 300 + b"--b--\r\n", BOUNDARY, 400, "invalid_form"),
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_type"),
        (b'{"prompt": "\\ud800"}', "application/json", 400, "invalid_json"),
        (b'{"prompt": "x", "sigmas": ' + b"[" * 5000, "application/json", 400, "invalid_json"),
    ],
)
def test_a_body_that_is_no_form_is_refused_and_never_an_internal_error(
    web: httpx.Client, body: bytes, content_type: str, status: int | None, code: str | None
) -> None:
    response = web.post(URL, content=body, headers={"content-type": content_type})
    if status is not None:
        assert response.status_code == status, response.text
    if code is not None:
        assert response.json()["error"]["code"] == code
    assert response.status_code < 500


def test_the_fields_cover_all_arguments_of_a_generation() -> None:
    from braid.diffusion.arguments import ARGUMENTS
    from braid.rest.field_kinds import PIPELINES
    from braid.rest.media_fields import IN_PYTHON_ONLY, KINDS

    assert {argument.name for argument in ARGUMENTS} == set(KINDS) | set(IN_PYTHON_ONLY)
    from braid.diffusion.pipelines.choice import PIPELINES as KNOWN

    assert set(PIPELINES) == set(KNOWN)


def test_json_and_a_form_mean_the_same(web: httpx.Client, studio: Studio) -> None:
    fields = {"prompt": "é ü", "seed": 3, "sigmas": [1, 0.25], "images": [{"image": "QUJD", "frame_index": 8}]}
    web.post(URL, json=fields)
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    web.post(URL, files={name: (None, text.encode()) for name, text in texts.items()})
    first, second = studio.engine.resolved
    assert first.params == second.params
    assert studio.engine.uploads[0] == studio.engine.uploads[1] == {"images_0_image.bin": b"ABC"}
