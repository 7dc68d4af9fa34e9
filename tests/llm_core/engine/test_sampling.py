from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.errors import ContextLengthExceeded, InvalidRequest
from braid.kernels.sampling import FloatArray
from braid.llm_core.engine.messages import SamplingParams
from braid.llm_core.engine.sampling import SampledToken, Sampler, SamplingState, check, completion_seed

VOCAB_SIZE = 50
GREEDY = SamplingParams(temperature=0)


def state(prompt: tuple[int, ...] = (), seed: int = 0, ends: tuple[int, ...] = (), **params: Any) -> SamplingState:
    return SamplingState(SamplingParams(**params), prompt, seed, forbidden_until_min_tokens=ends)


def logits_of(*rows: list[float]) -> FloatArray:
    return np.array(rows, np.float32)


def choose(logits: FloatArray, of: SamplingState) -> SampledToken:
    return Sampler().sample(logits, [of])[0]


def generate(logits: FloatArray, of: SamplingState, num_tokens: int) -> list[int]:
    tokens = []
    for _ in range(num_tokens):
        tokens.append(choose(logits, of).token_id)
        of.observe(tokens[-1])
    return tokens


def chi_square(tokens: list[int], probabilities: dict[int, float]) -> float:
    expected = {token: p * len(tokens) for token, p in probabilities.items()}
    assert set(tokens) <= set(expected)
    return sum((tokens.count(token) - n) ** 2 / n for token, n in expected.items())


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 2.1}, "temperature", "temperature=2.1 must be a number at least 0 and at most 2"),
    ({"temperature": -0.1}, "temperature", "at least 0"),
    ({"temperature": math.nan}, "temperature", "temperature=nan"),
    ({"temperature": "hot"}, "temperature", "'hot'"),
    ({"temperature": True}, "temperature", "True"),
    ({"top_p": 0.0}, "top_p", "greater than 0"),
    ({"top_p": 1.5}, "top_p", "at most 1"),
    ({"top_p": math.inf}, "top_p", "inf"),
    ({"min_p": -0.5}, "min_p", "-0.5"),
    ({"min_p": math.nan}, "min_p", "nan"),
    ({"top_k": -1}, "top_k", "top_k=-1 must be an integer from 0"),
    ({"top_k": 1.5}, "top_k", "1.5"),
    ({"presence_penalty": 2.5}, "presence_penalty", "at most 2"),
    ({"presence_penalty": -math.inf}, "presence_penalty", "-inf"),
    ({"frequency_penalty": -2.5}, "frequency_penalty", "at least -2"),
    ({"frequency_penalty": math.nan}, "frequency_penalty", "nan"),
    ({"repetition_penalty": 0.0}, "repetition_penalty", "greater than 0"),
    ({"repetition_penalty": 11.0}, "repetition_penalty", "at most 10"),
    ({"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias", "token id 50; ids are integers from 0 to 49"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias", "token id -1"),
    ({"logit_bias": {"3": 1.0}}, "logit_bias", "token id '3'"),
    ({"logit_bias": {3: 101.0}}, "logit_bias", "logit_bias.3=101.0"),
    ({"logit_bias": {3: math.nan}}, "logit_bias", "nan"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens=0 must be an integer from 1"),
    ({"max_tokens": 2.0}, "max_tokens", "2.0"),
    ({"min_tokens": -1}, "min_tokens", "-1"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "min_tokens=9 must be at most 8"),
    ({"min_tokens": 101}, "min_tokens", "at most 100"),
    ({"n": 0}, "n", "n=0 must be an integer from 1 to 128"),
    ({"n": 129}, "n", "129"),
    ({"logprobs": 21}, "top_logprobs", "logprobs=21 must be an integer from 0 to 20"),
    ({"logprobs": -1}, "top_logprobs", "-1"),
    ({"stop": "END"}, "stop", "list"),
    ({"stop": ("a",) * 17}, "stop", "at most 16"),
    ({"stop": ("a", "")}, "stop.1", "stop.1='' must be a string of 1 to 1024"),
    ({"stop": ("x" * 5000,)}, "stop.0", "1 to 1024"),
    ({"stop": (3,)}, "stop.0", "stop.0=3"),
    ({"stop_token_ids": (2, 50)}, "stop_token_ids.1", "stop_token_ids.1=50 must be an integer from 0 to 49"),
    ({"seed": 2**64}, "seed", "18446744073709551616"),
    ({"seed": 0.5}, "seed", "0.5"),
]


@pytest.mark.parametrize(("params", "param", "message"), WRONG, ids=str)
def test_a_wrong_parameter_is_refused_by_name_value_and_range(params: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(SamplingParams(**params), vocab_size=VOCAB_SIZE, context_length=100)
    assert refused.value.param == param
    assert message in refused.value.message
    assert len(refused.value.message) < 300


def test_more_tokens_than_the_context_are_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"max_tokens=101 .* 100 tokens"):
        check(SamplingParams(max_tokens=101), vocab_size=VOCAB_SIZE, context_length=100)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0, "top_p": 1, "min_p": 0, "top_k": 0, "seed": -(2**63), "max_tokens": 1, "n": 1},
        {"temperature": 2, "top_p": 1e-9, "min_p": 1, "top_k": 10**6, "seed": 2**64 - 1, "max_tokens": 100, "n": 128},
        {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 10, "logprobs": 20, "min_tokens": 100},
        {"logit_bias": {0: -100, 49: 100}, "stop": ("x",) * 16, "stop_token_ids": (0, 49), "logprobs": 0},
    ],
)
def test_the_ends_of_every_range_are_allowed(params: dict[str, Any]) -> None:
    check(SamplingParams(**params), vocab_size=VOCAB_SIZE, context_length=100)


