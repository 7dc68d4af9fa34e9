"""The dequantised float32 Hugging Face model of a Llama GGUF, for comparing logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from braid.llm_core.loading.weights import Checkpoint


def hugging_face_llama(checkpoint: Checkpoint) -> Any:
    """A `LlamaForCausalLM` with the checkpoint's weights, dequantised to float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = checkpoint.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
        )
    ).float()
    weights = {name: checkpoint.weights[name].to_torch(torch.float32).clone() for name in checkpoint.weights}
    for name, weight in weights.items():
        if config.rope_interleaved and "q_proj" in name:
            weights[name] = half_split_rows(weight, config.num_heads)
        elif config.rope_interleaved and "k_proj" in name:
            weights[name] = half_split_rows(weight, config.num_kv_heads)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()


def half_split_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Undo the order of rows in which rotation pairs are adjacent."""
    pairs = weight.unflatten(0, (num_heads, -1, 2))  # (heads, head_dim / 2, 2, in_features)
    return pairs.transpose(1, 2).reshape(weight.shape)


@torch.inference_mode()
def reference_logits(model: Any, token_ids: list[int]) -> Tensor:
    """(num_tokens, vocab_size) float32"""
    logits: Tensor = model(torch.tensor([token_ids])).logits[0].float()
    return logits
