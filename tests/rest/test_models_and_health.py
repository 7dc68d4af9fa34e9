"""`/v1/models`, `/health` and `/ready`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from conftest import Server
from fastapi import FastAPI
from scripted_engine import ScriptedEngine

from braid.errors import NotReady
from braid.llm_core.engine.messages import EngineReady
from braid.rest.app import create_app


class LoadingEngine(ScriptedEngine):
    """An engine that is not there yet."""

    @property
    def ready(self) -> EngineReady:  # type: ignore[override]
        raise NotReady("the engine is loading smollm2")

    @ready.setter
    def ready(self, value: EngineReady) -> None: ...


def test_models_and_their_aliases_are_listed(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        models = {model.id: model for model in client.models.list()}
        assert set(models) == {"scripted-135m", "scripted", "org/scripted"}
        assert client.models.retrieve("scripted").id == "scripted"
        with pytest.raises(openai.NotFoundError, match="scripted-135m"):
            client.models.retrieve("absent")


def test_a_model_card_tells_the_context_length(http: httpx.Client) -> None:
    card = http.get("/v1/models/org/scripted").json()
    assert (card["context_length"], card["root"], card["object"]) == (8192, "scripted-135m", "model")


def test_a_ready_engine_is_ready_for_chat(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    response = http.get("/ready")
    assert response.status_code == 200
    assert response.json()["modalities"]["chat"] == {"ready": True, "reason": None}


@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("POST", "/v1/completions", {"prompt": "a"}),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/scripted", None),
    ],
)
def test_a_loading_engine_is_a_503_with_the_reason(
    start_server: Callable[[FastAPI], Server], method: str, url: str, body: Any
) -> None:
    server = start_server(create_app(LoadingEngine()))
    response = httpx.request(method, server.url + url, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1"
    assert "loading smollm2" in response.json()["error"]["message"]


def test_a_loading_engine_is_alive_and_not_ready(start_server: Callable[[FastAPI], Server]) -> None:
    server = start_server(create_app(LoadingEngine()))
    assert httpx.get(f"{server.url}/health").status_code == 200
    response = httpx.get(f"{server.url}/ready")
    assert response.status_code == 503
    chat = response.json()["modalities"]["chat"]
    assert chat == {"ready": False, "reason": "the engine is loading smollm2"}


def test_stats_are_the_engines_counters(http: httpx.Client) -> None:
    assert http.get("/stats").json() == {"running": 0}


def test_an_engine_that_does_not_answer_is_not_ready(
    http: httpx.Client, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "submit", lambda *_: None)
    response = http.get("/ready")
    assert response.status_code == 503
    assert response.json()["modalities"]["chat"]["reason"] == "the engine has not answered for 2 s"
