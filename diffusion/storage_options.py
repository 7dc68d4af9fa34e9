"""How a model's weights are kept where there is little memory, as a person says it."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from braid.diffusion.memory_plan import Offload
from braid.errors import InvalidRequest

Choice = TypeVar("Choice", bound=StrEnum)


class Quantization(StrEnum):
    """Other ways to store the transformer than its files do."""

    FP8_CAST = "fp8-cast"
    """The blocks' large products in 8 bits: half the memory of bfloat16, and other results."""


def read_offload(value: str) -> Offload:
    """Raises: InvalidRequest: there is no such way."""
    return _choice(Offload, "offload", value)


def read_quantization(value: str | None) -> Quantization | None:
    """Raises: InvalidRequest: there is no such way."""
    return None if value is None else _choice(Quantization, "quantization", value)


def _choice(options: type[Choice], param: str, value: str) -> Choice:
    try:
        return options(value)
    except ValueError:
        raise InvalidRequest(f"{param}={value!r} must be one of {', '.join(options)}", param=param) from None
