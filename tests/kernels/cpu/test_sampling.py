from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.kernels import sampling as specification
from braid.kernels.cpu import sampling as cpu_sampling
from braid.kernels.cpu.sampling import CpuSampler
from braid.kernels.sampling import FloatArray, SampleRow

SOURCE = Path(cpu_sampling.__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden", "-shared", "-fPIC"]
VARIANTS = {"avx512_vnni": ["f", "bw", "vl", "dq", "vnni"], "avx2": []}
EDGE = 1e-5


@functools.cache
def cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    return frozenset(info.read_text().split()) if info.exists() else frozenset()


@pytest.fixture(scope="module", params=list(VARIANTS))
def sampler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CpuSampler:
    needed = [f"avx512{'_' if name == 'vnni' else ''}{name}" for name in VARIANTS[request.param]] + ["avx2", "fma"]
    if shutil.which("g++") is None or not cpu_flags().issuperset(needed):
        pytest.skip(f"no compiler, or not a CPU for {request.param}")
    library = tmp_path_factory.mktemp("sampling") / f"{request.param}.so"
    machine = [f"-m{flag.replace('_', '')}" for flag in needed]
    subprocess.run(["g++", *FLAGS, "-Wall", "-Wextra", "-Werror", *machine, SOURCE, "-o", library], check=True)
    return CpuSampler(library)


def some_logits(kind: str, vocab_size: int, seed: int) -> FloatArray:
    """One row: peaked like a model's, flat, in few distinct values, all equal, or with impossible tokens."""
    random = np.random.default_rng(seed)
    row = random.normal(size=vocab_size).astype(np.float32)
    if kind == "peaked":
        row = 3 * row + 12 * (random.random(vocab_size) < 20 / vocab_size).astype(np.float32)
    elif kind == "ties":
        row = np.round(2 * row)
    elif kind == "equal":
        row[:] = -0.0
        row[::3] = 0.0
    elif kind == "masked":
        row[random.random(vocab_size) < 0.5] = -np.inf
        row[vocab_size // 2] = 1
    return row.astype(np.float32)


def distance_to_interval(logits: FloatArray, row: SampleRow, token_id: int) -> float:
    """How far `row.uniform` is from the part of [0, 1) that the specification gives to `token_id`."""
    z = specification.adjust(torch.from_numpy(logits), row)
    descending, order = torch.sort(z, descending=True, stable=True)
    weights = torch.exp((descending.double() - descending[0].double()) / row.temperature)
    if row.top_k:
        weights = weights[: row.top_k]
    cumulative = weights.cumsum(0)
    kept = cumulative[-1]
    if row.top_p < 1:
        kept = torch.min(kept, cumulative[(cumulative < row.top_p * kept).sum()])
    if row.min_p:
        kept = torch.min(kept, weights[weights >= row.min_p * (1 - 1e-12)].sum())
    position = int((order == token_id).nonzero()[0])
    assert position < len(weights), "the token is outside of top-k"
    low = float((cumulative[position] - weights[position]) / kept)
    return max(low - row.uniform, row.uniform - float(cumulative[position] / kept), 0.0)


def assert_same_choice(sampler: CpuSampler, logits: FloatArray, row: SampleRow) -> None:
    chosen, expected = sampler(logits[None], [row])[0], specification.sample(logits[None], [row])[0]
    assert (chosen.error is None) == (expected.error is None)
    if chosen.token_id != expected.token_id:
        assert row.temperature >= specification.GREEDY_BELOW
        assert distance_to_interval(logits, row, chosen.token_id) < EDGE
    elif expected.logprob is not None:
        assert chosen.logprob == pytest.approx(expected.logprob, abs=2e-5)
    assert [token_id for token_id, _ in chosen.top] == [token_id for token_id, _ in expected.top]
    np.testing.assert_allclose([p for _, p in chosen.top], [p for _, p in expected.top], atol=2e-5)


@st.composite
def sample_rows(draw: st.DrawFn, vocab_size: int) -> SampleRow:
    def ids(max_size: int) -> np.ndarray:
        chosen = draw(st.lists(st.integers(0, vocab_size - 1), max_size=max_size, unique=True))
        return np.array(chosen, np.int32)

    def either(default: float, low: float, high: float) -> float:
        return draw(st.just(default) | st.floats(low, high))

    seen, bias_ids = ids(8), ids(4)
    return SampleRow(
        temperature=draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.7, 1.0, 2.0]) | st.floats(0, 2)),
        top_k=draw(st.sampled_from([0, 1, 2, 40, vocab_size - 1, vocab_size, vocab_size + 7])),
        top_p=either(1.0, 1e-6, 1),
        min_p=either(0.0, 0, 1),
        uniform=draw(st.floats(0, 1, exclude_max=True)),
        num_top=draw(st.integers(-1, 20)),
        repetition_penalty=either(1.0, 0.1, 10),
        presence_penalty=either(0.0, -2, 2),
        frequency_penalty=either(0.0, -2, 2),
        seen=seen,
        counts=np.array([draw(st.integers(0, 5)) for _ in seen], np.int32),
        bias_ids=bias_ids,
        bias=np.array([draw(st.floats(-100, 100, width=32)) for _ in bias_ids], np.float32),
        forbidden=ids(3),
    )


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_the_cpp_sampler_chooses_as_the_specification_does(sampler: CpuSampler, data: st.DataObject) -> None:
    vocab_size = data.draw(st.sampled_from([2, 17, 63, 64, 257, 1000, 4096, 9001]))
    kind = data.draw(st.sampled_from(["peaked", "flat", "ties", "equal", "masked"]))
    logits = some_logits(kind, vocab_size, data.draw(st.integers(0, 2**16)))
    assert_same_choice(sampler, logits, data.draw(sample_rows(vocab_size)))