def test_greedy_takes_the_largest_logit_and_the_lower_id_among_equals() -> None:
    assert choose(logits_of([1, 3, 3, -2]), state(temperature=0)).token_id == 1


def test_tokens_follow_the_softmax_of_the_logits_over_the_temperature() -> None:
    row, temperature = [1.0, 0.0, 2.0, -1.0, 0.5], 0.7
    weights = [math.exp(z / temperature) for z in row]
    probabilities = {i: w / sum(weights) for i, w in enumerate(weights)}
    tokens = generate(logits_of(row), state(seed=11, temperature=temperature), 4000)
    assert chi_square(tokens, probabilities) < 18.5  # 4 degrees of freedom, p = 0.001


def test_different_seeds_draw_from_the_same_distribution() -> None:
    row = [0.0, 1.0, -0.5]
    total = sum(map(math.exp, row))
    tokens = [choose(logits_of(row), state(seed=seed)).token_id for seed in range(4000)]
    assert chi_square(tokens, {i: math.exp(z) / total for i, z in enumerate(row)}) < 13.8


@pytest.mark.parametrize(
    ("params", "probabilities"),
    [
        ({"top_k": 2}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_k": 3}, {1: 0.4 / 0.8, 3: 0.25 / 0.8, 0: 0.15 / 0.8}),  # 0 and 2 are equal: the lower id is kept
        ({"top_p": 0.5}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_p": 0.3}, {1: 1.0}),
        ({"min_p": 0.5}, {1: 0.4 / 0.65, 3: 0.25 / 0.65}),
        ({"top_k": 2, "top_p": 0.6}, {1: 1.0}),  # the nucleus is of what top-k left: 0.4 / 0.65 > 0.6
        ({"logit_bias": {1: -100.0}, "top_k": 1}, {3: 1.0}),
    ],
)
def test_filters_keep_the_likeliest_and_their_proportions(
    params: dict[str, Any], probabilities: dict[int, float]
) -> None:
    logits = np.log(logits_of([0.15, 0.4, 0.15, 0.25, 0.05]))
    tokens = generate(logits, state(seed=5, **params), 2000)
    assert chi_square(tokens, probabilities) < 13.8


def test_a_nucleus_that_one_token_fills_exactly_holds_one_token() -> None:
    logits = np.zeros((1, 2), np.float32)
    assert set(generate(logits, state(seed=1, top_p=0.5), 50)) == {0}
    assert set(generate(logits, state(seed=1, top_p=0.51), 50)) == {0, 1}


@given(
    row=st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6),
    repetition=st.floats(0.1, 10),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.floats(-100, 100),
)
@settings(deadline=None)
def test_penalties_and_bias_match_their_formulas(
    row: list[float], repetition: float, presence: float, frequency: float, bias: float
) -> None:
    params = {"repetition_penalty": repetition, "presence_penalty": presence, "frequency_penalty": frequency}
    of = state((0, 2, 2), temperature=0, logit_bias={4: bias}, **params)
    for token in (1, 2, 1):
        of.observe(token)
    z = list(row)
    for token in (0, 1, 2):
        z[token] = z[token] / repetition if z[token] > 0 else z[token] * repetition
    z[1] -= 2 * frequency + presence
    z[2] -= frequency + presence
    z[4] += bias
    chosen = choose(logits_of(row), of).token_id
    assert z[chosen] == pytest.approx(max(z), rel=1e-5, abs=1e-4)


def test_ends_are_forbidden_until_min_tokens_are_there() -> None:
    of = state(temperature=0, min_tokens=2, ends=(3,))
    assert generate(logits_of([0, 1, 2, 9]), of, 4) == [2, 2, 3, 3]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    row = [1.0, 3.0, 2.0, 3.0, -math.inf]
    of = state(logprobs=20, temperature=0, logit_bias={2: 50.0}, top_k=1, presence_penalty=1.0)
    token = choose(logits_of(row), of)
    log_sum = math.log(sum(math.exp(z) for z in row))
    assert token.token_id == 2
    assert token.logprob == pytest.approx(2 - log_sum, abs=1e-5)
    assert [token_id for token_id, _ in token.top] == [1, 3, 2, 0]
    assert [p for _, p in token.top] == pytest.approx([3 - log_sum, 3 - log_sum, 2 - log_sum, 1 - log_sum], abs=1e-5)


def test_logprobs_of_zero_tops_and_none_are_different_things() -> None:
    logits = logits_of([0.0, 0.0])
    assert choose(logits, state(logprobs=0)).logprob == pytest.approx(math.log(0.5), abs=1e-6)
    assert choose(logits, state(logprobs=0)).top == ()
    assert choose(logits, state()).logprob is None


@given(st.integers(0, 2**63), st.integers(0, 40), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_a_resumed_sequence_goes_on_with_the_same_tokens(seed: int, pause: int, index: int) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 300)).astype(np.float32)
    params = {"presence_penalty": 0.5, "repetition_penalty": 1.1, "min_tokens": 20, "top_p": 0.9}
    whole = generate(logits, state((1, 2), completion_seed(seed, index), (0, 5), **params), 41)
    resumed = state((1, 2), completion_seed(seed, index), (0, 5), **params)
    for token in whole[:pause]:
        resumed.observe(token)
    assert generate(logits, resumed, 41 - pause) == whole[pause:]


