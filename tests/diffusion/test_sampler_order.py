"""Measured orders of convergence, on the stiff linear equation of `benchmarks/sampler_order.py`."""

import pytest

from braid.benchmarks.sampler_order import SAMPLERS, error, orders


@pytest.mark.parametrize(("name", "order"), [("res_2s", 2.0), ("euler", 1.0)])
def test_the_error_on_a_stiff_linear_equation_falls_with_the_order_of_the_sampler(name: str, order: float) -> None:
    errors = [error(SAMPLERS[name], num_steps) for num_steps in (1024, 2048)]
    assert errors[1] < 0.02
    assert orders(errors) == pytest.approx([order], abs=0.1)
