"""The large products of the blocks stored in 8 bits: half the memory of bfloat16, and other results.

Opt-in. Weights and biases become e4m3 without a scale and are upcast again in each product (`linear.Fp8CastLinear`),
so that each weight is off by up to 1/16 of itself, and those below 2^-9 by up to 2^-10. docs/memory.md says what it
does to an estimate.

Source: specs of LTX-2, section g, fp8-cast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from braid.diffusion.models.ltx2.linear import FP8, FP8_MAX

_CAST = re.compile(
    r"transformer_blocks\.\d+\.(.+\.(to_q|to_k|to_v|to_out\.0)|(audio_)?ff\.net\.(0\.proj|2))\.(weight|bias)"
)


def is_cast(name: str) -> bool:
    """Whether a tensor of the transformer, by official name without prefix, is stored in 8 bits."""
    return _CAST.fullmatch(name) is not None


def fp8_cast(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, those of large products as e4m3; all others are shared.

    Args:
        weights: of the transformer. Those in fp8 must be without scales: a file's scales are multiplied in when it is
            loaded (`LTX2Checkpoint.weights` without `keep_float8`).
    Raises:
        ValueError: a weight that would be cast has a scale.
    """
    for name in weights:
        if name.endswith("_scale") and is_cast(name.rpartition(".")[0] + ".weight"):
            raise ValueError(f"{name}: weights with scales must be multiplied with them before they are cast")
    return {name: _cast(tensor) if is_cast(name) else tensor for name, tensor in weights.items()}


def _cast(tensor: Tensor) -> Tensor:
    """Rounded to the nearest; what is beyond the range of e4m3 stays at its end and does not become NaN."""
    if tensor.dtype == FP8:
        return tensor
    return tensor.clamp(-FP8_MAX, FP8_MAX).to(FP8)
