"""The same seed gives the same bits: alone, among others, in any order, cut in any way, cached, preempted, resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.models.choice import Backend, build_model, refusal_of_cpp
from braid.llm_core.models.model import LanguageModel
from braid.llm_core.text.tokenizer import Tokenizer
from braid.tests.llm_core.trace_rig import Output, Prompt, Rig

SYSTEM = tuple(range(1000, 1070))
"""A prefix that many prompts share, longer than four pages."""
IS_SOAK = bool(os.environ.get("BRAID_SOAK"))
TRACES = {"cpp": 200 if IS_SOAK else 5, "torch": 20 if IS_SOAK else 1}


@dataclass(frozen=True)
class Size:
    """How long the texts of a trace are; torch decodes some ten times slower."""

    max_prompt: int
    max_new: int


LONG = Size(max_prompt=60, max_new=12)
SHORT = LONG if IS_SOAK else Size(max_prompt=16, max_new=3)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer: Tokenizer = open_checkpoint("smollm2").tokenizer()
    return tokenizer


def load(kernels: str) -> LanguageModel:
    checkpoint = open_checkpoint("smollm2")
    backend = Backend(device="cpu", kernels=kernels, num_threads=2, exact=True)
    reason = refusal_of_cpp(checkpoint, backend)
    if kernels == "cpp" and reason is not None:
        pytest.skip(f"the C++ kernels do not run here: {reason}")
    return build_model(checkpoint, backend)


@pytest.fixture(scope="module")
def cpp_model() -> Iterator[LanguageModel]:
    model = load("cpp")
    yield model
    model.close()


@pytest.fixture(scope="module")
def torch_model() -> Iterator[LanguageModel]:
    model = load("torch")
    yield model
    model.close()


def random_prompts(rng: Random, count: int, size: Size) -> list[Prompt]:
    return [
        Prompt(
            token_ids=(SYSTEM if rng.random() < 0.5 else ())
            + tuple(rng.randrange(17, 49000) for _ in range(rng.randint(1, size.max_prompt))),
            max_tokens=rng.randint(1, size.max_new),
            seed=rng.getrandbits(62),
            temperature=rng.choice([0.0, 0.8, 1.5]),
        )
        for _ in range(count)
    ]


def alone(model: LanguageModel, tokenizer: Tokenizer, prompt: Prompt) -> Output:
    """Whole prompt in one step, nobody beside it, nothing cached."""
    rig = Rig(model, tokenizer, num_pages=64)
    rig.submit("alone", prompt, use_prefix_cache=False)
    while rig.open:
        rig.workload.run(list(rig.workload.offers(0.0)), budget_ms=1e9)
    return rig.outputs["alone"]


def check_trace(
    model: LanguageModel, tokenizer: Tokenizer, seed: int, *, num_pages: int, count: int, size: Size = LONG
) -> Rig:
    """Runs a random trace and compares every request with itself alone."""
    rng = Random(seed)
    prompts = random_prompts(rng, count, size)
    rig = Rig(model, tokenizer, num_pages=num_pages)
    rig.run(rng, [(f"r{i}", prompt, rng.random() < 0.6) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        expected, got = alone(model, tokenizer, prompt), rig.outputs[f"r{i}"]
        assert got.token_ids == expected.token_ids
        assert got.logits == expected.logits
    assert rig.pages.used_pages == rig.prefix_cache.cached_pages
    return rig


def test_kernels_give_the_bits_of_each_request_alone_when_sequences_are_preempted(
    cpp_model: LanguageModel, tokenizer: Tokenizer
) -> None:
    rig = check_trace(cpp_model, tokenizer, 7, num_pages=24, count=10)
    assert rig.workload.counters.preemptions > 0


def test_kernels_give_seventeen_requests_that_share_prefixes_the_bits_of_each_alone(
    cpp_model: LanguageModel, tokenizer: Tokenizer
) -> None:
    rig = check_trace(cpp_model, tokenizer, 3, num_pages=400, count=17)
    assert rig.workload.counters.cached_tokens > 0


@pytest.mark.soak  # a sample of it: the same of the kernels, and any trace on torch
def test_torch_gives_seventeen_requests_that_share_prefixes_the_bits_of_each_alone(
    torch_model: LanguageModel, tokenizer: Tokenizer
) -> None:
    rig = check_trace(torch_model, tokenizer, 3, num_pages=400, count=17, size=SHORT)
    assert rig.workload.counters.cached_tokens > 0


@settings(max_examples=TRACES["cpp"])
@given(seed=st.integers(0, 2**32), num_pages=st.sampled_from([16, 24, 40, 400]))
def test_any_trace_on_the_kernels_gives_the_bits_of_each_request_alone(
    cpp_model: LanguageModel, tokenizer: Tokenizer, seed: int, num_pages: int
) -> None:
    check_trace(cpp_model, tokenizer, seed, num_pages=num_pages, count=8)


@settings(max_examples=TRACES["torch"])
@given(seed=st.integers(0, 2**32), num_pages=st.sampled_from([16, 24, 40, 400]))
def test_any_trace_on_torch_gives_the_bits_of_each_request_alone(
    torch_model: LanguageModel, tokenizer: Tokenizer, seed: int, num_pages: int
) -> None:
    check_trace(torch_model, tokenizer, seed, num_pages=num_pages, count=5, size=SHORT)
