"""Requests with keys, with wrong ones and without, through the middleware and over a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from conftest import Server
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from braid.rest.authentication import Authenticate
from braid.rest.keys import ApiKeys, Role, new_key

ANN, ANNS_KEY = new_key("ann")
BOB, BOBS_KEY = new_key("bob", Role.ADMIN)
KEYS = ApiKeys([ANNS_KEY, BOBS_KEY])
PAGES = ("/page/app.js", "/timeline", "/trace/4bf9", "/timeline/files/1/app.js")
ADMINS = ("/stats", "/metrics", "/admin/loras", "/v1/traces", "/v1/traces/4bf9", "/v1/timeline")
PATHS = ("/", "/health", "/ready", *ADMINS, *PAGES, "/v1/models")


async def whoami(request: Request) -> JSONResponse:
    return JSONResponse([request.state.owner, request.state.role])


def guarded(keys: ApiKeys | None) -> FastAPI:
    app = FastAPI(routes=[Route(path, whoami, methods=["GET", "POST"]) for path in PATHS], openapi_url=None)
    app.add_middleware(Authenticate, keys=keys)
    return app


@pytest.fixture
def http(start_server: Callable[[FastAPI], Server]) -> httpx.Client:
    return httpx.Client(base_url=start_server(guarded(KEYS)).url)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_key_says_who_asks(http: httpx.Client) -> None:
    with http:
        assert http.get("/v1/models", headers=bearer(ANN)).json() == ["ann", "user"]
        assert http.get("/v1/models", headers=bearer(BOB)).json() == ["bob", "admin"]
        assert http.get("/v1/models", headers={"authorization": f"bearer   {ANN}"}).json() == ["ann", "user"]


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("", "invalid_api_key"),
        ("Bearer", "invalid_api_key"),
        ("Bearer wrong", "invalid_api_key"),
        ("Bearer {ANN}x", "invalid_api_key"),
        ("Basic {ANN}", "invalid_api_key"),
        ("{ANN}", "invalid_api_key"),
        ("Bearer sha256:{DIGEST}", "invalid_api_key"),
    ],
)
def test_without_a_right_key_nothing_is_answered(http: httpx.Client, authorization: str | None, code: str) -> None:
    secrets = {"ANN": ANN, "DIGEST": ANNS_KEY.digest.hex()}
    headers = {} if authorization is None else {"authorization": authorization.format(**secrets)}
    with http:
        for path in ("/v1/models", "/ready", "/stats", "/no/such/path", "/health/", "/Health", "/page"):
            response = http.get(path, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, code)
            assert response.headers["www-authenticate"] == "Bearer"
            assert "ann" not in response.text


def test_two_authorization_headers_are_refused(http: httpx.Client) -> None:
    with http:
        headers = [("authorization", f"Bearer {ANN}"), ("authorization", "Bearer other")]
        assert http.get("/v1/models", headers=headers).json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/", "/health", *PAGES])
def test_the_page_and_the_sign_of_life_are_open(http: httpx.Client, path: str) -> None:
    with http:
        assert http.get(path).json() == ["", "user"]


@pytest.mark.parametrize("path", ADMINS)
def test_what_concerns_the_whole_server_is_for_administrators(http: httpx.Client, path: str) -> None:
    with http:
        refused = http.get(path, headers=bearer(ANN))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        assert http.get(path, headers=bearer(BOB)).json() == ["bob", "admin"]


def test_without_keys_everybody_is_the_nameless_administrator(start_server: Callable[[FastAPI], Server]) -> None:
    url = start_server(guarded(None)).url
    assert httpx.get(f"{url}/stats").json() == ["", "admin"]
    assert httpx.get(f"{url}/v1/models", headers=bearer("anything")).json() == ["", "admin"]


def test_a_refused_upload_is_not_read(http: httpx.Client) -> None:
    read = 0

    def pieces() -> Any:
        nonlocal read
        for read in range(10_000):  # noqa: B007
            yield bytes(65536)

    with http, contextlib.suppress(httpx.TransportError):  # closed while we were sending: as good
        assert http.post("/v1/models", content=pieces()).status_code == 401
    assert read < 9_999


def test_the_openai_client_raises_its_own_errors(start_server: Callable[[FastAPI], Server]) -> None:
    url = f"{start_server(guarded(KEYS)).url}/v1"
    with openai.OpenAI(base_url=url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_web_socket_without_a_key_is_closed() -> None:
    sent: list[Any] = []

    async def never(*_: Any) -> None:
        raise AssertionError("passed on")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Authenticate(never, KEYS)({"type": "websocket", "path": "/x", "headers": []}, never, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
