"""The operations that models call, as plain PyTorch: each function here is the specification of its faster kernels.

Arithmetic is float32 inside, cast back once. Callers hold an `Ops`, bound to a device and a preference, and write
`ops.rms_norm(x, weight)`; which kernel that is was decided by the registry at the first such call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.kernels.cpu.library import VARIANTS, reasons_against
from braid.kernels.cpu.sampling import CpuSampler
from braid.kernels.registry import AUTO, REFERENCE, Facts, Kernel, Refusal, Registry, Selection
from braid.kernels.sampling import FloatArray, SampledToken, SampleRow, sample

MIN_GEMM_ROWS = 4
"""Float32 products of 1 to 3 rows differ in their last bits from those of 4 and more, so a token alone would not get
the bits that it gets in a batch."""


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, weight_offset: float = 0.0) -> Tensor:
    """Scale each row to unit root mean square, then by `weight_offset + weight`.

    Args:
        x: (..., width); the result has its dtype.
        weight: (width,)
        weight_offset: 1 for Gemma, whose files store the weight minus one.
    """
    x32 = x.float()
    inverse_rms = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (x32 * inverse_rms * (weight.float() + weight_offset)).to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, elementwise: the gate of Llama's feed-forward."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    """`gelu(gate) * up` with the tanh approximation, elementwise: the gate of Gemma's feed-forward."""
    return (functional.gelu(gate.float(), approximate="tanh") * up.float()).to(gate.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate pairs of a head's channels by an angle that grows with the position.

    Args:
        x: (num_tokens, num_heads, head_dim)
        cos, sin: (num_tokens, rotary_dim / 2) of each token's angles; channels from `rotary_dim` on stay as they are.
        interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, rotary_dim / 2), (1, rotary_dim / 2 + 1), ...
    """
    half = cos.shape[-1]
    rotary, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if interleaved:
        first, second = rotary[..., ::2], rotary[..., 1::2]  # (num_tokens, num_heads, half) each
    else:
        first, second = rotary.chunk(2, -1)
    cos32, sin32 = cos.float().unsqueeze(-2), sin.float().unsqueeze(-2)  # (num_tokens, 1, half)
    turned = first * cos32 - second * sin32, second * cos32 + first * sin32
    rotated = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((rotated.to(x.dtype), rest), -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, the same bits for a row whatever rows stand beside it.

    Args:
        x: (num_tokens, in_features)
        weight: (out_features, in_features), of x's dtype.
    """
    missing = MIN_GEMM_ROWS - x.shape[0]
    if missing <= 0:
        return functional.linear(x, weight, bias)
    return functional.linear(functional.pad(x, (0, 0, 0, missing)), weight, bias)[: x.shape[0]]


def quantized_linear(x: Tensor, quants: Tensor, scales: Tensor, minimums: Tensor | None = None) -> Tensor:
    """`x @ weight.T` with `weight = quants * scales + minimums`, computed in float32.

    Args:
        x: (num_tokens, in_features); the result has its dtype.
        quants: (out_features, in_features) integers.
        scales, minimums: (out_features, in_features / block_size), one per block along a row.
    """
    blocks = quants.float().reshape(*scales.shape, -1) * scales.float().unsqueeze(-1)
    if minimums is not None:
        blocks = blocks + minimums.float().unsqueeze(-1)
    return linear(x.float(), blocks.flatten(-2)).to(x.dtype)


REFERENCES: dict[str, Callable[..., Any]] = {
    "rms_norm": rms_norm,
    "silu_mul": silu_mul,
    "gelu_tanh_mul": gelu_tanh_mul,
    "rope": rope,
    "linear": linear,
    "quantized_linear": quantized_linear,
    "sample": sample,
}
CPU_PREFIX = "cpu_"
_PREFERENCES = {None: AUTO, "cpp": AUTO} | {variant.name: CPU_PREFIX + variant.name for variant in VARIANTS}
"""How people name what they want, where it is not a backend's name."""


