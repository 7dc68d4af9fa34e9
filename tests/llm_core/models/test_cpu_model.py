"""The C++ model against a float32 forward written with plain operators, and against itself, bit for bit."""

from __future__ import annotations

import dataclasses
import math

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.errors import BraidError, UnsupportedModel
from braid.kernels.cpu.library import VARIANTS, reasons_against
from braid.llm_core.loading.weights import StorageType
from braid.llm_core.models.config import ModelConfig, RopeScaling
from braid.llm_core.models.cpu_model import CpuModel, can_run, rotary_frequencies
from braid.llm_core.models.model import ForwardBatch, ForwardResult

USABLE = [variant.name for variant in VARIANTS if reasons_against()[variant.name] is None]
pytestmark = pytest.mark.skipif(not USABLE, reason="no compiled kernels for this processor")

Q4_0, Q4_1, Q5_1, Q8_0 = StorageType.Q4_0, StorageType.Q4_1, StorageType.Q5_1, StorageType.Q8_0

TINY = ModelConfig(
    architecture="llama", vocab_size=203, hidden_size=96, intermediate_size=160, num_layers=2, num_heads=6,
    num_kv_heads=2, head_dim=32, context_length=1024, tie_word_embeddings=True,
)


def changed(**changes) -> ModelConfig:
    return dataclasses.replace(TINY, **changes)


CONFIGS = {
    "llama": TINY,
    "interleaved": changed(rope_interleaved=True),
    "own head": changed(tie_word_embeddings=False),
    "linear rope": changed(rope_scaling=RopeScaling("linear", factor=4.0)),
    "llama3 rope": changed(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, original_context_length=64)),
    "divided rope": changed(rope_scaling=RopeScaling("divisors", divisors=tuple(1.0 + i / 4 for i in range(16)))),
    "qwen2": changed(architecture="qwen2", attention_bias=True, rope_theta=1e6),
    "qwen3": changed(architecture="qwen3", qk_norm=True),
    "mistral": changed(architecture="mistral", sliding_window=40),
    "gemma3": changed(
        architecture="gemma3", num_layers=3, num_heads=4, num_kv_heads=1, head_dim=48, qk_norm=True, post_norms=True,
        hidden_act="gelu_tanh", query_scale=0.2, embedding_scale=9.75, sliding_window=33, norm_weight_offset=1.0,
        layer_is_sliding=(True, False, True), rope_theta=1e6, rope_local_theta=1e4,
    ),
    "every head its own keys": changed(num_heads=3, num_kv_heads=3, head_dim=32),
    "one head of keys for twelve": changed(num_heads=12, num_kv_heads=1, head_dim=16),
    "heads of 256": changed(num_heads=2, num_kv_heads=1, head_dim=256),
    "heads of 80": changed(num_heads=2, num_kv_heads=2, head_dim=80),
}


