"""Rows of a linear layer do not depend on how many they are; the buckets that promise it are found by trying."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from braid.llm_core.layers.linear import make_linear
from braid.llm_core.layers.row_buckets import CPU_ROWS, invariant_buckets, padded, split_rows


def test_a_size_whose_rows_differ_is_no_bucket():
    def product(x):
        return x * (1 + 1e-6 * (len(x) == 24))

    assert invariant_buckets(product, torch.ones(8, 3), (8, 16, 24, 32)) == (8, 16, 32)


def test_a_size_that_differs_in_one_row_is_no_bucket():
    def product(x):
        y = x.clone()
        y[15:16] += len(x) == 16
        return y

    assert invariant_buckets(product, torch.ones(8, 3), (8, 16, 32)) == (8, 32)


def test_a_difference_that_rounding_to_bfloat16_mostly_hides_is_found(monkeypatch):
    def product(x, weight, bias):
        return (x.double() @ weight.double().T * (1 + 1e-6 * (len(x) == 24))).to(x.dtype)

    monkeypatch.setattr("braid.llm_core.layers.linear.functional.linear", product)
    torch.manual_seed(0)
    buckets = make_linear(torch.randn(64, 48).bfloat16(), None, {}, max_rows=40).buckets
    assert buckets == (8, 16, 32, 40)


@given(st.integers(0, 3000), st.sets(st.sampled_from(CPU_ROWS[1:])))
def test_calls_are_buckets_and_make_up_all_rows(num_rows, others):
    buckets = (8, *sorted(others))
    sizes = split_rows(padded(num_rows, 8), buckets)
    assert sum(sizes) == padded(num_rows, 8)
    assert set(sizes) <= set(buckets)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("out_features", "in_features"), [(96, 40), (37, 51), (960, 576)])
def test_a_row_has_the_same_bits_in_any_number_of_rows(out_features, in_features, has_bias):
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features)
    layer = make_linear(weight, torch.randn(out_features) if has_bias else None, {})
    x = torch.randn(1100, in_features)
    with torch.inference_mode():
        whole = layer(x[:1096])
        torch.testing.assert_close(whole, functional.linear(x[:1096], weight, layer.bias))
        for start, count in ((0, 8), (3, 8), (11, 16), (100, 40), (1, 72), (7, 104), (5, 520)):
            assert torch.equal(layer(x[start : start + count].clone()), whole[start : start + count])


def test_layers_of_one_shape_are_tried_once_and_never_above_max_rows():
    shared = {}
    first = make_linear(torch.randn(16, 24), None, shared, max_rows=64)
    shared[16, 24, False, 64] = (8,)
    assert make_linear(torch.randn(16, 24), None, shared, max_rows=64).buckets == (8,)
    assert max(first.buckets) <= 64
