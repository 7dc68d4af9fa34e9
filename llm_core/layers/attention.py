"""Attention over paged keys and values: gather, score, sum; by the index arrays of an `AttentionPlan`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid.llm_core.layers.attention_plan import BLOCK_TOKENS, AttentionPlan, Group, SlabRows
from braid.llm_core.layers.block_products import BlockProducts
from braid.llm_core.layers.kv_layout import KVLayout


def write_kv(
    keys_values: Tensor, slabs: Sequence[Tensor], writes: Sequence[SlabRows], layout: KVLayout, layer: int
) -> None:
    """Store new tokens in their pages.

    Args:
        keys_values: (num_tokens, 2 * num_kv_heads, head_dim) keys of all heads, then values.
        writes: of `Planner.writes`.
    """
    rows = keys_values.reshape(-1, layout.head_dim)
    for write in writes:
        source = rows if write.places is None else rows.index_select(0, write.places)
        layout.rows_by_token(slabs[write.slab], layer).index_copy_(0, write.rows, source)


def attend(
    queries: Tensor, slabs: Sequence[Tensor], plan: AttentionPlan, layout: KVLayout, layer: int, products: BlockProducts
) -> Tensor:
    """Softmax attention of each query head over the keys that the plan lets it see.

    Args:
        queries: (num_tokens, num_heads, head_dim), scaled.
    Returns:
        (num_tokens, num_heads * head_dim) float32.
    """
    rows = queries.reshape(-1, layout.head_dim)
    results = [_attend_group(rows, slabs, group, layout, layer, products) for group in plan.groups]
    gathered = results[0] if len(results) == 1 else torch.cat(results)
    return gathered.index_select(0, plan.outputs).view(queries.shape[0], -1)


def _attend_group(
    rows: Tensor, slabs: Sequence[Tensor], group: Group, layout: KVLayout, layer: int, products: BlockProducts
) -> Tensor:
    """(B * H * R, head_dim) results of one group."""
    head_dim = layout.head_dim
    keys, values = _gather(slabs, group, layout, layer)
    queries = rows.index_select(0, group.queries).view(-1, group.num_rows, head_dim)
    scores = products.scores(queries, keys)  # (B * H * N, R, BLOCK_TOKENS)
    by_head = scores.view(group.num_tiles, -1, group.num_blocks, group.num_rows, BLOCK_TOKENS)
    by_head.add_(group.mask)
    probabilities = by_head.sub_(by_head.amax((2, 4), keepdim=True)).exp_()
    weights = probabilities.view(-1, group.num_rows, BLOCK_TOKENS)
    totals = add_pairwise(products.totals(weights).view(-1, group.num_blocks, group.num_rows, 1))
    sums = products.sums(weights, values).view(-1, group.num_blocks, group.num_rows, head_dim)
    return add_pairwise(sums).div(totals).view(-1, head_dim)


def _gather(slabs: Sequence[Tensor], group: Group, layout: KVLayout, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values, (B * H * N, BLOCK_TOKENS, head_dim) each, zero where nothing has been written."""
    reads = group.pages
    if len(reads) == 1:
        gathered = layout.rows_by_page(slabs[reads[0].slab], layer).index_select(0, reads[0].rows)
    else:
        parts = [layout.rows_by_page(slabs[read.slab], layer).index_select(0, read.rows) for read in reads]
        gathered = parts[0].new_empty((sum(len(part) for part in parts), parts[0].shape[1]))
        for read, part in zip(reads, parts, strict=True):
            assert read.places is not None
            gathered.index_copy_(0, read.places, part)
    gathered.view(-1, layout.head_dim).index_fill_(0, group.unwritten, 0)
    keys, values = gathered.view(2, -1, BLOCK_TOKENS, layout.head_dim)
    return keys, values


def add_pairwise(blocks: Tensor) -> Tensor:
    """Sum over dimension 1 as a binary tree from its first entry: trailing zeros do not change a bit. In place.

    Args:
        blocks: (batch, num_blocks, ...); destroyed.
    Returns:
        (batch, ...)
    """
    num_blocks = blocks.shape[1]
    step = 1
    while step < num_blocks:
        blocks[:, : num_blocks - step : 2 * step] += blocks[:, step :: 2 * step]
        step *= 2
    return blocks[:, 0]
