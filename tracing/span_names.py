"""What spans are called, by what workloads call their phases and kinds of step; `docs/tracing.md` lists them all."""

from __future__ import annotations

PHASES = {
    "rewrite_prompt": "prompt rewriting",
    "encode_prompt": "text encoding",
    "encode": "encode",
    "upsampled": "upsample",
    "decode_audio": "audio decode",
    "write_file": "file write",
}
"""Where they differ from the phase's own name: `queue`, `prefill`, `decode`, `stage_1`."""

CHAT_DECODE = "decode"
VIDEO_DECODE = "vae decode"

STEPS = {VIDEO_DECODE: "tile group"}
SAMPLER_STEP = "sampler step"
"""The steps of any other phase that has several."""

PARTS = {
    "merge": "lora merge",
    "guide": "guidance",
    "preview": "preview",
    "write_file": "mux",
}
"""Kinds of step, or operations with all their steps, that are a span of their own within their phase."""

PARTS_OF_STEPS = frozenset({"guidance"})
"""Those that come with every step of a sampler, and are spans only where the step is one."""

CHUNKS = {"prefill": "prefill chunk", "encode": "encode batch"}
"""Phases of which every step is a span."""

SEGMENT = "segment"
"""A single step of the device, at level `segments`."""


def phase_name(phase: str, *, has_steps: bool) -> str:
    """The name of a phase's span. A film's `decode` has steps that are counted, a chat's has none."""
    if phase == CHAT_DECODE and has_steps:
        return VIDEO_DECODE
    return PHASES.get(phase, phase)


def step_name(phase_span: str) -> str:
    """The name of a counted step's span."""
    return STEPS.get(phase_span, SAMPLER_STEP)