class RandomTensor:
    """A StoredTensor of random numbers, quantised by the gguf package."""

    def __init__(self, name: str, shape: tuple[int, ...], storage: StorageType, rng: np.random.Generator) -> None:
        self.name, self.shape, self.storage = name, shape, storage
        spread = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        values = rng.normal(1.0 if name.endswith("norm.weight") else 0.0, spread, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType[storage.value]
        self._blocks = gguf.quantize(values, kind).reshape(shape[0] if len(shape) > 1 else 1, -1)
        self._values = gguf.dequantize(self._blocks, kind).reshape(shape).astype(np.float32)

    def raw(self) -> torch.Tensor:
        return torch.from_numpy(self._blocks.view(np.uint8))

    def to_torch(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(self._values).to(dtype)


def random_weights(config: ModelConfig, storages=(Q4_1, Q8_0, Q4_0, Q5_1), seed: int = 0) -> dict[str, RandomTensor]:
    """A checkpoint's weights; the matrices take the storages in turn."""
    rng = np.random.default_rng(seed)
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        p = f"model.layers.{i}."
        for name, shape in (
            ("self_attn.q_proj", (heads, hidden)), ("self_attn.k_proj", (kv_heads, hidden)),
            ("self_attn.v_proj", (kv_heads, hidden)), ("self_attn.o_proj", (hidden, heads)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
        ):
            shapes[f"{p}{name}.weight"] = shape
            if config.attention_bias and name[10:] in ("q_proj", "k_proj", "v_proj"):
                shapes[f"{p}{name}.bias"] = shape[:1]
        norms = ["input", "post_attention"] + ["pre_feedforward", "post_feedforward"] * config.post_norms
        shapes |= {f"{p}{name}_layernorm.weight": (hidden,) for name in norms}
        if config.qk_norm:
            shapes |= {f"{p}self_attn.{name}_norm.weight": (config.head_dim,) for name in "qk"}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return {
        name: RandomTensor(name, shape, storages[n % len(storages)] if len(shape) == 2 else StorageType.F32, rng)
        for n, (name, shape) in enumerate(shapes.items())
    }


class Reference:
    """One sequence through the model in float64, dequantised weights, every position at once."""

    def __init__(self, config: ModelConfig, weights: dict[str, RandomTensor]) -> None:
        self.config, self.weights = config, weights

    def __call__(self, ids: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Hidden states as `ForwardBatch.hidden_layers` counts them, and logits."""
        c = self.config
        x = self._weight("model.embed_tokens.weight")[torch.from_numpy(ids).long()] * c.embedding_scale
        states = [x]
        for i in range(c.num_layers):
            p = f"model.layers.{i}."
            attended = self._linear(p + "self_attn.o_proj", self._attention(i, self._norm(p + "input_layernorm", x)))
            x = x + (self._norm(p + "post_attention_layernorm", attended) if c.post_norms else attended)
            fed = self._feed_forward(p, x)
            x = x + (self._norm(p + "post_feedforward_layernorm", fed) if c.post_norms else fed)
            states.append(x)
        states[-1] = self._norm("model.norm", x)
        head = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
        return states, F.linear(states[-1], self._weight(head))

    def _weight(self, name: str) -> torch.Tensor:
        return self.weights[name].to_torch(torch.float64)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        bias = self._weight(name + ".bias") if name + ".bias" in self.weights else None
        return F.linear(x, self._weight(name + ".weight"), bias)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return x * scale * (self._weight(name + ".weight") + self.config.norm_weight_offset)

    def _feed_forward(self, p: str, x: torch.Tensor) -> torch.Tensor:
        x = self._norm(p + ("pre_feedforward_layernorm" if self.config.post_norms else "post_attention_layernorm"), x)
        gate = self._linear(p + "mlp.gate_proj", x)
        gate = F.gelu(gate, approximate="tanh") if self.config.hidden_act == "gelu_tanh" else F.silu(gate)
        return self._linear(p + "mlp.down_proj", gate * self._linear(p + "mlp.up_proj", x))

    def _rotate(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        c = self.config
        local = c.is_sliding(layer) and c.rope_local_theta is not None
        theta, scaling = (c.rope_local_theta, RopeScaling()) if local else (c.rope_theta, c.rope_scaling)
        angles = torch.arange(len(x))[:, None, None] * torch.from_numpy(rotary_frequencies(c.head_dim, theta, scaling))
        a, b = (x[..., 0::2], x[..., 1::2]) if c.rope_interleaved else x.chunk(2, -1)
        rotated = (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin())
        return torch.stack(rotated, -1).flatten(-2) if c.rope_interleaved else torch.cat(rotated, -1)

    def _attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        c, p, T = self.config, f"model.layers.{layer}.self_attn.", len(x)
        q, k, v = (self._linear(f"{p}{name}_proj", x).view(T, -1, c.head_dim) for name in "qkv")
        if c.qk_norm:
            q, k = self._norm(p + "q_norm", q), self._norm(p + "k_norm", k)
        q, k = self._rotate(layer, q), self._rotate(layer, k)
        k, v = (t.repeat_interleave(c.num_heads // c.num_kv_heads, 1) for t in (k, v))
        distance = torch.arange(T)[:, None] - torch.arange(T)
        is_visible = (distance >= 0) & (distance < (c.sliding_window if c.is_sliding(layer) else T))
        scores = torch.einsum("qhd,khd->hqk", q, k) * c.attention_scale
        weights = scores.masked_fill(~is_visible, -math.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).reshape(T, -1)


class Slabs:
    """Pages in several slabs, full of NaNs at first."""

    def __init__(self, model: CpuModel, num_slabs: int = 4, pages_per_slab: int = 37) -> None:
        self.pages_per_slab, self.page_bytes = pages_per_slab, model.page_bytes
        self.memory = [np.full((pages_per_slab, model.page_bytes), 0xFF, np.uint8) for _ in range(num_slabs)]

    def addresses(self) -> np.ndarray:
        return np.array([slab.ctypes.data for slab in self.memory], np.int64)


class Sequences:
    """Runs pieces of sequences through a model, each sequence with its own random pages."""

    def __init__(self, model: CpuModel, prompts: list[np.ndarray], seed: int = 0) -> None:
        self.model, self.prompts, self.slabs = model, prompts, Slabs(model)
        pages = np.random.default_rng(seed).permutation(4 * 37).astype(np.int32)
        most = max(-(-len(prompt) // 16) for prompt in prompts)
        assert most * len(prompts) <= len(pages)
        self.tables = pages[: most * len(prompts)].reshape(len(prompts), most)

    def run(self, parts: list[tuple[int, int, int]], **wanted) -> ForwardResult:
        """One call with tokens start .. end - 1 of each (sequence, start, end)."""
        chosen = sorted({sequence for sequence, _, _ in parts})
        ids = [self.prompts[s][a:b] for s, a, b in parts]
        num_tokens = sum(map(len, ids))
        wanted.setdefault("logits_rows", np.arange(num_tokens, dtype=np.int32))
        return self.model.forward(
            ForwardBatch(
                np.concatenate(ids).astype(np.int32),
                np.concatenate([np.arange(a, b) for _, a, b in parts]).astype(np.int32),
                np.concatenate([np.full(b - a, chosen.index(s)) for s, a, b in parts]).astype(np.int32),
                np.ascontiguousarray(self.tables[chosen]),
                **wanted,
            ),
            self.slabs,
        )


def prompt(length: int, seed: int = 0, vocab_size: int = TINY.vocab_size) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, length)


def bits(logits: np.ndarray) -> np.ndarray:
    return logits.view(np.int32).copy()


def relative_error(got: np.ndarray, expected: torch.Tensor) -> float:
    return float(((torch.from_numpy(got).double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.fixture(scope="module", params=USABLE)
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(variant):
    model = CpuModel(TINY, random_weights(TINY), num_threads=2, variant=variant)
    yield model
    model.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_all_hidden_states_agree_with_float64(name, variant):
    config = CONFIGS[name]
    weights = random_weights(config)
    model = CpuModel(config, weights, num_threads=2, variant=variant)
    ids = prompt(203)
    states, logits = Reference(config, weights)(ids)
    rows = np.arange(len(ids), dtype=np.int32)
    layers = tuple(range(config.num_layers + 1))
    result = Sequences(model, [ids]).run([(0, 0, len(ids))], hidden_rows=rows, hidden_layers=layers)
    assert relative_error(result.logits, logits) < 1e-3
    assert all(relative_error(got, want) < 1e-3 for got, want in zip(result.hidden_states, states, strict=True))
    model.close()


@pytest.mark.parametrize("num_tokens", [1, 63, 257])
def test_odd_lengths_agree_with_float64(num_tokens, model):
    ids = prompt(num_tokens, seed=num_tokens)
    _, logits = Reference(TINY, random_weights(TINY))(ids)
    assert relative_error(Sequences(model, [ids]).run([(0, 0, num_tokens)]).logits, logits) < 1e-3


def test_no_tokens_give_no_logits(model):
    empty = np.zeros(0, np.int32)
    batch = ForwardBatch(empty, empty, empty, np.zeros((0, 1), np.int32), empty)
    assert model.forward(batch, Slabs(model)).logits.shape == (0, TINY.vocab_size)


def test_every_row_of_the_outputs_is_written(model):
    ids = prompt(63)
    sequences = Sequences(model, [ids])
    sequences.run([(0, 0, 63)]).logits.fill(np.nan)
    assert np.isfinite(sequences.run([(0, 0, 63)]).logits).all()


def test_only_the_wanted_rows_come_back(model):
    ids = prompt(40)
    sequences = Sequences(model, [ids])
    whole = bits(sequences.run([(0, 0, 40)]).logits)
    rows = np.array([3, 4, 39], np.int32)
    few = sequences.run([(0, 0, 40)], logits_rows=rows, hidden_rows=rows[1:], hidden_layers=(2, 0))
    assert np.array_equal(bits(few.logits), whole[rows])
    assert few.hidden_states.shape == (2, 2, TINY.hidden_size)
    assert sequences.run([(0, 0, 40)], logits_rows=rows[:0]).logits.shape == (0, TINY.vocab_size)


@pytest.mark.parametrize("name", ["llama", "gemma3", "one head of keys for twelve"])
@pytest.mark.parametrize("chunk", [1, 7, 16, 64, 129, 300])
def test_a_prompt_gives_the_same_bits_however_it_is_cut(name, chunk, variant):
    config = CONFIGS[name]
    model = CpuModel(config, random_weights(config), num_threads=2, variant=variant)
    ids = prompt(300)
    whole = bits(Sequences(model, [ids]).run([(0, 0, 300)]).logits)
    cut = Sequences(model, [ids], seed=1)
    parts = [bits(cut.run([(0, a, min(a + chunk, 300))]).logits) for a in range(0, 300, chunk)]
    assert np.array_equal(np.concatenate(parts), whole)
    model.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 280), min_size=2, max_size=8), seed=st.integers(0, 2**32))
def test_a_sequence_gives_the_same_bits_among_any_others(lengths, seed, model):
    rng = np.random.default_rng(seed)
    prompts = [prompt(length, seed=i) for i, length in enumerate(lengths)]
    alone = [bits(Sequences(model, [ids], seed=9).run([(0, 0, len(ids))]).logits) for ids in prompts]
    together, at = Sequences(model, prompts), [0] * len(prompts)
    while any(at[s] < lengths[s] for s in range(len(prompts))):
        steps = rng.choice([0, 1, 1, 5, 33, 280], len(prompts))
        parts = [(s, at[s], min(at[s] + int(step), lengths[s])) for s, step in enumerate(steps)]
        parts = [part for part in parts if part[1] < part[2]]
        if not parts:
            continue
        got, row = bits(together.run(parts).logits), 0
        for s, a, b in parts:
            assert np.array_equal(got[row : row + b - a], alone[s][a:b]), (s, a, b)
            at[s], row = b, row + b - a


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_threads_and_instruction_sets_give_the_same_bits(name, exact):
    config = CONFIGS[name]
    weights, ids, results = random_weights(config), prompt(290), []
    for variant in USABLE:
        for num_threads in (1, 2, 3):
            model = CpuModel(config, weights, num_threads=num_threads, variant=variant, exact=exact)
            sequences = Sequences(model, [ids])
            parts = [(0, 0, 281)] + [(0, i, i + 1) for i in range(281, 290)]
            results.append(np.concatenate([bits(sequences.run([part]).logits) for part in parts]))
            model.close()
    assert all(np.array_equal(result, results[0]) for result in results)


def test_two_models_run_at_once_on_one_pool(model, variant):
    from concurrent.futures import ThreadPoolExecutor

    other = CpuModel(TINY, random_weights(TINY, seed=1), num_threads=2, variant=variant)
    ids = prompt(100)
    runs = [Sequences(model, [ids]), Sequences(other, [ids])]
    alone = [bits(run.run([(0, 0, 100)]).logits) for run in runs]

    def again(run: Sequences) -> list[np.ndarray]:
        return [bits(run.run([(0, 0, 100)]).logits) for _ in range(20)]

    with ThreadPoolExecutor(2) as threads:
        for results, expected in zip(threads.map(again, runs), alone, strict=True):
            assert all(np.array_equal(result, expected) for result in results)
    assert not np.array_equal(alone[0], alone[1])
    other.close()


def test_fast_mode_is_another_result_and_described_as_such(variant):
    weights, ids = random_weights(TINY), prompt(30)
    fast = CpuModel(TINY, weights, num_threads=2, variant=variant, exact=False)
    _, logits = Reference(TINY, weights)(ids)
    assert 1e-3 < relative_error(Sequences(fast, [ids]).run([(0, 0, 30)]).logits, logits) < 5e-2
    assert "approximate" in fast.describe()["activations"]
    fast.close()


def test_the_description_tells_how_each_part_is_held(model, variant):
    described = model.describe()
    assert described["variant"] == variant
    assert described["parts"]["q_proj"]["weights"]["Q8_0"]["held_as"] == "8-bit codes, half scales"
    assert described["parts"]["q_proj"]["kernel"] == f"cpp_{variant}_exact"
    assert described["weight_bytes"] >= 2 * 2**20


def test_the_predicted_workspace_covers_what_is_used(model):
    assert model.workspace_bytes(0, 0) <= model.workspace_bytes(1, 1) < model.workspace_bytes(512, 1)
    assert model.workspace_bytes(8, 8) - model.workspace_bytes(8, 0) >= 8 * TINY.vocab_size * 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 80}, "hidden_size=80 is not a multiple of 32"),
        ({"intermediate_size": 100}, "intermediate_size=100 is not a multiple of 32"),
        ({"head_dim": 24, "num_heads": 8}, "head_dim=24 is not a multiple of 16"),
        ({"head_dim": 272}, "head_dim=272 is not a multiple of 16 up to 256"),
        ({"num_heads": 3, "num_kv_heads": 1, "head_dim": 16}, "num_heads \\* head_dim=48 is not a multiple of 32"),
    ],
)
def test_sizes_without_a_kernel_are_refused_with_the_reason(changes, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        CpuModel(changed(**changes), {})


def test_a_type_without_a_kernel_is_refused_by_name():
    weights = random_weights(TINY, storages=(Q4_1,))
    weights["model.layers.1.mlp.up_proj.weight"].storage = StorageType.F16
    assert can_run(TINY, weights) == "model.layers.1.mlp.up_proj.weight is stored as F16, for which there is no kernel"


def test_a_matrix_of_the_wrong_shape_is_refused():
    weights = random_weights(TINY)
    weights["model.embed_tokens.weight"] = random_weights(changed(vocab_size=100))["model.embed_tokens.weight"]
    with pytest.raises(UnsupportedModel, match=r"embed_tokens.weight has shape \(100, 96\); the config says"):
        CpuModel(TINY, weights)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input_ids", 203, "token id"),
        ("positions", 1024, "position is outside"),
        ("positions", 500, "too short"),
        ("sequence_index", 1, "sequence_index"),
        ("block_tables", 4 * 37, "no slab"),
        ("logits_rows", 1, "logits_rows"),
    ],
)
def test_a_batch_that_would_read_other_memory_is_refused(field, value, message, model):
    one = np.zeros(1, np.int32)
    batch = ForwardBatch(one, one.copy(), one.copy(), np.zeros((1, 1), np.int32), one.copy())
    setattr(batch, field, np.full_like(getattr(batch, field), value))
    with pytest.raises(BraidError, match=message):
        model.forward(batch, Slabs(model))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_wanting_fewer_tokens_changes_no_bit_of_the_others(name, variant):
    config = CONFIGS[name]
    model = CpuModel(config, random_weights(config), num_threads=2, variant=variant)
    prompts, last = [prompt(150, seed=1), prompt(20, seed=2)], config.num_layers
    parts = [(0, 0, 150), (1, 0, 20)]
    everything = np.arange(170, dtype=np.int32)
    whole = Sequences(model, prompts).run(parts, hidden_rows=everything, hidden_layers=(1, last))
    logits, states = bits(whole.logits), bits(whole.hidden_states)
    logits_rows, hidden_rows = np.array([17, 169], np.int32), np.array([0, 17, 140], np.int32)
    few = Sequences(model, prompts).run(
        parts, logits_rows=logits_rows, hidden_rows=hidden_rows, hidden_layers=(last, 1))
    assert np.array_equal(bits(few.logits), logits[logits_rows])
    assert np.array_equal(bits(few.hidden_states), states[::-1, hidden_rows])
    model.close()


def test_a_chunk_that_wants_nothing_still_leaves_its_keys_and_values(model):
    ids = prompt(90)
    whole = bits(Sequences(model, [ids]).run([(0, 0, 90)]).logits)
    cut = Sequences(model, [ids])
    cut.run([(0, 0, 80)], logits_rows=np.zeros(0, np.int32))
    assert np.array_equal(bits(cut.run([(0, 80, 90)]).logits), whole[80:])
