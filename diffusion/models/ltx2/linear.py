"""Linear layers of the transformer: plain, with fp8 weights that are upcast, and with fp8 weights and activations.

Which of them a layer is follows from its tensors: a float8 weight with `weight_scale` and `input_scale` is multiplied
in fp8; one without scales is upcast for each call. Source: specs of LTX-2, section g.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from braid.errors import ModelFileError

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
MIN_ROWS = 4
"""Products of fewer rows take other kernels with other bits (measured with float32 on a CPU), so rows are added."""


class Linear(Protocol):
    """`x @ weight.T + bias` for any number of leading dimensions."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """Weight and bias in the dtype of the activations."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear_of_enough_rows(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Fp8CastLinear:
    """Weight (and bias, where it is fp8 too) without a scale, upcast to the dtype of the activations in each call."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear_of_enough_rows(x, self.weight.to(x.dtype), bias)


@dataclass(frozen=True, slots=True)
class Fp8ScaledLinear:
    """Both sides of the product in fp8 with one scale each; that of the activations is fixed beforehand."""

    weight: Tensor
    """(out_features, in_features) e4m3."""
    bias: Tensor | None
    weight_scale: Tensor
    """One float32, by which the stored weight is multiplied."""
    input_scale: Tensor
    """One float32, by which activations are divided."""

    def __call__(self, x: Tensor) -> Tensor:
        quantised = quantise(x.flatten(0, -2), self.input_scale)
        scales = (self.input_scale.float().reshape(()), self.weight_scale.float().reshape(()))
        product = _scaled_product if _has_scaled_mm(self.weight) else _plain_product
        y = product(quantised, self.weight, *scales, x.dtype)
        y = y if self.bias is None else y + self.bias.to(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


def make_linear(weights: Mapping[str, Tensor], name: str) -> Linear:
    """The layer called `name`.

    Raises:
        ModelFileError: the weight is missing, or only one of the two scales of an fp8 layer is there.
    """
    if f"{name}.weight" not in weights:
        raise ModelFileError(f"{name}.weight is missing from the transformer's weights")
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    if weight.dtype != FP8:
        return PlainLinear(weight, bias)
    scales = [weights.get(f"{name}.{kind}") for kind in ("weight_scale", "input_scale")]
    match scales:
        case [None, None]:
            return Fp8CastLinear(weight, bias)
        case [Tensor() as weight_scale, Tensor() as input_scale]:
            return Fp8ScaledLinear(weight, bias, weight_scale, input_scale)
    raise ModelFileError(f"{name} has only one of weight_scale and input_scale; an fp8 layer has both or neither")


def linear_of_enough_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`functional.linear` which never multiplies fewer than `MIN_ROWS` rows."""
    num_rows = x.shape[:-1].numel()
    if num_rows >= MIN_ROWS or num_rows == 0:
        return functional.linear(x, weight, bias)
    padded = functional.pad(x.reshape(num_rows, -1), (0, 0, 0, MIN_ROWS - num_rows))
    return functional.linear(padded, weight, bias)[:num_rows].reshape(*x.shape[:-1], -1)


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """To e4m3 with a given scale: divided in float32, rounded to the dtype of x, clamped, cast.

    Without the clamp a value beyond 448 scales becomes NaN and the video black.
    """
    return (x.float() / scale.float()).to(x.dtype).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def _has_scaled_mm(weight: Tensor) -> bool:
    """Whether the device multiplies fp8 matrices of this shape itself: NVIDIA from Ada on, in multiples of 16."""
    if weight.device.type != "cuda" or weight.shape[0] % 16 or weight.shape[1] % 16:
        return False
    return torch.cuda.get_device_capability(weight.device) >= (8, 9)


def _scaled_product(x: Tensor, weight: Tensor, input_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    product = torch._scaled_mm(x, weight.t(), scale_a=input_scale, scale_b=weight_scale, out_dtype=torch.bfloat16)
    return product.to(dtype)


def _plain_product(x: Tensor, weight: Tensor, input_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `_scaled_mm` computes, with sums in float32."""
    product = linear_of_enough_rows(x.float(), weight.float(), None) * (input_scale * weight_scale)
    return product.to(dtype)
