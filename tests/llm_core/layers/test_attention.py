"""Sums do not depend on trailing zeros, and plans on a small budget attend like those on a large one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from braid.llm_core.layers.attention import add_pairwise, attend, write_kv
from braid.llm_core.layers.attention_plan import BLOCK_TOKENS, PlanLimits, Planner
from braid.llm_core.layers.block_products import CpuProducts, GpuProducts
from braid.llm_core.layers.kv_layout import PAGE_TOKENS, KVLayout
from braid.llm_core.models.model import ForwardBatch

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=16, dtype=torch.float32)
NUM_HEADS = 6
SIZES = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5, 8, 13])
def test_trailing_zero_blocks_change_no_bit_of_a_pairwise_sum(num_blocks):
    blocks = torch.randn(3, num_blocks, 4, 5)
    expected = add_pairwise(blocks.clone())
    torch.testing.assert_close(expected, blocks.sum(1))
    for extra in (1, 2, 7):
        longer = torch.cat((blocks, torch.zeros(3, extra, 4, 5)), 1)
        assert torch.equal(add_pairwise(longer), expected)


@pytest.mark.parametrize("shift", [4, 8])
def test_leading_zero_blocks_change_no_bit_if_they_are_a_whole_subtree(shift):
    """What lets a sliding layer begin to count its blocks late."""
    blocks = torch.randn(2, 7, 3, 5)
    longer = torch.cat((torch.zeros(2, shift, 3, 5), blocks), 1)
    assert torch.equal(add_pairwise(longer), add_pairwise(blocks.clone()))


def _planner(window=None, limits=None):
    limits = limits or PlanLimits(row_tile=8, tile_tokens=SIZES, group_bytes=8 << 20)
    return Planner(LAYOUT, num_heads=NUM_HEADS, window=window, limits=limits, device=torch.device("cpu"))


def _batch(starts, counts, num_pages):
    """Sequences with pages of their own, drawn at random."""
    lengths = [start + count for start, count in zip(starts, counts, strict=True)]
    order = iter(np.random.default_rng(1).permutation(num_pages).tolist())
    width = max(lengths) // PAGE_TOKENS + 1
    tables = [[next(order) if p * PAGE_TOKENS < n else -1 for p in range(width)] for n in lengths]
    positions = [np.arange(start, n) for start, n in zip(starts, lengths, strict=True)]
    num_tokens = sum(counts)
    return ForwardBatch(
        input_ids=np.zeros(num_tokens, np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        sequence_index=np.repeat(np.arange(len(counts)), counts).astype(np.int32),
        block_tables=np.array(tables, np.int32),
        logits_rows=np.zeros(0, np.int32),
    )


def _attended(planner, products=None, lengths=(300, 70, 5), new=(100, 1, 5)):
    """Attention of the last `new` positions of sequences, and the same by torch's own."""
    slabs = [torch.full((10, LAYOUT.page_bytes), 255, dtype=torch.uint8) for _ in range(4)]
    torch.manual_seed(0)
    keys_values = torch.randn(sum(lengths), 2 * LAYOUT.num_kv_heads, LAYOUT.head_dim)
    whole = _batch((0,) * len(lengths), lengths, 40)
    write_kv(keys_values, slabs, planner.writes(whole, 10), LAYOUT, 1)
    queries = torch.randn(sum(new) + 3, NUM_HEADS, LAYOUT.head_dim)
    batch = _batch(tuple(a - b for a, b in zip(lengths, new, strict=True)), new, 40)
    batch.block_tables[:] = whole.block_tables
    plan = planner.plan(batch, num_padded=len(queries), pages_per_slab=10)
    return attend(queries, slabs, plan, LAYOUT, 1, products or CpuProducts())[:-3], queries[:-3], keys_values, plan


def _expected(queries, keys_values, window, lengths=(300, 70, 5), new=(100, 1, 5)):
    results = []
    for q, kv, n in zip(queries.split(new), keys_values.split(lengths), new, strict=True):
        keys, values = kv.repeat_interleave(NUM_HEADS // LAYOUT.num_kv_heads, 1).transpose(0, 1).chunk(2)
        key, query = torch.arange(len(kv)), torch.arange(len(kv) - n, len(kv))[:, None]
        seen = (key <= query) & (key > query - (window or len(kv)))
        result = functional.scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=seen, scale=1.0)
        results.append(result.transpose(0, 1).flatten(1))
    return torch.cat(results)


@pytest.mark.parametrize("window", [None, 1, 24, 64, 100, 1000])
def test_attention_over_pages_full_of_nan_is_that_of_torch(window):
    result, queries, keys_values, _ = _attended(_planner(window))
    torch.testing.assert_close(result, _expected(queries, keys_values, window), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 24, 100])
def test_the_size_of_tiles_and_groups_changes_no_bit(window):
    expected, *_, whole = _attended(_planner(window))
    for sizes, group_bytes in ((SIZES, 1), ((16,), 8 << 20), ((1,), 300_000)):
        limits = PlanLimits(row_tile=8, tile_tokens=sizes, group_bytes=group_bytes)
        result, *_, plan = _attended(_planner(window, limits))
        assert torch.equal(result, expected)
        assert len(plan.groups) > len(whole.groups) or sizes == (16,)


def test_a_sliding_layer_does_not_read_what_nobody_sees():
    *_, plan = _attended(_planner(32), lengths=(600,), new=(1,))
    assert sum(group.num_blocks for group in plan.groups) <= 2
    *_, plan = _attended(_planner(None), lengths=(600,), new=(1,))
    assert sum(group.num_blocks for group in plan.groups) == -(-600 // BLOCK_TOKENS)


def test_products_of_one_batch_size_are_those_of_many():
    result, queries, keys_values, _ = _attended(_planner(), GpuProducts())
    torch.testing.assert_close(result, _expected(queries, keys_values, None), atol=1e-5, rtol=1e-5)
