from __future__ import annotations

import pytest

from braid.kernels.cpu.library import (
    VARIANTS,
    KernelsUnavailable,
    load_library,
    read_cpu_flags,
    reasons_against,
)

AVX2, AVX512 = VARIANTS[1].cpu_flags, VARIANTS[0].cpu_flags


def test_an_old_processor_is_told_what_it_lacks():
    reasons = reasons_against(frozenset({"sse4_2", "avx2"}))
    assert reasons["avx2"] == "the processor lacks f16c, fma"
    assert "avx512_vnni" in (reasons["avx512_vnni"] or "")


def test_a_laptop_without_avx512_is_not_refused_avx2_for_its_processor():
    reasons = reasons_against(AVX2)
    assert "lacks" in (reasons["avx512_vnni"] or "")
    assert "lacks" not in (reasons["avx2"] or "")


def test_a_variant_that_was_not_compiled_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("braid.kernels.cpu.library.__file__", str(tmp_path / "library.py"))
    assert "was not compiled" in (reasons_against(AVX512)["avx512_vnni"] or "")
    with pytest.raises(KernelsUnavailable, match="avx2: "):
        load_library()


def test_an_unknown_variant_is_refused_with_those_that_exist():
    with pytest.raises(KernelsUnavailable, match="there are avx512_vnni, avx2"):
        load_library("neon")


def test_flags_are_read_from_the_first_processor(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fma avx2 f16c\n\nprocessor\t: 1\nflags\t\t: none\n")
    assert read_cpu_flags(path) == {"fma", "avx2", "f16c"}


def test_another_architecture_has_no_flags(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert read_cpu_flags() == frozenset()
