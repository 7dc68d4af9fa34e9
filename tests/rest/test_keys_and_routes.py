"""The whole app behind keys: every route asks for one, and what is asked belongs to its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from conftest import Server, Studio
from fastapi import FastAPI
from scripted_engine import ScriptedEngine

from braid.diffusion.jobs.records import NewJob
from braid.llm_core.engine.messages import GenerateRequest
from braid.rest.access import Access
from braid.rest.app import create_app
from braid.rest.authentication import OPEN_PATHS, needs_admin
from braid.rest.keys import ApiKeys, Role, new_key
from braid.rest.operations import OPERATIONS

ANN, ANNS_KEY = new_key("ann")
BOB, BOBS_KEY = new_key("bob", Role.ADMIN)
ACCESS = Access(keys=ApiKeys([ANNS_KEY, BOBS_KEY]))

Start = Callable[[FastAPI], Server]


@pytest.fixture
def scripted() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def url(start_server: Start, scripted: ScriptedEngine) -> str:
    return start_server(create_app(scripted, access=ACCESS)).url


def test_every_route_but_the_open_ones_asks_for_a_key(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        for operation in OPERATIONS:
            path = operation.path.replace("{id}", "video_1").replace("{model:path}", "m")
            response = client.request(operation.method, path)
            if path in OPEN_PATHS:
                assert response.status_code == 200
            else:
                assert response.json()["error"]["code"] == "missing_api_key", path
                assert response.headers["x-request-id"]
        for path in ("/openapi.json", "/docs", "/redoc", "/no/such"):
            assert client.get(path).status_code == 401
        assert client.get("/").status_code == 200


def test_administrators_routes_are_closed_to_users(url: str) -> None:
    paths = [operation.path for operation in OPERATIONS if needs_admin(operation.path)]
    assert "/stats" in paths
    with httpx.Client(base_url=url) as client:
        for path in paths:
            assert client.get(path, headers={"authorization": f"Bearer {ANN}"}).status_code == 403
        assert client.get("/stats", headers={"authorization": f"Bearer {BOB}"}).status_code == 200


def test_the_scheduler_learns_whose_a_request_is(url: str, scripted: ScriptedEngine) -> None:
    for name, token in (("ann", ANN), ("bob", BOB)):
        with openai.OpenAI(base_url=f"{url}/v1", api_key=token) as client:
            client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "a"}])
            client.completions.create(model="scripted", prompt=["a", "b"])
        asked = [request for request in scripted.submitted if isinstance(request, GenerateRequest)]
        assert [request.tenant for request in asked[-3:]] == 3 * [name]


def test_a_web_page_of_somebody_else_cannot_drive_a_server_without_keys(start_server: Start) -> None:
    engine = ScriptedEngine()
    url = start_server(create_app(engine)).url
    body = {"messages": [{"role": "user", "content": "a"}]}
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        assert httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers).status_code == 403
    assert not engine.submitted
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


def test_a_user_sees_of_others_requests_only_that_there_are_some(tmp_path: Path) -> None:
    with Studio(tmp_path, access=ACCESS) as studio:
        check_what_a_user_sees(studio)


def check_what_a_user_sees(studio: Studio) -> None:
    anns = studio.desk.store.create(NewJob(kind="audio", params={"prompt": "a", "seed": 1}, owner="ann")).job.id
    bobs = studio.desk.store.create(NewJob(kind="audio", params={"prompt": "a", "seed": 1}, owner="bob")).job.id
    busy_with = [f"{anns}/0", bobs, f"{bobs}/0", "chatcmpl-1"]
    studio.engine.busy_with = busy_with

    def seen(token: str) -> list[str]:
        answer = httpx.get(f"{studio.server.url}/v1/activity", headers={"authorization": f"Bearer {token}"})
        return list(answer.json()["steps"][0]["requests"])

    assert seen(BOB) == busy_with  # an administrator
    own, other, again, chat = seen(ANN)
    assert own == f"{anns}/0"
    assert other == again and other.startswith("other-") and bobs not in other
    assert chat.startswith("other-") and chat != other
    assert seen(ANN)[1] == other
