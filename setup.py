"""Builds the C++ kernels where there is a compiler; without one the package installs all the same and runs on torch."""

from __future__ import annotations

import copy
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU_KERNELS = Path("kernels/cpu")
VARIANTS = {
    "avx512_vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mf16c", "-mfma"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
}


class BuildKernels(build_ext):
    """Compiles each instruction-set variant to a plain shared library with a C interface (no Python headers)."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        """In a folder of its own: the variants have the same sources, and compile at the same time."""
        command = copy.copy(self)
        command.build_temp = str(Path(self.build_temp) / ext.name.rpartition(".")[2])
        super(BuildKernels, command).build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols)


def kernels() -> list[Extension]:
    sources = sorted(str(path) for path in CPU_KERNELS.glob("*.cpp"))
    if not sources or sys.platform == "win32" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags = ["-O3", "-std=c++17", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
    return [
        Extension(
            f"braid.kernels.cpu.libbraid_cpu_{name}",
            sources,
            depends=sorted(str(path) for path in CPU_KERNELS.glob("*.h")),
            extra_compile_args=[*flags, *march],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, march in VARIANTS.items()
    ]


setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels})
