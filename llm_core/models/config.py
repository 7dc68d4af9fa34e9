"""What a decoder-only language model is made of, independent of the file it came from."""

from __future__ import annotations

from dataclasses import dataclass

SUPPORTED_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched. `kind` is `linear`, `llama3`, `divisors` or `none`."""

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192
    divisors: tuple[float, ...] = ()
    """`divisors`: (head_dim / 2,), each inverse frequency is divided by its own. GGUF stores `llama3` so."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of one decoder-only transformer.

    One block, for all architectures:

        h = x + post_attention_norm?( o_proj(attention(qk_norm?(rope(qkv(input_norm(x)))))) )
        x = h + post_ffn_norm?( down(act(gate(ffn_norm(h))) * up(ffn_norm(h))) )
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float = 1e-5
    norm_weight_offset: float = 0.0
    """Added to every norm weight: 1 for Gemma from Hugging Face folders, 0 for Gemma from GGUF (already added)."""
    rope_theta: float = 10000.0
    rope_local_theta: float | None = None
    """Rope base of sliding layers (Gemma 3); their frequencies are never scaled."""
    rope_scaling: RopeScaling = RopeScaling()
    rope_interleaved: bool = False
    """Rotation pairs are (0, 1), (2, 3), ... : q and k rows in llama.cpp's permuted order. False: (i, i + dim/2)."""
    attention_bias: bool = False
    """q, k and v have a bias (Qwen2)."""
    qk_norm: bool = False
    """RMS norm over head_dim on q and k before rope (Qwen3, Gemma 3)."""
    post_norms: bool = False
    """Norms after attention and after the feed-forward (Gemma 3)."""
    hidden_act: str = "silu"
    """`silu` or `gelu_tanh`."""
    query_scale: float | None = None
    """Scores are multiplied by this; None is head_dim ** -0.5."""
    embedding_scale: float = 1.0
    """Embeddings are multiplied by this (Gemma: sqrt(hidden_size), rounded to the weights' dtype)."""
    sliding_window: int | None = None
    layer_is_sliding: tuple[bool, ...] = ()
    """Empty: every layer is sliding if `sliding_window` is set (Mistral), else none."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
                     "head_dim", "context_length"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even")
        if self.layer_is_sliding and len(self.layer_is_sliding) != self.num_layers:
            raise ValueError(f"layer_is_sliding has {len(self.layer_is_sliding)} entries for {self.num_layers} layers")

    def is_sliding(self, layer: int) -> bool:
        """Whether `layer` sees only the last `sliding_window` positions (the token itself included)."""
        if self.sliding_window is None:
            return False
        return self.layer_is_sliding[layer] if self.layer_is_sliding else True

    @property
    def attention_scale(self) -> float:
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale
