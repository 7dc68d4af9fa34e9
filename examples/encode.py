"""Hidden states of prompts: how alike are a few sentences?

    python examples/encode.py
"""

import torch

from braid import LLM

PROMPTS = ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "The court raised the interest rate.")


def main() -> None:
    with LLM("smollm2") as llm:
        encoded = llm.encode(PROMPTS, layers=[15], padding_side="right")
    print(f"hidden states {tuple(encoded.hidden_states.shape)}: prompts, tokens, channels, layers")
    # The first token is the same for all prompts and would hide what differs.
    mask = encoded.attention_mask.unsqueeze(-1)[:, 1:]  # (num_prompts, length - 1, 1)
    means = (encoded.hidden_states[:, 1:, :, 0] * mask).sum(1) / mask.sum(1)  # (num_prompts, hidden_size)
    means = torch.nn.functional.normalize(means - means.mean(0), dim=-1)
    for i, prompt in enumerate(PROMPTS):
        row = "  ".join(f"{similarity:5.2f}" for similarity in (means @ means[i]).tolist())
        print(f"{row}  {prompt}")


if __name__ == "__main__":
    main()
