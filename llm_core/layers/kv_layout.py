"""How keys and values lie in a page: (num_layers, key or value, num_kv_heads, page_tokens, head_dim) numbers.

A slab is read as rows of two lengths. A *page row* is one head's keys (or values) of all positions of a page; attention
gathers those. A *token row* is one head's key (or value) of one position; new tokens are written as those.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class KVLayout:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def heads_per_layer(self) -> int:
        """Page rows of one layer in one page: the keys of all heads, then the values."""
        return 2 * self.num_kv_heads

    @property
    def page_rows(self) -> int:
        """Page rows in one page."""
        return self.num_layers * self.heads_per_layer

    @property
    def page_bytes(self) -> int:
        return self.page_rows * PAGE_TOKENS * self.head_dim * self.dtype.itemsize

    def rows_by_page(self, slab: Tensor, layer: int) -> Tensor:
        """Rows (n, page_tokens * head_dim) that begin with `layer` of the slab's first page: index
        `page * page_rows + head` is head `head` of this layer in `page`."""
        rows = slab.view(-1).view(self.dtype).view(-1, PAGE_TOKENS * self.head_dim)
        return rows[layer * self.heads_per_layer :]

    def rows_by_token(self, slab: Tensor, layer: int) -> Tensor:
        """Rows (n, head_dim) that begin with `layer` of the slab's first page: index
        `(page * page_rows + head) * page_tokens + offset`."""
        rows = slab.view(-1).view(self.dtype).view(-1, self.head_dim)
        return rows[layer * self.heads_per_layer * PAGE_TOKENS :]
