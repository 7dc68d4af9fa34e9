from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from braid.errors import InvalidRequest
from braid.kernels import ops as specifications
from braid.kernels.ops import Ops, reference_registry
from braid.kernels.registry import Facts, Kernel, Refusal, Registry
from braid.kernels.sampling import SampleRow

ROOT = Path(specifications.__file__).resolve().parents[1]


def double(x: float) -> float:
    return 2 * x


def only_narrow(facts: Facts) -> str | None:
    return None if facts.width <= 64 else f"width {facts.width} is over 64"


def registry() -> Registry:
    return Registry(
        [
            Kernel("scale", "torch", double),
            Kernel("scale", "cpu_avx2", double, only_narrow, priority=10),
            Kernel("scale", "cpu_avx512_vnni", double, lambda _: "the CPU has no AVX512-VNNI", priority=20),
        ]
    )


def test_the_fastest_kernel_that_accepts_is_chosen_and_the_refused_say_why() -> None:
    selection = registry().select("scale", Facts("cpu", width=64))
    assert selection.kernel.backend == "cpu_avx2"
    assert selection.refused == (Refusal("cpu_avx512_vnni", "the CPU has no AVX512-VNNI"),)


def test_the_reference_takes_what_all_others_refuse() -> None:
    selection = registry().select("scale", Facts("cpu", width=65))
    assert selection.kernel.backend == "torch"
    assert selection.refused[1] == Refusal("cpu_avx2", "width 65 is over 64")


def test_preferring_torch_forces_the_reference_without_asking_others() -> None:
    selection = registry().select("scale", Facts("cpu", width=8), prefer="torch")
    assert selection.kernel.backend == "torch"
    assert selection.refused == ()


def test_a_preferred_backend_is_tried_before_faster_ones() -> None:
    tried = registry()
    tried.add(Kernel("scale", "triton", double, priority=1))
    assert tried.select("scale", Facts("cpu"), prefer="triton").kernel.backend == "triton"
    assert tried.select("scale", Facts("cpu"), prefer="auto").kernel.backend == "cpu_avx2"


def test_an_unknown_preference_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"kernels='cuda' .* auto, cpu_avx2, cpu_avx512_vnni, torch"):
        registry().select("scale", Facts("cpu"), prefer="cuda")
    with pytest.raises(InvalidRequest, match="kernels='fast'"):
        Ops(prefer="fast")


def test_nothing_accepting_is_an_error_with_every_reason() -> None:
    lone = Registry([Kernel("scale", "triton", double, lambda _: "needs a GPU")])
    with pytest.raises(InvalidRequest, match="triton: needs a GPU"):
        lone.select("scale", Facts("cpu"))


def test_a_second_kernel_of_one_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="already has a kernel of backend 'torch'"):
        registry().add(Kernel("scale", "torch", double))


def test_a_lazy_target_is_imported_only_when_chosen() -> None:
    missing = Kernel("scale", "triton", "braid.kernels.not_there:scale", priority=5)
    lazy = Registry([Kernel("scale", "torch", "operator:neg"), missing])
    assert lazy.select("scale", Facts("cpu"), prefer="torch").kernel.load()(3) == -3
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        lazy.select("scale", Facts("cpu")).kernel.load()


def test_a_maker_gives_each_caller_a_kernel_of_its_own() -> None:
    kernel = Kernel("scale", "torch", lambda: lambda x: 3 * x, is_maker=True)
    assert kernel.load()(2) == 6
    assert kernel.load() is not kernel.load()


def test_ops_decide_once_for_each_kind_of_call() -> None:
    asked = []

    def accepts(facts: Facts) -> str | None:
        asked.append(facts)
        return None

    chosen = reference_registry()
    chosen.add(Kernel("silu_mul", "counted", lambda gate, up: gate + up, accepts, priority=1))
    ops, x = Ops(registry=chosen), torch.ones(2, 8)
    assert torch.equal(ops.silu_mul(x, x), x + x)
    ops.silu_mul(x, x)
    ops.silu_mul(x.bfloat16(), x.bfloat16())
    assert asked == [Facts("cpu", "float32", width=8), Facts("cpu", "bfloat16", width=8)]
    assert torch.equal(Ops(prefer="torch", registry=chosen).silu_mul(x, x), specifications.silu_mul(x, x))


def test_describe_lists_each_op_with_its_backend_and_refusals() -> None:
    chosen = reference_registry()
    chosen.add(Kernel("rope", "triton", double, lambda facts: f"device is {facts.device}", priority=1))
    reports = {report.op: report for report in Ops("cpu", registry=chosen).describe()}
    assert set(reports) == set(specifications.REFERENCES)
    assert reports["rope"].backend == "torch"
    assert reports["rope"].refused == (Refusal("triton", "device is cpu"),)


def test_the_machines_registry_has_a_sampler_or_says_why_not() -> None:
    report = next(report for report in Ops().describe() if report.op == "sample")
    backends = [report.backend, *(refusal.backend for refusal in report.refused)]
    assert backends == ["cpu_avx512_vnni", "cpu_avx2", "torch"][: len(backends)]
    assert all("the processor lacks" in r.reason or "was not compiled" in r.reason for r in report.refused)


@pytest.mark.parametrize(
    ("name", "backend"), [("avx2", "cpu_avx2"), ("cpp", "auto"), (None, "auto"), ("torch", "torch")]
)
def test_people_may_name_an_instruction_set(name: str | None, backend: str) -> None:
    assert Ops("cpu", name).prefer == backend


@pytest.mark.parametrize("prefer", ["auto", "torch"])
def test_ops_sample_with_the_chosen_kernel(prefer: str) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 0.0, 0.0]])
    rows = [SampleRow(temperature=0), SampleRow(uniform=0.5)]
    assert [token.token_id for token in Ops(prefer=prefer).sample(logits, rows)] == [1, 0]


def test_kernels_has_no_init_file_anywhere() -> None:
    assert list((ROOT / "kernels").rglob("__init__.py")) == []


def test_importing_kernels_from_elsewhere_does_not_find_ours(tmp_path: Path) -> None:
    code = "import braid.kernels.registry\ntry:\n import kernels\nexcept ImportError: print('not found')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "not found\n"
