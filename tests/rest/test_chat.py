"""Chat through the pinned `openai` client and through raw HTTP."""

from __future__ import annotations

import json
import time
import timeit
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from conftest import Server
from scripted_engine import ScriptedEngine

from braid.llm_core.engine.messages import GenerateRequest, TextDelta
from braid.rest.chat import ChatFormat


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}


def sse(http: httpx.Client, body: dict[str, Any], url: str = "/v1/chat/completions") -> list[str]:
    response = http.post(url, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-1] == ""
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [line.removeprefix("data: ") for line in lines[:-1]]


def only_request(engine: ScriptedEngine) -> GenerateRequest:
    (request,) = engine.submitted
    assert isinstance(request, GenerateRequest)
    return request


def test_an_answer_has_text_usage_and_the_name_the_client_used(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("Paris is here"))
    assert answer.choices[0].message.content == "Paris is here"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "scripted"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 3, 14)
    assert usage.prompt_tokens_details.cached_tokens == 4


def test_a_stream_has_role_text_end_usage_and_done_in_that_order(http: httpx.Client) -> None:
    lines = sse(http, ask("a b !silent c", stream=True, stream_options={"include_usage": True}))
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    *texts, end, usage = chunks
    assert [chunk["choices"][0]["delta"] for chunk in texts] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": " b"},
        {"content": " c"},
    ]
    assert [chunk["usage"] for chunk in (*texts, end)] == [None] * 5
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 14


def test_a_stream_without_include_usage_says_nothing_of_usage(http: httpx.Client) -> None:
    for line in sse(http, ask("a b", stream=True))[:-1]:
        assert "usage" not in json.loads(line)


def test_the_openai_client_reads_the_stream(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ask("x y z", stream=True, stream_options=options)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "x y z"
    assert chunks[-1].usage is not None


def test_n_choices_are_apart_and_in_order(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("one two", n=3))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"one two"}


def test_each_streamed_choice_begins_with_its_role_and_ends_once(http: httpx.Client) -> None:
    chunks = [json.loads(line) for line in sse(http, ask("one two", n=2, stream=True))[:-1]]
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]


def test_logprobs_have_the_chat_form(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ask("né", logprobs=True, top_logprobs=2))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (token,) = logprobs.content
    assert (token.token, token.bytes, token.logprob) == ("né", list("né".encode()), -0.5)
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [("t0", -0.5), ("t1", -9999.0)]


def test_streamed_logprobs_stand_beside_their_text(http: httpx.Client) -> None:
    chunks = [json.loads(line) for line in sse(http, ask("a b", logprobs=True, stream=True))[:-1]]
    tokens = [chunk["choices"][0]["logprobs"]["content"][0]["token"] for chunk in chunks[1:3]]
    assert tokens == ["a", " b"]


def test_all_sampling_fields_reach_the_engine(http: httpx.Client, engine: ScriptedEngine) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -100, "6": 1.5},
        "seed": 7,
        "min_tokens": 1,
        "stop": ["x", "yy"],
        "stop_token_ids": [2, 3],
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    response = http.post("/v1/chat/completions", json=ask("a", **fields, priority="batch", max_tokens=5))
    assert response.status_code == 200
    request = only_request(engine)
    sampling = request.sampling
    expected = {**fields, "logit_bias": {5: -100.0, 6: 1.5}, "stop": ("x", "yy"), "stop_token_ids": (2, 3)}
    assert {name: getattr(sampling, name) for name in fields} == expected
    assert sampling.max_tokens == 5
    assert request.request_class == 2
    assert request.model == "scripted-135m"


def test_max_completion_tokens_beats_max_tokens(http: httpx.Client, engine: ScriptedEngine) -> None:
    response = http.post("/v1/chat/completions", json=ask("a b c", max_tokens=1, max_completion_tokens=2))
    assert response.json()["choices"][0]["message"]["content"] == "a b"
    assert response.json()["choices"][0]["finish_reason"] == "length"
    assert only_request(engine).sampling.max_tokens == 2


def test_null_fields_are_as_good_as_absent(http: httpx.Client, engine: ScriptedEngine) -> None:
    names = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "tools", "response_format", "stream_options")
    assert http.post("/v1/chat/completions", json=ask("a", **dict.fromkeys(names))).status_code == 200
    assert only_request(engine).sampling.temperature == 1.0


