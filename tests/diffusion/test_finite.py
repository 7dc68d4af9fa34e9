from __future__ import annotations

import pytest
import torch

from braid.diffusion.finite import NotFinite, require_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_is_found_anywhere(bad: float, dtype: torch.dtype) -> None:
    for place in (0, 63, 256):
        values = torch.linspace(-3, 3, 257).to(dtype)
        require_finite("numbers", values)
        values[place] = bad
        with pytest.raises(NotFinite, match="numbers are not finite"):
            require_finite("numbers", values)


def test_nothing_is_finite() -> None:
    require_finite("no frames", torch.empty(1, 3, 0, 4, 4))
