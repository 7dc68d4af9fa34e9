"""What crosses between a face (HTTP, Python) and the engine: requests in, events out.

msgspec structs, so that the same types serve as Python API in one process and as msgpack on a socket between two.
No tensor above 64 KB travels in them.
"""

from __future__ import annotations

from typing import Any

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to choose tokens. Defaults are OpenAI's. Checked by `llm_core.engine.sampling.check`."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """None draws one when the request is admitted."""
    max_tokens: int | None = None
    """None goes on to the end of the context."""
    min_tokens: int = 0
    """The first so many tokens of the answer are none that end it, and stop strings are looked for behind them only."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    """None: none; k: the chosen token's logprob and the k likeliest (0 to 20). They are of the model's own
    distribution, before penalties, bias and temperature."""
    skip_special_tokens: bool = True


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Continue a text. Exactly one of `messages`, `prompt` and `prompt_token_ids` is given."""

    id: str
    model: str = ""
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    sampling: SamplingParams = SamplingParams()
    request_class: int = 0
    tenant: str = ""
    deadline_s: float | None = None
    """Seconds from submission."""
    traceparent: str | None = None
    use_prefix_cache: bool = True
    echo: bool = False
    """`/v1/completions`: give the prompt back in front of the text."""


class EncodeRequest(msgspec.Struct, frozen=True, kw_only=True, tag="encode"):
    """Prompts to hidden states, for conditioning images and video, and for embeddings."""

    id: str
    model: str = ""
    prompts: list[str] | None = None
    prompt_token_ids: list[list[int]] | None = None
    layers: tuple[int, ...] | None = None
    """0 is the embedding output, i the output of layer i, the last after the final norm (as `transformers` counts).
    None is all."""
    max_length: int | None = None
    """Truncate and pad to this many tokens; None pads to the longest prompt."""
    padding_side: str = "left"
    request_class: int = 1
    tenant: str = ""
    traceparent: str | None = None


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    id: str
    reason: str = "cancelled by the client"


class StatsRequest(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    id: str


class ShutdownRequest(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    id: str = ""


Message = GenerateRequest | EncodeRequest | CancelRequest | StatsRequest | ShutdownRequest


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, array_like=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Started(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="started"):
    """The request was admitted; sent once, before any other event of it."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    prompt: str = ""
    """The prompt as text, only for `echo`."""


class TextDelta(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="delta"):
    """New text of one of the n completions. `text` never ends inside a character and may be empty."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class CompletionEnd(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="completion_end"):
    """One of the n completions ended."""

    request_id: str
    index: int
    finish_reason: str
    """`stop` or `length`."""


class Finished(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="finished"):
    """All n completions ended; the last event of a successful generate request."""

    request_id: str
    usage: Usage
    timings_ms: dict[str, float] = {}
    """`queue`, `prefill`, `decode`."""


class Encoded(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="encoded"):
    """Hidden states of an `EncodeRequest`; the last event of it. In one process `hidden_states` is a tensor
    (num_prompts, length, hidden_size, num_layers) and `attention_mask` (num_prompts, length); across processes they
    are written to `path` (safetensors with those two names) and the fields are None; whoever reads the file removes
    it, and it goes with its engine."""

    request_id: str
    hidden_states: Any = None
    attention_mask: Any = None
    path: str | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="failed"):
    """The last event of a request that did not finish: a `BraidError`, flattened."""

    request_id: str
    message: str
    status: int
    type: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None


class Stats(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="stats"):
    """Counters of the engine, for `/ready`, metrics and tests."""

    request_id: str
    values: dict[str, Any] = {}


class EngineReady(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="ready"):
    """The engine's first message: what it loaded and what it can do. It comes again when there is more."""

    models: tuple[dict[str, Any], ...]
    """One dict a model: `id`, `aliases`, `context_length`, `architecture`, `capabilities`, `kernels`."""
    generation: int = 0
    modalities: dict[str, str] = {}
    """Whether `chat`, `image`, `video` and `audio` can be asked for: empty where they can, else why not, or not yet.
    Those that are not named follow from `models`."""


Event = Started | TextDelta | CompletionEnd | Finished | Encoded | Failed | Stats | EngineReady
"""A request ends with exactly one of Finished, Encoded, Failed or Stats."""