def test_harmless_openai_fields_are_accepted(http: httpx.Client) -> None:
    fields = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "reasoning_effort": "low",
        "user": "u",
        "store": False,
        "metadata": {},
    }
    assert http.post("/v1/chat/completions", json=ask("a", **fields)).status_code == 200


def test_an_unknown_field_is_ignored_and_logged_once(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert http.post("/v1/chat/completions", json=ask("a", made_up_field=1)).status_code == 200
    assert sum("made_up_field" in record.getMessage() for record in caplog.records) == 1


def test_text_parts_are_joined_and_developer_is_system(http: httpx.Client, engine: ScriptedEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    assert http.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
    assert only_request(engine).messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
    ]


def test_a_trace_parent_reaches_the_engine_and_rubbish_does_not(http: httpx.Client, engine: ScriptedEngine) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    later = f"cc{parent[2:]}-and-more"
    for headers in ([parent], ["rubbish"], [later], [parent, parent]):
        http.post("/v1/chat/completions", json=ask("a"), headers=[("traceparent", header) for header in headers])
    known, new, newest, twice = (request.traceparent.split("-") for request in engine.submitted)
    assert known[1] == newest[1] == parent.split("-")[1] != twice[1]
    assert newest[0] == "00" and len(newest) == 4, "what a later version says more is not passed on"
    assert known[2] != parent.split("-")[2], "the span of the HTTP request comes between"
    assert len(new[1]) == 32
    assert new[1] != known[1]


def test_a_failure_in_the_middle_of_a_stream_is_an_error_line_and_the_end(http: httpx.Client) -> None:
    lines = sse(http, ask("a !slow !slow !fail b", stream=True))
    assert json.loads(lines[-1])["error"]["message"] == "the step failed"
    assert json.loads(lines[-2])["choices"][0]["delta"] == {"content": "a"}
    assert "[DONE]" not in lines


def test_the_openai_client_raises_the_failure_in_the_middle(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="the step failed"):
        list(client.chat.completions.create(**ask("a !slow !slow !fail", stream=True)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_by_the_engine_is_a_400_before_any_stream(http: httpx.Client, stream: bool) -> None:
    response = http.post("/v1/chat/completions", json=ask("!refuse", stream=stream))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


def test_a_failure_without_stream_keeps_its_status(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json=ask("a !fail"))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


def test_an_overload_says_when_to_come_again(http: httpx.Client, client: openai.OpenAI) -> None:
    response = http.post("/v1/chat/completions", json=ask("!overload", stream=True))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**ask("!overload"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(server: Server, engine: ScriptedEngine, stream: bool) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        request = client.build_request("POST", "/v1/chat/completions", json=ask("a !wait", stream=stream))
        if stream:
            response = client.send(request, stream=True)
            next(response.iter_text())
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=ask("a !wait"), timeout=0.3)
    cancelled = engine.cancelled.get(timeout=5)
    assert cancelled == only_request(engine).id


def test_a_finished_request_is_not_cancelled(http: httpx.Client, engine: ScriptedEngine) -> None:
    sse(http, ask("a b", stream=True))
    http.post("/v1/chat/completions", json=ask("a b"))
    assert engine.cancelled.empty()
    assert engine.running == 0


def test_clients_that_leave_or_finish_leave_no_task_behind(server: Server, engine: ScriptedEngine) -> None:
    before = server.num_tasks()
    for _ in range(10):
        with httpx.Client(base_url=server.url, timeout=20) as client:
            client.post("/v1/chat/completions", json=ask("a b", stream=True))
            with client.stream("POST", "/v1/chat/completions", json=ask("a !wait", stream=True)) as response:
                next(response.iter_text())
        engine.cancelled.get(timeout=5)
    deadline = time.monotonic() + 10
    while server.num_tasks() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.num_tasks() <= before


def test_a_chunk_costs_microseconds_to_write() -> None:
    form = ChatFormat("chatcmpl-1", "m", include_usage=True, has_logprobs=False)
    event = TextDelta("r", 0, " token", (5,))
    form.chunks(event)
    fastest = min(timeit.repeat(lambda: form.chunks(event), number=1000, repeat=5)) / 1000
    assert fastest < 60e-6  # 3 to 4 alone; the limit of the whole way from the engine's frame to the socket


def test_many_streams_at_once_stay_apart(client: openai.OpenAI) -> None:
    def run(number: int) -> str:
        chunks = client.chat.completions.create(**ask(f"w{number} !slow x{number}", stream=True))
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(run, range(48))) == [f"w{number} x{number}" for number in range(48)]
