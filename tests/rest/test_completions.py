"""Legacy completions through the pinned `openai` client and through raw HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from conftest import Server
from scripted_engine import ScriptedEngine


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_one_prompt_is_continued(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt="a b")
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a b", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 13


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["a", "b c"], ["a", "b c"]),
        ([5, 6], ["id5 id6"]),
        ([[5], [6, 7]], ["id5", "id6 id7"]),
        (["a", [9]], ["a", "id9"]),
    ],
)
def test_prompts_of_every_form(client: openai.OpenAI, prompt: list[str], texts: list[str]) -> None:
    answer = client.completions.create(model="scripted", prompt=prompt)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 11 * len(texts)


def test_choices_of_several_prompts_are_numbered_through(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt=["a", "b"], n=2, best_of=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt=" ".join("w" * 20))
    assert len(answer.choices[0].text.split()) == 16
    assert answer.choices[0].finish_reason == "length"


def test_echo_gives_the_prompt_back_in_front(client: openai.OpenAI, http: httpx.Client) -> None:
    assert client.completions.create(model="scripted", prompt="a b", echo=True).choices[0].text == "a ba b"
    response = http.post("/v1/completions", json={"prompt": "a b", "echo": True, "stream": True, "n": 2})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    for index in (0, 1):
        texts = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert texts == ["a b", "a", " b", ""]


def test_logprobs_have_the_legacy_form(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="scripted", prompt="ab cd", logprobs=1).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["ab", " cd"]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.text_offset == [0, 2]
    assert logprobs.top_logprobs == [{"t0": -0.5, "ab": -0.5}, {"t0": -0.5, " cd": -0.5}]


def test_streamed_logprobs_go_on_counting_characters(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="scripted", prompt="ab cd e", logprobs=0, stream=True))
    offsets = [chunk.choices[0].logprobs.text_offset for chunk in chunks if chunk.choices[0].logprobs]
    assert offsets == [[0], [2], [5]]


def test_a_stream_of_two_prompts_ends_once_with_the_sum(http: httpx.Client) -> None:
    body = {"prompt": ["a", "b !slow c"], "stream": True, "stream_options": {"include_usage": True}}
    lines = [line[6:] for line in http.post("/v1/completions", json=body).text.split("\n\n")[:-1]]
    assert lines.count("[DONE]") == 1
    assert lines[-1] == "[DONE]"
    usage = json.loads(lines[-2])
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 2 * 11 + 3
    assert all(json.loads(line)["usage"] is None for line in lines[:-2])


def test_when_one_prompt_is_refused_the_others_are_cancelled(http: httpx.Client, engine: ScriptedEngine) -> None:
    response = http.post("/v1/completions", json={"prompt": ["a !wait", "!refuse"], "stream": True})
    assert response.status_code == 400
    assert engine.cancelled.get(timeout=5).endswith("-0")
