"""Which requests reach the routes: hosts, origins, keys and limits, over a real server."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from conftest import Server
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from braid.errors import InvalidRequest
from braid.rest.access import Access
from braid.rest.keys import ApiKeys, new_key
from braid.rest.limits import AdmissionLimits
from braid.rest.protection import protect

TOKEN, KEY = new_key("ann")
KEYS = ApiKeys([KEY])
BEARER = {"authorization": f"Bearer {TOKEN}"}
STUDIO = "https://studio.example"

Ask = Callable[..., httpx.Response]
Start = Callable[[FastAPI], Server]


async def answer(request: Request) -> JSONResponse:
    return JSONResponse(request.state.owner)


@pytest.fixture
def served(start_server: Start) -> Callable[..., Ask]:
    """Starts a server with these settings; asks it, by default for `/v1/films` with POST."""

    def start(**access: object) -> Ask:
        routes = [Route(path, answer, methods=["GET", "POST"]) for path in ("/v1/films", "/v1/films/1/cancel", "/")]
        app = FastAPI(routes=routes, openapi_url=None)
        protect(app, Access(**access))  # type: ignore[arg-type]
        url = start_server(app).url

        def ask(method: str = "POST", path: str = "/v1/films", **headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return httpx.request(method, url + path, headers={"host": url.removeprefix("http://"), **named})

        return ask

    return start


def code(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["code"] if response.status_code != 200 else None


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:8000", "[::1]:8000", "braid.localhost", "192.168.1.7", "studio"]
)
def test_hosts_that_no_stranger_can_own_are_served(served: Callable[..., Ask], host: str) -> None:
    assert code(served(allowed_hosts=("Studio",))(host=host)) == (200, None)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "studio.evil"),
        *("a b", "user@localhost", "localhost#x", "localhost:http", "[::1].evil.example"),
    ],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(served: Callable[..., Ask], host: str) -> None:
    ask = served(allowed_hosts=("studio",))
    assert code(ask(host=host)) == (403, "host_not_allowed")
    assert code(ask("GET", "/", host=host)) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
    ],
)
def test_a_page_of_another_site_cannot_make_work(served: Callable[..., Ask], headers: dict[str, str]) -> None:
    assert code(served()(host="localhost:8000", **headers)) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost:8000"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},
    ],
)
def test_our_own_page_and_programs_can(served: Callable[..., Ask], headers: dict[str, str]) -> None:
    assert code(served()(host="localhost:8000", **headers)) == (200, None)


def test_a_link_from_another_site_opens_the_page(served: Callable[..., Ask]) -> None:
    ask = served()
    assert ask("GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate").status_code == 200
    assert ask("GET", "/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status_code == 403


def test_with_keys_any_host_is_served_and_the_key_decides(served: Callable[..., Ask]) -> None:
    ask = served(keys=KEYS)
    assert code(ask(host="films.example", origin="https://films.example", **BEARER)) == (200, None)
    assert code(ask(host="films.example")) == (401, "missing_api_key")


def test_no_other_site_is_answered_unless_it_is_named(served: Callable[..., Ask]) -> None:
    ask = served(keys=KEYS)
    preflight = ask("OPTIONS", origin=STUDIO, access_control_request_method="POST")
    assert preflight.status_code == 401
    assert "access-control-allow-origin" not in ask(origin=STUDIO, **BEARER).headers


@pytest.mark.parametrize("keys", [KEYS, None])
def test_a_named_site_may_ask_and_read(served: Callable[..., Ask], keys: ApiKeys | None) -> None:
    ask = served(keys=keys, cors_origins=(STUDIO,))
    asks_for = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
    preflight = ask("OPTIONS", origin=STUDIO, **asks_for)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == STUDIO
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    response = ask(origin=STUDIO, **BEARER)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, STUDIO)
    assert "access-control-allow-credentials" not in response.headers
    assert "access-control-allow-origin" not in ask(origin="https://other.example", **BEARER).headers
    assert ask("OPTIONS", origin="https://other.example", **asks_for).status_code in (400, 403)


def test_a_named_site_can_read_why_it_is_refused(served: Callable[..., Ask]) -> None:
    refused = served(keys=KEYS, cors_origins=(STUDIO,))(origin=STUDIO)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, STUDIO)


@pytest.mark.parametrize("origin", ["studio.example", "https://studio.example/", "https://STUDIO.example", "null", ""])
def test_an_origin_that_browsers_never_send_is_refused(origin: str) -> None:
    with pytest.raises(InvalidRequest, match="--cors-origin"):
        Access(cors_origins=(origin,))


def test_every_site_may_be_let_in_only_with_keys() -> None:
    with pytest.raises(InvalidRequest, match="--api-keys"):
        Access(cors_origins=("*",))
    assert Access(cors_origins=("*",), keys=KEYS).cors_origins == ("*",)


def test_every_answer_tells_browsers_what_is_allowed(served: Callable[..., Ask]) -> None:
    ask = served(keys=KEYS)
    for response in (ask("GET", "/"), ask(), ask("GET", "/no/such", **BEARER)):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"


def test_a_key_that_asks_too_often_is_told_when_to_come_again(served: Callable[..., Ask]) -> None:
    ask = served(keys=KEYS, limits=AdmissionLimits(requests_per_minute=2))
    assert [ask(**BEARER).status_code for _ in range(3)] == [200, 200, 429]
    refused = ask(**BEARER)
    assert code(refused) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert ask("GET", **BEARER).status_code == 200  # looking is free
    assert ask("POST", "/v1/films/1/cancel", **BEARER).status_code == 200  # and so is asking for less
    assert ask().status_code == 401  # who has no key uses up nobody's
