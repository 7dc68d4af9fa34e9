"""How long does braid-tiny take on this machine from prompt to file, where does the time go, and how much memory?

The limit is the products: a distilled clip of 25 frames at 128x128 is 8 forwards at 64x64, 3 at 128x128 and a decoder.
Memory is the peak of a process that films, less that of one that has the language model alone. Each case is warmed up
by one film; then the median and the 95th percentile of `--repeats`.

Run it alone on the machine:
    python benchmarks/braid_tiny.py [--threads 2] [--repeats 10] [--model PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braid import LLM, DiffGenerator, SamplingParams
from braid.benchmarks import machine
from braid.benchmarks.filming import add_model_options, open_model
from braid.benchmarks.llama_cpp import resident_peak

PROMPT = "a small red disc drifts to the left over blue stripes while a low note plays"
CASES: dict[str, tuple[dict[str, Any], str, float]] = {
    "distilled clip": ({"pipeline": "distilled"}, "clip.mp4", 10.0),
    "image": ({"num_frames": 1, "pipeline": "distilled"}, "image.png", 2.0),
    "high-quality clip": ({"pipeline": "two_stage_hq"}, "clip.mp4", 60.0),
}
"""What is asked for, the file, and the seconds that it may take."""


def time_case(generator: DiffGenerator, params: dict[str, Any], path: Path, repeats: int) -> dict[str, Any]:
    """Seconds from prompt to file, and by stage."""
    totals: list[float] = []
    stages: list[dict[str, float]] = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        media = generator.generate(PROMPT, path=path, keep_frames=False, seed=number, **params)
        if number:
            totals.append(time.perf_counter() - start)
            stages.append(media.timings)
    by_stage = {name: round(machine.median([one[name] for one in stages]), 3) for name in stages[0]}
    return {
        "median_s": round(machine.median(totals), 3), "p95_s": round(machine.p95(totals), 3), "stages_s": by_stage,
    }  # fmt: skip


def peak_of(words: Sequence[str]) -> int:
    """Bytes that a run of this script had at its peak; it says so on its last line."""
    run = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    peak: int = json.loads(run.stdout.splitlines()[-1])["peak_bytes"]
    return peak


def use_language_alone(options: argparse.Namespace) -> None:
    """Load it and use it once."""
    with LLM(options.llm or "smollm2", device="cpu", num_threads=options.threads) as llm:
        llm.generate(PROMPT, SamplingParams(max_tokens=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_model_options(parser)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peak", choices=("language", *CASES), help="only this once, and print the peak of memory")
    options = parser.parse_args()
    if options.peak == "language":
        use_language_alone(options)
        print(json.dumps({"peak_bytes": resident_peak(os.getpid())}))
        return
    if options.peak is None:
        alone = peak_of([*sys.argv[1:], "--peak", "language"])
        peaks = {name: peak_of([*sys.argv[1:], "--peak", name]) for name in options.cases}
    with open_model(options) as generator, tempfile.TemporaryDirectory() as folder:
        if options.peak is not None:
            params, file, _ = CASES[options.peak]
            generator.generate(PROMPT, path=Path(folder) / file, keep_frames=False, seed=0, **params)
            print(json.dumps({"peak_bytes": resident_peak(os.getpid())}))
            return
        results: dict[str, Any] = {}
        for name in options.cases:
            params, file, limit = CASES[name]
            found = time_case(generator, params, Path(folder) / file, options.repeats)
            above = (peaks[name] - alone) >> 20
            results[name] = {**found, "limit_s": limit, "mib_above_language": above}
            shown = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in found["stages_s"].items())
            print(f"{name:18} {found['median_s']:7.2f} s of {limit:g}, {above} MiB above the language model: {shown}")
    print(json.dumps({"benchmark": "braid_tiny", "threads": options.threads, **machine.describe(), "results": results}))


if __name__ == "__main__":
    main()
