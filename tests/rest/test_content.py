"""Files over HTTP: ranges, tags, HEAD."""

from __future__ import annotations

import time

import httpx
import pytest
from conftest import Studio
from scripted_studio import content

WHOLE = content("video", 1)
SIZE = len(WHOLE)


@pytest.fixture
def url(web: httpx.Client, studio: Studio) -> str:
    job = web.post("/v1/videos", json={"prompt": "x", "seed": 1}).json()
    while job["status"] != "completed":
        time.sleep(0.02)
        job = web.get(f"/v1/videos/{job['id']}").json()
    return f"/v1/videos/{job['id']}/content"


def test_a_file_has_its_digest_as_its_tag(web: httpx.Client, url: str) -> None:
    response = web.get(url)
    assert (response.status_code, response.content) == (200, WHOLE)
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"].endswith('.mp4"')
    tag = response.headers["etag"]
    for header in (tag, f'W/{tag}, "other"', "*"):
        again = web.get(url, headers={"if-none-match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert web.get(url, headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("given", "first", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=5-", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=10-{SIZE + 5}", 10, SIZE),
        (f"bytes=-{SIZE + 5}", 0, SIZE),
    ],
)
def test_a_range_is_given_as_it_is_asked_for(web: httpx.Client, url: str, given: str, first: int, end: int) -> None:
    response = web.get(url, headers={"range": given})
    assert (response.status_code, response.content) == (206, WHOLE[first:end])
    assert response.headers["content-range"] == f"bytes {first}-{end - 1}/{SIZE}"
    assert response.headers["content-length"] == str(end - first)


@pytest.mark.parametrize("given", ["bytes=9-5", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "bytes=a-b"])
def test_what_is_no_single_range_gives_everything(web: httpx.Client, url: str, given: str) -> None:
    response = web.get(url, headers={"range": given})
    assert (response.status_code, response.content) == (200, WHOLE)


@pytest.mark.parametrize("given", [f"bytes={SIZE}-", "bytes=-0", "bytes=999999999-9999999999"])
def test_a_range_behind_the_end_is_refused(web: httpx.Client, url: str, given: str) -> None:
    response = web.get(url, headers={"range": given})
    assert (response.status_code, response.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{SIZE}"


def test_a_range_of_another_version_gives_everything(web: httpx.Client, url: str) -> None:
    tag = web.head(url).headers["etag"]
    assert web.get(url, headers={"range": "bytes=0-9", "if-range": tag}).status_code == 206
    assert web.get(url, headers={"range": "bytes=0-9", "if-range": '"old"'}).status_code == 200


def test_head_tells_all_but_the_bytes(web: httpx.Client, url: str) -> None:
    response = web.head(url)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(SIZE)
    assert web.head(url, headers={"range": "bytes=0-9"}).headers["content-length"] == "10"
    events = url.replace("/content", "/events")
    assert web.head(events).status_code == 200


def test_an_unknown_variant_is_refused_with_those_that_there_are(web: httpx.Client, url: str) -> None:
    error = web.get(url, params={"variant": "poster"}).json()["error"]
    assert error["param"] == "variant"
    assert "spritesheet" in error["message"]
