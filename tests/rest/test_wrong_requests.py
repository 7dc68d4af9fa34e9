"""A table of wrong requests: each gets its status, its code and the field at fault, and the server goes on."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
IMAGE = [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
SOUND = [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": USER, **fields}


def said(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more}]}


WRONG: list[tuple[str, Any, int, str, str | None]] = [
    # what is missing
    (CHAT, {}, 400, "missing_required_parameter", "messages"),
    (CHAT, {"messages": None}, 400, "missing_required_parameter", "messages"),
    (CHAT, {"messages": [{"content": "hi"}]}, 400, "missing_required_parameter", "messages.0.role"),
    (CHAT, {"messages": [*USER, {"role": "user"}]}, 400, "missing_required_parameter", "messages.1.content"),
    (CHAT, said("user", [{"text": "x"}]), 400, "missing_required_parameter", "messages.0.content.0.type"),
    (TEXT, {}, 400, "missing_required_parameter", "prompt"),
    # wrong types
    (CHAT, [], 400, "invalid_type", None),
    (CHAT, "hi", 400, "invalid_type", None),
    (CHAT, {"messages": "hi"}, 400, "invalid_type", "messages"),
    (CHAT, {"messages": ["hi"]}, 400, "invalid_type", "messages.0"),
    (CHAT, said(3, "hi"), 400, "invalid_type", "messages.0.role"),
    (CHAT, said("user", 3), 400, "invalid_type", "messages.0.content"),
    (CHAT, said("user", ["hi"]), 400, "invalid_type", "messages.0.content.0"),
    (CHAT, said("user", [{"type": "text", "text": 1}]), 400, "invalid_type", "messages.0.content.0.text"),
    (CHAT, chat(model=3), 400, "invalid_type", "model"),
    (CHAT, chat(temperature="hot"), 400, "invalid_type", "temperature"),
    (CHAT, chat(temperature=True), 400, "invalid_type", "temperature"),
    (CHAT, chat(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
    (CHAT, chat(max_tokens=2**70), 400, "invalid_type", "max_tokens"),
    (CHAT, chat(seed=2**63), 400, "invalid_type", "seed"),
    (CHAT, chat(stop=[1]), 400, "invalid_type", "stop.0"),
    (CHAT, chat(stream="yes"), 400, "invalid_type", "stream"),
    (CHAT, chat(logprobs=3), 400, "invalid_type", "logprobs"),
    (CHAT, chat(logit_bias={"hello": 1}), 400, "invalid_type", "logit_bias"),
    (CHAT, chat(stream=True, stream_options={"include_usage": 1}), 400, "invalid_type", "stream_options.include_usage"),
    (CHAT, chat(tools={}), 400, "invalid_type", "tools"),
    (TEXT, {"prompt": 3}, 400, "invalid_type", "prompt"),
    (TEXT, {"prompt": ["a", 3]}, 400, "invalid_type", "prompt.1"),
    (TEXT, {"prompt": [1, "a"]}, 400, "invalid_type", "prompt"),
    (TEXT, {"prompt": [[1, True]]}, 400, "invalid_type", "prompt.0"),
    (TEXT, {"prompt": "a", "logprobs": True}, 400, "invalid_type", "logprobs"),
    # wrong values
    (CHAT, {"messages": []}, 400, "invalid_value", "messages"),
    (CHAT, said("wizard", "hi"), 400, "invalid_value", "messages.0.role"),
    (CHAT, chat(temperature=-0.1), 400, "invalid_value", "temperature"),
    (CHAT, chat(temperature=2.1), 400, "invalid_value", "temperature"),
    (CHAT, chat(top_p=1.1), 400, "invalid_value", "top_p"),
    (CHAT, chat(min_p=-1), 400, "invalid_value", "min_p"),
    (CHAT, chat(presence_penalty=3), 400, "invalid_value", "presence_penalty"),
    (CHAT, chat(frequency_penalty=-3), 400, "invalid_value", "frequency_penalty"),
    (CHAT, chat(n=0), 400, "invalid_value", "n"),
    (CHAT, chat(n=129), 400, "invalid_value", "n"),
    (CHAT, chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
    (CHAT, chat(max_completion_tokens=-1), 400, "invalid_value", "max_completion_tokens"),
    (CHAT, chat(stop=""), 400, "invalid_value", "stop"),
    (CHAT, chat(logit_bias={"5": 101}), 400, "invalid_value", "logit_bias"),
    (CHAT, chat(logit_bias={"-5": 1}), 400, "invalid_value", "logit_bias"),
    (CHAT, chat(stop_token_ids=[-1]), 400, "invalid_value", "stop_token_ids"),
    (CHAT, chat(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs"),
    (CHAT, chat(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
    (CHAT, chat(priority="urgent"), 400, "invalid_value", "priority"),
    (CHAT, chat(response_format={"type": "xml"}), 400, "invalid_value", "response_format.type"),
    (CHAT, chat(modalities=["smell"]), 400, "invalid_value", "modalities"),
    (TEXT, {"prompt": []}, 400, "invalid_value", "prompt"),
    (TEXT, {"prompt": [[]]}, 400, "invalid_value", "prompt.0"),
    (TEXT, {"prompt": [-1]}, 400, "invalid_value", "prompt"),
    (TEXT, {"prompt": ["a"] * 129}, 400, "invalid_value", "prompt"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    (TEXT, {"prompt": "a", "logprobs": 21}, 400, "invalid_value", "logprobs"),
    # what cannot be done yet
    (CHAT, chat(tools=[TOOL]), 400, "unsupported_parameter", "tools"),
    (CHAT, chat(tool_choice="required"), 400, "unsupported_parameter", "tool_choice"),
    (CHAT, chat(tool_choice=TOOL), 400, "unsupported_parameter", "tool_choice"),
    (CHAT, chat(functions=[{"name": "f"}]), 400, "unsupported_parameter", "functions"),
    (CHAT, chat(response_format={"type": "json_object"}), 400, "unsupported_parameter", "response_format"),
    (
        CHAT,
        chat(response_format={"type": "json_schema", "json_schema": {}}),
        400,
        "unsupported_parameter",
        "response_format",
    ),
    (CHAT, chat(modalities=["text", "audio"]), 400, "unsupported_parameter", "modalities"),
    (CHAT, chat(audio={"voice": "ash", "format": "wav"}), 400, "unsupported_parameter", "audio"),
    (CHAT, chat(web_search_options={}), 400, "unsupported_parameter", "web_search_options"),
    (CHAT, chat(moderation={"model": "m"}), 400, "unsupported_parameter", "moderation"),
    (CHAT, said("user", IMAGE), 400, "unsupported_parameter", "messages.0.content.1"),
    (CHAT, said("user", SOUND), 400, "unsupported_parameter", "messages.0.content.0"),
    (CHAT, said("tool", "42", tool_call_id="c"), 400, "unsupported_parameter", "messages.0.role"),
    (CHAT, said("assistant", None, tool_calls=[TOOL]), 400, "unsupported_parameter", "messages.0.tool_calls"),
    (TEXT, {"prompt": "a", "suffix": "z"}, 400, "unsupported_parameter", "suffix"),
    (TEXT, {"prompt": "a", "best_of": 2}, 400, "unsupported_parameter", "best_of"),
    (TEXT, {"prompt": "a", "echo": True, "logprobs": 1}, 400, "unsupported_parameter", "logprobs"),
    # what is not there
    (CHAT, chat(model="gpt-9"), 404, "model_not_found", "model"),
    (TEXT, {"model": "gpt-9", "prompt": "a"}, 404, "model_not_found", "model"),
]


@pytest.mark.parametrize(
    ("url", "body", "status", "code", "param"), WRONG, ids=[f"{w[3]}-{w[4]}-{i}" for i, w in enumerate(WRONG)]
)
def test_a_wrong_request_is_told_what_is_wrong(
    http: httpx.Client, engine: ScriptedEngine, url: str, body: Any, status: int, code: str, param: str | None
) -> None:
    response = http.post(url, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    if param is not None and status == 400:
        assert param.split(".")[0] in error["message"]
    assert response.headers["x-request-id"]
    assert engine.submitted == []
    assert http.post(CHAT, json=chat()).status_code == 200


RAW: list[tuple[str, str, bytes, dict[str, str], int, str]] = [
    ("POST", CHAT, b"{not json", {}, 400, "invalid_json"),
    ("POST", CHAT, b"", {}, 400, "invalid_json"),
    ("POST", CHAT, b'{"a": NaN}', {}, 400, "invalid_json"),
    ("POST", CHAT, b'{"a": "\xff"}', {}, 400, "invalid_json"),
    ("POST", CHAT, b'{"a": "\\ud800"}', {}, 400, "invalid_json"),
    ("POST", CHAT, b"[" * 50_000, {}, 400, "invalid_json"),
    ("POST", CHAT, b'{"messages": []}', {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ("POST", CHAT, b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    ("POST", CHAT, b"{" + b" " * 100_001 + b"}", {}, 413, "request_too_large"),
    ("GET", CHAT, b"", {}, 405, "method_not_allowed"),
    ("DELETE", "/v1/models", b"", {}, 405, "method_not_allowed"),
    ("POST", "/health", b"", {}, 405, "method_not_allowed"),
    ("GET", "/nothing", b"", {}, 404, "not_found"),
    ("POST", "/v1/chat/completions/", b"{}", {}, 404, "not_found"),
    ("GET", "/v1/models/none/such", b"", {}, 404, "model_not_found"),
    ("POST", "/v2/chat", b"{}", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("method", "url", "body", "headers", "status", "code"), RAW)
def test_a_request_that_is_wrong_below_its_fields(
    http: httpx.Client, method: str, url: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = http.request(method, url, content=body, headers={"content-type": "application/json", **headers})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"


def test_a_wrong_method_says_which_is_right(http: httpx.Client) -> None:
    response = http.get(CHAT)
    assert response.headers["allow"] == "POST"
    assert "use POST" in response.json()["error"]["message"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(http: httpx.Client) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 200_000_000:
            sent += 50_000
            yield b" " * 50_000

    try:
        response = http.post(CHAT, content=endless(), headers={"content-type": "application/json"})
        assert response.status_code == 413
    except httpx.TransportError:  # the server closed while we were still sending
        pass
    assert sent < 200_000_000


def test_a_client_chooses_its_request_id_if_it_is_a_safe_one(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")


def test_an_unexpected_failure_is_a_500_that_tells_nothing_but_its_id(
    http: httpx.Client, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "submit", broken)
    response = http.post(CHAT, json=chat(), headers={"x-request-id": "abc"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "abc" in json.loads(response.text)["error"]["message"]
