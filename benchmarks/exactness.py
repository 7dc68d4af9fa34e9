"""Are Braid's logits those of the dequantised float32 model, and does it choose the same tokens?

The reference is Hugging Face's Llama with the file's weights dequantised to float32. For every position of mixed
text: the relative error of the row of logits (L2), and whether the argmax is the same. A position can flip for good
reason only if the reference's two best logits are closer than twice the largest error of that row. The limit is float32
rounding.

    python benchmarks/exactness.py [--positions 2048] [--kernels torch] [--fast]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from braid.benchmarks import machine
from braid.benchmarks.reference import hugging_face_llama, reference_logits
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.memory.arena import Arena
from braid.llm_core.memory.kv_pages import KVPages
from braid.llm_core.models.choice import Backend, build_model
from braid.llm_core.models.model import ForwardBatch, LanguageModel
from braid.llm_core.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 256
MAX_RELATIVE_ERROR = 0.002
MIN_SAME_ARGMAX = 0.998
PROSE = (
    "La pluie est tombée toute la nuit, et au matin la rivière avait débordé dans les jardins. "
    "Die Bäckerei an der Ecke öffnet um sechs; wer später kommt, findet nur noch Brötchen von gestern. "
    "雨が降ったあと、庭の石は黒く光っていた。 一只猫坐在窗台上看着街道。 Кот спит на тёплой печи. "
    "El tren de las 7:45 llegó con 12 minutos de retraso, como casi siempre. 😀🎬🎨 "
    "Once upon a time there was a red circle that wanted to move to the left, but the blue square was in its way. "
    "Q: What is 17 * 23? A: 391. Q: What is the capital of France? A: Paris. "
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"
    '{"name": "clip", "frames": 121, "fps": 24.0, "audio": true, "tags": ["night", "blurred"]}\n'
    "SELECT name, count(*) FROM jobs WHERE status = 'queued' GROUP BY name ORDER BY 2 DESC;\n"
)


@dataclass
class Flip:
    """A position where the two models choose different tokens."""

    position: int
    gap: float
    """Between the reference's two best logits."""
    max_error: float

    @property
    def is_excused(self) -> bool:
        return self.gap <= 2 * self.max_error


@dataclass
class Comparison:
    """What was found so far."""

    positions: int = 0
    flips: list[Flip] = field(default_factory=list)
    relative_errors: list[float] = field(default_factory=list)

    def add(self, ours: Tensor, reference: Tensor) -> None:
        """Compare (num_tokens, vocab_size) logits."""
        errors = (ours - reference).abs()
        relative = (ours - reference).norm(dim=-1) / reference.norm(dim=-1)
        top = reference.topk(2, dim=-1)
        flipped = ours.argmax(-1) != top.indices[:, 0]
        for i in flipped.nonzero().flatten().tolist():
            gap = float(top.values[i, 0] - top.values[i, 1])
            self.flips.append(Flip(self.positions + i, gap, float(errors[i].max())))
        self.relative_errors.extend(relative.tolist())
        self.positions += len(ours)

    @property
    def same_argmax(self) -> float:
        return 1 - len(self.flips) / self.positions

    @property
    def is_exact(self) -> bool:
        return (
            all(flip.is_excused for flip in self.flips)
            and self.same_argmax >= MIN_SAME_ARGMAX
            and max(self.relative_errors) < MAX_RELATIVE_ERROR
        )

    def summary(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "same_argmax": self.same_argmax,
            "flips": [(flip.position, flip.gap, flip.max_error) for flip in self.flips],
            "unexcused_flips": sum(not flip.is_excused for flip in self.flips),
            "relative_error_median": float(np.median(self.relative_errors)),
            "relative_error_max": max(self.relative_errors),
            "is_exact": self.is_exact,
        }


def mixed_text(tokenizer: Tokenizer, num_positions: int) -> Iterator[list[int]]:
    """Chunks of token ids: prose in several languages, code, tables, a licence."""
    texts = [PROSE, *((ROOT / name).read_text() for name in ("LICENSE", "errors.py", "pyproject.toml", "Makefile"))]
    chunks = [
        ids[start : start + CHUNK]
        for ids in (tokenizer.encode(text, add_special_tokens=True) for text in texts)
        for start in range(0, len(ids), CHUNK)
    ]
    for chunk in chunks:
        if num_positions <= 0:
            return
        yield chunk[:num_positions]
        num_positions -= len(chunk)


def our_logits(model: LanguageModel, token_ids: list[int]) -> Tensor:
    """(num_tokens, vocab_size) float32: all positions of one prefill."""
    num_tokens = len(token_ids)
    num_pages = -(-num_tokens // model.page_tokens)
    pages = KVPages(
        Arena((num_pages + 1) * model.page_bytes),
        page_bytes=model.page_bytes,
        page_tokens=model.page_tokens,
        slab_bytes=model.page_bytes * num_pages,
        device=model.device,
    )
    rows = np.arange(num_tokens, dtype=np.int32)
    batch = ForwardBatch(
        input_ids=np.array(token_ids, dtype=np.int32),
        positions=rows,
        sequence_index=np.zeros(num_tokens, dtype=np.int32),
        block_tables=np.array([pages.allocate(num_pages)], dtype=np.int32),
        logits_rows=rows,
    )
    return torch.as_tensor(model.forward(batch, pages).logits).float().cpu().clone()


def compare(model: LanguageModel, reference: Any, chunks: Iterator[list[int]]) -> Comparison:
    comparison = Comparison()
    for chunk in chunks:
        comparison.add(our_logits(model, chunk), reference_logits(reference, chunk))
    return comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--positions", type=int, default=2560)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kernels", default=None)
    parser.add_argument("--fast", action="store_true", help="8-bit activations")
    args = parser.parse_args()

    checkpoint = open_checkpoint(args.model)
    backend = Backend(device="cpu", kernels=args.kernels, num_threads=args.threads, exact=not args.fast)
    model = build_model(checkpoint, backend)
    reference = hugging_face_llama(checkpoint)
    comparison = compare(model, reference, mixed_text(checkpoint.tokenizer(), args.positions))
    for flip in comparison.flips:
        verdict = "near tie" if flip.is_excused else "WRONG"
        print(f"flip at {flip.position}: gap {flip.gap:.5f}, largest error {flip.max_error:.5f}: {verdict}")
    summary = comparison.summary()
    print(f"{summary['positions']} positions, same argmax at {summary['same_argmax']:.4%}")
    print(f"relative error: median {summary['relative_error_median']:.2e}, largest {summary['relative_error_max']:.2e}")
    print(json.dumps({"machine": machine.describe(), **summary}))
    sys.exit(0 if comparison.is_exact or args.fast else 1)


if __name__ == "__main__":
    main()
