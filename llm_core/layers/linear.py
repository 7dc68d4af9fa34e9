"""A linear layer whose rows do not depend on each other's number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.llm_core.layers.row_buckets import candidate_rows, invariant_buckets, num_trials, split_rows

SharedBuckets = dict[tuple[int, int, bool, int | None], tuple[int, ...]]
"""Buckets already found, by (out_features, in_features, has a bias, max_rows): layers of one shape are tried once."""


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight.T + bias` in calls of bucket size.

    Args:
        weight: (out_features, in_features)
        bias: (out_features,) or None.
        buckets: of `row_buckets.invariant_buckets` for this shape.
    """

    weight: Tensor
    bias: Tensor | None
    buckets: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """(num_rows, in_features) to (num_rows, out_features); num_rows is a multiple of the smallest bucket."""
        if x.shape[0] in self.buckets:
            return functional.linear(x, self.weight, self.bias)
        parts = torch.split_with_sizes(x, split_rows(x.shape[0], self.buckets))
        return torch.cat([functional.linear(part, self.weight, self.bias) for part in parts])


def make_linear(
    weight: Tensor, bias: Tensor | None, shared: SharedBuckets, *, max_rows: int | None = None
) -> Linear:
    """A layer with its buckets, found now unless a layer of this shape is in `shared`.

    Args:
        max_rows: larger buckets are not tried.
    """
    out_features, in_features = weight.shape
    key = (out_features, in_features, bias is not None, max_rows)
    if key not in shared:
        candidates = tuple(n for n in candidate_rows(weight.device) if max_rows is None or n <= max_rows)
        shared[key] = _tried_buckets(weight, bias, candidates)
    return Linear(weight, bias, shared[key])


def _tried_buckets(weight: Tensor, bias: Tensor | None, candidates: tuple[int, ...]) -> tuple[int, ...]:
    """The candidates that pass with random rows, as often as the dtype needs."""
    out_features, in_features = weight.shape
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_trials(candidates[0] * out_features, weight.dtype)):
        rows = torch.randn((candidates[0], in_features), generator=generator).to(weight.device, weight.dtype)
        candidates = invariant_buckets(lambda x: functional.linear(x, weight, bias), rows, candidates)
    return candidates