def reference_registry() -> Registry:
    """The specifications alone."""
    return Registry(Kernel(op, REFERENCE, target) for op, target in REFERENCES.items())


def machine_registry() -> Registry:
    """The specifications and every faster kernel that there is, with this machine's reasons against some.

    The C++ sampler serves every device: a GPU's logits are copied to the host, which is where the token is needed.
    """
    registry, reasons = reference_registry(), reasons_against()
    for priority, variant in enumerate(reversed(VARIANTS), 1):

        def accepts(_facts: Facts, reason: str | None = reasons[variant.name]) -> str | None:
            return reason

        backend, make = CPU_PREFIX + variant.name, partial(CpuSampler, variant.path)
        registry.add(Kernel("sample", backend, make, accepts, priority, is_maker=True))
    return registry


@dataclass(frozen=True, slots=True)
class OpReport:
    """One line of `braid kernels`."""

    op: str
    backend: str
    refused: tuple[Refusal, ...]


class Ops:
    """The operations on one device. A decision is made once for each kind of call and then kept.

    Args:
        device: `cpu`, `cuda`, `cuda:1`.
        prefer: `auto` (or None, or `cpp`), `torch` for the specifications everywhere, or a backend to try first: by its
            whole name (`cpu_avx2`) or its instruction set's (`avx2`).
        registry: what to choose from; `machine_registry()` if None.
    Raises:
        InvalidRequest: `prefer` is no backend of the registry.
    """

    def __init__(self, device: str = "cpu", prefer: str | None = AUTO, *, registry: Registry | None = None) -> None:
        self.device = device.partition(":")[0]
        self.prefer = _PREFERENCES.get(prefer, prefer)
        self._registry = machine_registry() if registry is None else registry
        self._registry.check_preference(self.prefer)
        self._loaded: dict[tuple[str, torch.dtype, int], Callable[..., Any]] = {}

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float = 1e-6, weight_offset: float = 0.0) -> Tensor:
        return self._tensor_kernel("rms_norm", x)(x, weight, eps, weight_offset)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._tensor_kernel("silu_mul", gate)(gate, up)

    def gelu_tanh_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._tensor_kernel("gelu_tanh_mul", gate)(gate, up)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
        return self._tensor_kernel("rope", x)(x, cos, sin, interleaved)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._tensor_kernel("linear", x)(x, weight, bias)

    def quantized_linear(self, x: Tensor, quants: Tensor, scales: Tensor, minimums: Tensor | None = None) -> Tensor:
        return self._tensor_kernel("quantized_linear", x)(x, quants, scales, minimums)

    def sample(self, logits: Tensor | FloatArray, rows: list[SampleRow]) -> list[SampledToken]:
        """See `kernels.sampling.SampleKernel`."""
        tokens: list[SampledToken] = self._kernel("sample", torch.float32, logits.shape[-1])(logits, rows)
        return tokens

    def select(self, op: str, facts: Facts | None = None) -> Selection:
        """The registry's choice for this device and preference; float32 of any width if `facts` is None."""
        return self._registry.select(op, facts or Facts(self.device), self.prefer)

    def describe(self) -> list[OpReport]:
        """For each operation in float32: what was chosen, and what was refused for which reason."""
        chosen = ((op, self.select(op)) for op in self._registry)
        return [OpReport(op, selection.kernel.backend, selection.refused) for op, selection in chosen]

    def _tensor_kernel(self, op: str, x: Tensor) -> Callable[..., Tensor]:
        return self._kernel(op, x.dtype, x.shape[-1])

    def _kernel(self, op: str, dtype: torch.dtype, width: int) -> Callable[..., Any]:
        kernel = self._loaded.get((op, dtype, width))
        if kernel is None:
            facts = Facts(self.device, dtype=str(dtype).removeprefix("torch."), width=width)
            kernel = self._loaded[op, dtype, width] = self.select(op, facts).kernel.load()
        return kernel