def test_asking_twice_without_observing_gives_the_same_token() -> None:
    logits = np.zeros((1, 1000), np.float32)
    of = state(seed=3)
    assert choose(logits, of) == choose(logits, of)
    first = choose(logits, of)
    of.observe(first.token_id)
    assert choose(logits, of) != first


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    logits = np.random.default_rng(1).normal(size=(4, 100)).astype(np.float32)
    states = [state(seed=seed, top_p=0.8, logprobs=seed) for seed in range(4)]
    together = Sampler().sample(logits, states)
    assert [choose(logits[i : i + 1], states[i]) for i in range(4)] == together


@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_a_row_without_a_distribution_fails_alone(bad: list[float]) -> None:
    tokens = Sampler().sample(logits_of([0, 1], bad, [1, 0]), [state(temperature=0) for _ in range(3)])
    assert [token.token_id for token in tokens] == [1, -1, 0]
    assert [token.error is None for token in tokens] == [True, False, True]
    assert "logits" in str(tokens[1].error)


def test_params_that_exclude_every_token_fail_with_a_reason() -> None:
    token = choose(logits_of([0, 1]), state(min_tokens=1, ends=(0, 1)))
    assert "min_tokens" in str(token.error)


def test_torch_logits_give_the_tokens_of_numpy_logits() -> None:
    logits = np.random.default_rng(2).normal(size=(3, 100)).astype(np.float32)
    states = [state(seed=seed) for seed in range(3)]
    assert Sampler().sample(torch.from_numpy(logits), states) == Sampler().sample(logits, states)


@pytest.mark.gpu
def test_a_gpu_draws_the_tokens_of_the_cpu() -> None:
    logits = np.random.default_rng(3).normal(size=(8, 4096)).astype(np.float32)
    states = [state((7,), seed, (), top_p=0.9, repetition_penalty=1.2) for seed in range(8)]
    on_gpu = Sampler().sample(torch.from_numpy(logits).cuda(), states)
    assert [token.token_id for token in on_gpu] == [token.token_id for token in Sampler().sample(logits, states)]


def test_counts_grow_past_their_first_capacity() -> None:
    of = state(tuple(range(10)), temperature=0, frequency_penalty=2.0)
    for token in range(5, 300):
        of.observe(token)
    row = np.zeros((1, 301), np.float32)
    row[0, :5] = -5
    assert choose(row, of).token_id == 300
    row[0, 300] = -1
    assert choose(row, of).token_id == 300
    row[0, 300] = -3
    assert choose(row, of).token_id == 5
