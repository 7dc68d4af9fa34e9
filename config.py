"""What a person says once, when an engine is made: which models, on which device, with how much memory.

A leaf beside `errors`: the command line, the server and the Python faces build one; `factory.build_engine` and
`video_factory` read them. They are msgspec structs because they cross from the HTTP process to its engine child.
"""

from __future__ import annotations

import msgspec

from braid.errors import InvalidRequest, MissingField

_LEAST = {"num_threads": 1, "memory_budget_bytes": 1, "max_waiting_requests": 1, "context_length": 2}
"""A context holds a token of the prompt and one of the answer."""
OFFLOADS = ("none", "cpu", "stream")
QUANTIZATIONS = ("fp8-cast",)


class BraidConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to build an engine.

    Raises:
        InvalidRequest: a field can never be right.
    """

    model: str = "smollm2"
    """A folder, a GGUF file, `smollm2`, or a hub id."""
    aliases: tuple[str, ...] = ()
    """More names under which clients may ask for the model."""
    device: str | None = None
    """`cpu`, `cuda` or `cuda:N`; None takes a GPU when there is one."""
    kernels: str | None = None
    """The kernel backend to force (`torch`, `cpp`, ...); None takes the fastest that accepts the input."""
    num_threads: int | None = None
    """Threads of the CPU kernels; None takes every processor that this process may use."""
    memory_budget_bytes: int | None = None
    """What the arena may lease in all; None is learnt from the device."""
    dtype: str | None = None
    """`float32` or `bfloat16`, of what is not quantised; None is float32 on a CPU and for small models on a GPU."""
    exact: bool = True
    """False allows arithmetic that is faster and gives slightly different logits."""
    max_waiting_requests: int = 256
    """More waiting requests than this are refused with 429."""
    context_length: int | None = None
    """Tokens of prompt and answer together; None takes the model's own."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise MissingField("model is empty; give a folder, a GGUF file, smollm2 or a hub id", param="model")
        for alias in self.aliases:
            if not alias.strip():
                raise InvalidRequest(f"aliases={self.aliases!r} holds an empty name", param="aliases")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidRequest(f"{name}={value} must be at least {least}", param=name)
        if self.dtype not in (None, "float32", "bfloat16"):
            raise InvalidRequest(f"dtype={self.dtype!r} must be float32 or bfloat16", param="dtype")
        if self.device is not None and not _is_device(self.device):
            raise InvalidRequest(f"device={self.device!r} must be cpu, cuda or cuda:N", param="device")


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA that is loaded with the video model, and used wherever a request names none."""

    path: str
    name: str | None = None
    """None is the file's, without its suffix."""
    strengths: tuple[float, ...] = (1.0,)
    """One for every stage, or one for all of them."""


class VideoConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which video model to load, and what goes with it.

    Raises:
        InvalidRequest: a field can never be right.
    """

    model: str
    """The safetensors file of an LTX-2 or LTX-2.3 checkpoint, or its diffusers folder."""
    upsampler: str | None = None
    """The spatial latent upsampler, without which there is no second stage."""
    distilled_lora: str | None = None
    """The checkpoint's distilled LoRA, which the stages of most pipelines use in their own strengths."""
    loras: tuple[LoraConfig, ...] = ()
    dtype: str | None = None
    """`float32` or `bfloat16`, in which the networks compute; None is that of the files."""
    offload: str = "none"
    """What leaves a GPU while it is not used: `none`, `cpu` (the transformer too, for decoders), `stream` (all of its
    blocks but those that are computed with). Results have the same bits; on a CPU it makes no difference to them."""
    quantization: str | None = None
    """`fp8-cast` stores the transformer's large products in 8 bits, which changes results; None as the files do."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise MissingField("model is empty; give a checkpoint's safetensors file or its folder", param="model")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise InvalidRequest(f"dtype={self.dtype!r} must be float32 or bfloat16", param="dtype")
        if self.offload not in OFFLOADS:
            raise InvalidRequest(f"offload={self.offload!r} must be one of {', '.join(OFFLOADS)}", param="offload")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise InvalidRequest(
                f"quantization={self.quantization!r} must be {', '.join(QUANTIZATIONS)}, or not be given",
                param="quantization",
            )


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server's engine process is made of.

    Raises:
        InvalidRequest: a field can never be right.
    """

    engine: BraidConfig = BraidConfig()
    video: VideoConfig | None = None
    takes_language_of_video: bool = False
    """Chat with the language model that the video checkpoint names, whatever `engine.model` says."""
    data_dir: str | None = None
    """Where jobs and their files are kept; needed for a video model."""
    job_database: str | None = None
    """Any SQLAlchemy URL, for servers that share a queue; None is a file in `data_dir`."""
    server_name: str = ""
    """Servers that share a data directory have different names."""
    quota_bytes: int = 64 << 30
    """Of all that is kept."""
    retention_s: float = 7 * 86400.0
    """From a job's end to its removal."""
    checkpoint_interval_s: float = 10.0
    lease_s: float = 30.0
    """How long the jobs of a server that is gone wait for another one."""
    max_films: int = 2
    """Films and sounds that are worked on side by side."""
    max_pictures: int = 4
    max_upload_bytes: int = 256 << 20
    """Of one request."""

    def __post_init__(self) -> None:
        if self.video is not None and not self.data_dir:
            raise MissingField("data_dir is not there: films are kept in it", param="data_dir")
        for name in ("quota_bytes", "retention_s", "checkpoint_interval_s", "lease_s", "max_films", "max_pictures"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"{name}={getattr(self, name)} must be above 0", param=name)
        if self.max_upload_bytes < 1:
            raise InvalidRequest(f"max_upload_bytes={self.max_upload_bytes} must be above 0", param="max_upload_bytes")

    def seat(self, role: str) -> str:
        """At the data directory: `engine` or `http`, of this server."""
        return f"{role}@{self.server_name}" if self.server_name else role


def _is_device(device: str) -> bool:
    kind, colon, index = device.partition(":")
    return kind in ("cpu", "cuda") and (not colon or (kind == "cuda" and index.isascii() and index.isdigit()))
