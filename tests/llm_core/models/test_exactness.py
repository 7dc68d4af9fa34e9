"""The C++ kernels choose the tokens of the float32 model: a small sample of `benchmarks/exactness.py`."""

from __future__ import annotations

import pytest

from braid.benchmarks.exactness import MAX_RELATIVE_ERROR, compare, mixed_text
from braid.benchmarks.reference import hugging_face_llama
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.models.choice import Backend, build_model, refusal_of_cpp


def test_exact_mode_chooses_the_tokens_of_the_float32_model() -> None:
    checkpoint = open_checkpoint("smollm2")
    backend = Backend(device="cpu", kernels=None, num_threads=2, exact=True)
    reason = refusal_of_cpp(checkpoint, backend)
    if reason is not None:
        pytest.skip(f"the C++ kernels do not run here: {reason}")
    model = build_model(checkpoint, backend)
    chunks = mixed_text(checkpoint.tokenizer(), 320)
    comparison = compare(model, hugging_face_llama(checkpoint), chunks)
    model.close()
    assert comparison.positions == 320
    assert not [flip for flip in comparison.flips if not flip.is_excused]
    assert len(comparison.flips) <= 1
    assert max(comparison.relative_errors) < MAX_RELATIVE_ERROR
