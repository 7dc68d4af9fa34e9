"""The operations that models call, as plain PyTorch: each function here is the specification of its faster kernels.

Arithmetic is float32 inside, cast back once, and a number's bits depend neither on where it stands in a tensor nor on
what stands beside it; a faster kernel keeps that too. Callers hold an `Ops`, bound to a device and a preference, and
write `ops.rms_norm(x, weight)`; which kernel that is was decided by the registry at the first such call.

Matrix products and attention are not here: whether their bits hold depends on shapes, which `llm_core.layers` minds.
"""

from __future__ import annotations

import math
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

GELU_CUBIC = 0.044715
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale each row to a root mean square of one, then by `weight`.

    One fused call of torch: written out it would be six, and a decode step of a small model is made of calls.

    Args:
        x: (..., width); the result has its dtype.
        weight: (width,), any offset already added.
    """
    return functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`: the gate of Llama's feed-forward. Views of one fused product are fine."""
    gate32 = gate.float()
    return _times_sigmoid(gate32 * up, gate32.neg()).to(gate.dtype)


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    """`gelu(gate) * up` with the tanh approximation: the gate of Gemma's feed-forward.

    (1 + tanh(u)) / 2 = sigmoid(2 u), so this gate too is a product with a sigmoid.
    """
    gate32 = gate.float()
    cubic = (gate32 * gate32).mul_(gate32).mul_(GELU_CUBIC)
    return _times_sigmoid(gate32 * up, cubic.add_(gate32).mul_(-GELU_SLOPE)).to(gate.dtype)


def _times_sigmoid(x: Tensor, negative_logit: Tensor) -> Tensor:
    """`x * sigmoid(-negative_logit)`; overwrites both.

    Not `torch.sigmoid`, `silu` or `gelu`: on a CPU those compute the last few numbers of each thread's share with
    another exponential than the rest (4 numbers in 100 differ between the two), so a token's bits would depend on how
    many tokens stand beside it. `exp` has one path for all; see docs/numerics.md.
    """
    return x.div_(negative_logit.exp_().add_(1.0))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channels (i, i + head_dim / 2) of each head by their angle i.

    Args:
        x: (num_tokens, num_heads, head_dim)
        cos: (num_tokens, 1, head_dim) float32 cosines of the angles, twice one after the other.
        sin: likewise their sines, the first half negated.
    Returns:
        float32, of x's shape: queries are yet to be scaled before they are rounded.
    """
    first, second = x.float().chunk(2, -1)
    return torch.cat((second, first), -1).mul_(sin).add_(x * cos)


REFERENCES: dict[str, Callable[..., Any]] = {
    "rms_norm": rms_norm,
    "silu_mul": silu_mul,
    "gelu_tanh_mul": gelu_tanh_mul,
    "rope": rope,
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

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
        return self._tensor_kernel("rms_norm", x)(x, weight, eps)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._tensor_kernel("silu_mul", gate)(gate, up)

    def gelu_tanh_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._tensor_kernel("gelu_tanh_mul", gate)(gate, up)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self._tensor_kernel("rope", x)(x, cos, sin)

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
