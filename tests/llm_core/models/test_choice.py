"""Names that people give to kernels and devices."""

from __future__ import annotations

import pytest
import torch

from braid.errors import InvalidRequest
from braid.llm_core.models.choice import choose_device, choose_kernels


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [(None, None), ("", None), ("auto", None), ("cpp", "cpp"), ("torch", "torch"), ("avx2", "avx2"),
     ("cpu_avx2", "avx2"), ("cpu_avx512_vnni", "avx512_vnni")],
)  # fmt: skip
def test_kernels_have_the_names_that_are_listed(wanted: str | None, chosen: str | None) -> None:
    assert choose_kernels(wanted) == chosen


@pytest.mark.parametrize("wanted", ["nonsense", "cpu_", "AVX2", "cpu_torch_"])
def test_unknown_kernels_are_refused_with_what_there_is(wanted: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        choose_kernels(wanted)
    assert refusal.value.param == "kernels"
    assert refusal.value.message == f"kernels={wanted!r} is none of auto, torch, cpp, avx512_vnni, avx2"


def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == "cuda:0"
    with pytest.raises(InvalidRequest, match="device='cuda:1': this machine has 1 CUDA devices"):
        choose_device("cuda:1")