@pytest.mark.parametrize("kind", ["peaked", "flat", "ties", "equal", "masked"])
@pytest.mark.parametrize(
    "row",
    [
        SampleRow(),
        SampleRow(temperature=2.0),
        SampleRow(top_p=0.9),
        SampleRow(temperature=1.5, top_p=0.99, min_p=0.001),
        SampleRow(min_p=0.05),
        SampleRow(top_k=40, top_p=0.9),
        SampleRow(top_k=5000, min_p=0.01),
        SampleRow(temperature=0.0, num_top=20),
    ],
    ids=str,
)
def test_the_whole_vocabulary_of_a_real_model_agrees_at_many_uniforms(
    sampler: CpuSampler, kind: str, row: SampleRow
) -> None:
    logits = some_logits(kind, 49152, 7)
    for row.uniform in (0.0, 1e-9, 0.1, 0.37, 0.5, 0.77, 0.93, 0.9999, 1 - 2**-53):
        assert_same_choice(sampler, logits, row)


@pytest.mark.parametrize("num_equal", [5, 300])
def test_min_p_of_one_keeps_all_tokens_that_equal_the_likeliest(sampler: CpuSampler, num_equal: int) -> None:
    logits = np.full(1000, 0.5, np.float32)
    logits[-num_equal:] = 0.75
    row = SampleRow(min_p=1.0, uniform=0.999)
    assert sampler(logits[None], [row])[0].token_id == 999
    assert specification.sample(logits[None], [row])[0].token_id == 999


def test_a_row_does_not_depend_on_its_batch_mates(sampler: CpuSampler) -> None:
    kinds = ["peaked", "flat", "ties", "masked", "equal"]
    logits = np.stack([some_logits(kind, 1003, seed) for seed, kind in enumerate(kinds)])
    rows = [SampleRow(uniform=0.1 + i / 7, top_p=0.9 if i % 2 else 1.0, num_top=i) for i in range(5)]
    together = sampler(logits, rows)
    for order in ([4, 2, 0], [1], [3, 3, 1, 0, 2]):
        assert sampler(logits[order], [rows[i] for i in order]) == [together[i] for i in order]


def test_rows_of_a_wider_array_and_torch_tensors_are_read_where_they_lie(sampler: CpuSampler) -> None:
    wide = np.stack([some_logits("flat", 200, seed) for seed in range(3)])
    rows = [SampleRow(uniform=0.5) for _ in range(3)]
    expected = [token.token_id for token in specification.sample(np.ascontiguousarray(wide[:, 7:107]), rows)]
    assert [token.token_id for token in sampler(wide[:, 7:107], rows)] == expected
    assert [token.token_id for token in sampler(torch.from_numpy(wide)[:, 7:107], rows)] == expected
    assert sampler(wide[:0], []) == []


def test_logits_are_left_as_they_were(sampler: CpuSampler) -> None:
    logits = some_logits("flat", 128, 0)[None]
    before = logits.copy()
    sampler(logits, [SampleRow(bias_ids=np.array([5], np.int32), bias=np.array([9], np.float32))])
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 129])
def test_a_row_that_is_no_distribution_fails_alone(sampler: CpuSampler, bad: float, place: int) -> None:
    logits = np.stack([some_logits("flat", 130, seed) for seed in range(3)])
    logits[1, place] = bad
    for temperature in (0.0, 1.0):
        tokens = sampler(logits, [SampleRow(temperature=temperature, uniform=0.4, num_top=2)] * 3)
        assert tokens[1].error is not None
        assert "NaN" in tokens[1].error.message
        assert [tokens[i].error for i in (0, 2)] == [None, None]
        assert min(tokens[0].token_id, tokens[2].token_id) >= 0


def test_a_row_of_nothing_but_minus_infinity_fails(sampler: CpuSampler) -> None:
    token = sampler(np.full((1, 100), -np.inf, np.float32), [SampleRow()])[0]
    assert token.token_id == -1
    assert "nothing but -inf" in str(token.error)


def test_forbidding_every_token_fails_with_the_request_at_fault(sampler: CpuSampler) -> None:
    row = SampleRow(forbidden=np.arange(70, dtype=np.int32))
    assert "exclude all" in str(sampler(some_logits("flat", 70, 1)[None], [row])[0].error)


@pytest.mark.parametrize(
    "logits", [np.zeros((1, 8)), np.zeros((2, 8), np.float32), np.zeros((1, 16), np.float32)[:, ::2]], ids=str
)
def test_arrays_of_another_kind_are_refused(sampler: CpuSampler, logits: FloatArray) -> None:
    with pytest.raises(ValueError, match="contiguous float32"):
        sampler(logits, [SampleRow()])
