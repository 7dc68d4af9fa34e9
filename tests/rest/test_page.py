"""The page's files as browsers get them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from braid.errors import BraidError
from braid.rest.errors import error_response
from braid.rest.page import FOLDER, MEDIA_TYPES, WebPage, accepts_gzip, index, page_file


def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, BraidError)
    return error_response(error)


def app_of(page: WebPage) -> Starlette:
    routes = [Route("/", index), Route("/page/{version}/{path:path}", page_file)]
    app = Starlette(routes=routes, exception_handlers={BraidError: refuse})
    app.state.page = page
    return app


@pytest.fixture
def page() -> WebPage:
    return WebPage()


@pytest.fixture
def client(page: WebPage) -> Iterator[TestClient]:
    with TestClient(app_of(page)) as client:
        yield client


def urls(html: str) -> list[str]:
    return re.findall(r'(?:href|src)="(page/[^"]+)"', html)


def test_every_file_that_the_page_names_is_served_with_its_type(client: TestClient) -> None:
    names = urls(client.get("/").text)
    assert len(names) > 5
    for name in names:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"] == MEDIA_TYPES[Path(name).suffix]


def test_every_module_is_reached_by_imports_and_every_import_is_there(page: WebPage) -> None:
    found: set[str] = set()
    waiting = ["app.js"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            source = page.file(page.version, f"modules/{name}").body.decode()
            waiting += re.findall(r'from "\./([\w.]+)"', source)
    assert found == {path.name for path in (FOLDER / "modules").iterdir()}


def test_what_has_a_version_is_kept_for_ever_and_the_page_is_not(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["cache-control"] == "no-cache"
    style = client.get(f"/{urls(answer.text)[1]}")
    assert "immutable" in style.headers["cache-control"]


def test_a_page_that_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    etag = client.get("/").headers["etag"]
    again = client.get("/", headers={"if-none-match": f'"other", W/{etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_gzip_is_sent_only_where_it_is_accepted(client: TestClient, page: WebPage) -> None:
    plain = client.get("/", headers={"accept-encoding": "identity"})
    zipped = client.get("/", headers={"accept-encoding": "br, gzip"})
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.headers["vary"] == plain.headers["vary"] == "accept-encoding"
    assert plain.content == zipped.content == gzip.decompress(page.index.gzipped)
    assert int(zipped.headers["content-length"]) < len(plain.content) / 2


@pytest.mark.parametrize(
    ("header", "is_accepted"),
    [
        ("gzip", True),
        ("br;q=1.0, gzip;q=0.5", True),
        ("*", True),
        ("GZIP", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("br", False),
        ("", False),
        ("gzip;q=0, *", False),
    ],
)
def test_accept_encoding_is_understood(header: str, is_accepted: bool) -> None:
    assert accepts_gzip(header) is is_accepted


@pytest.mark.parametrize("path", ["styles/none.css", "index.html", "../page.py", "modules", ""])
def test_other_paths_are_not_found(client: TestClient, page: WebPage, path: str) -> None:
    answer = client.get(f"/page/{page.version}/{path}")
    assert answer.status_code == 404


def test_a_version_that_is_gone_is_not_mixed_with_the_new_one(client: TestClient, tmp_path: Path) -> None:
    old = urls(client.get("/").text)
    for source in FOLDER.rglob("*"):
        if source.is_file():
            target = tmp_path / source.relative_to(FOLDER)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
    (tmp_path / "styles" / "base.css").write_text("body {}")
    with TestClient(app_of(WebPage(tmp_path))) as upgraded:
        new = urls(upgraded.get("/").text)
        assert not set(old) & set(new)
        answer = upgraded.get(f"/{old[0]}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_the_policy_forbids_what_is_inline_and_there_is_nothing_inline(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "'unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=", answer.text)
    assert re.findall(r"<script[^>]*>(.*?)</script>", answer.text, re.S) == [""]


def test_nothing_comes_from_elsewhere(page: WebPage) -> None:
    names = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES]
    files = [page.index if name == "index.html" else page.file(page.version, name) for name in names]
    for name, file in zip(names, files, strict=True):
        addresses = re.findall(rb"https?://[\w.-]+", file.body)
        assert set(addresses) <= {b"http://www.w3.org"}, name


def test_no_module_makes_markup_of_text() -> None:
    for path in (FOLDER / "modules").iterdir():
        forbidden = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text()
        )
        assert not forbidden, path.name


def test_ids_that_modules_ask_for_are_in_the_page(page: WebPage) -> None:
    there = set(re.findall(r'\bid="([\w-]+)"', page.index.body.decode()))
    for path in (FOLDER / "modules").iterdir():
        made = set(re.findall(r'id: "([\w-]+)"', path.read_text()))
        asked = set(re.findall(r'byId\("([\w-]+)"\)', path.read_text()))
        assert asked <= there | made | {"shape-own", "set-pipeline"}, path.name


def test_files_are_read_once(page: WebPage, monkeypatch: pytest.MonkeyPatch) -> None:
    first = page.index
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read again"))
    assert page.index is first
    assert page.file(page.version, "icon.svg").media_type == "image/svg+xml"
