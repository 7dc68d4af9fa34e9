"""How much sooner does a second request start that shares 1,000 tokens with an earlier one?

The first request computes the whole prompt; the second finds its prefix in the cache and computes what is new. The
limit is the ratio of tokens computed, about 1,030 to 45 (the new tokens and the rest of a page), less one step's fixed
cost.

    python benchmarks/prefix_cache.py [--pairs 10]
"""

from __future__ import annotations

import argparse
import json
import os

import numpy as np

from braid import LLM, SamplingParams
from braid.benchmarks import machine

SHARED_TOKENS = 1000
NEW_TOKENS = 30


def first_token_ms(llm: LLM, token_ids: list[int]) -> float:
    """Time from submission to the first token, as the engine reports it."""
    timings = llm.generate(token_ids, SamplingParams(temperature=0, max_tokens=1)).timings_ms
    return timings["queue"] + timings["prefill"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    first: list[float] = []
    second: list[float] = []
    with LLM(num_threads=args.threads) as llm:
        llm.generate("warm up", SamplingParams(max_tokens=8, ignore_eos=True))
        for _ in range(args.pairs):
            shared, *ends = (rng.integers(100, 40000, n).tolist() for n in (SHARED_TOKENS, NEW_TOKENS, NEW_TOKENS))
            first.append(first_token_ms(llm, shared + ends[0]))
            second.append(first_token_ms(llm, shared + ends[1]))
    ratio = machine.median([a / b for a, b in zip(first, second, strict=True)])
    print(f"first {machine.median(first):.1f} ms, second {machine.median(second):.1f} ms: {ratio:.1f} times sooner")
    result = {"first_ms": machine.median(first), "second_ms": machine.median(second), "ratio": ratio}
    print(json.dumps({"machine": machine.describe(), **result}))


if __name__ == "__main__":
    main()
