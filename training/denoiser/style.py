"""Style adapters: plain training on clips in one style, of low-rank factors alone.

`python -m braid.training.denoiser.style STYLE --out DIR --minutes M --resume DIR --autoencoders DIR --captions FILE`
"""

from __future__ import annotations

from torch import Tensor

from braid.training.denoiser.adapter_training import AdaptedModel, Lesson, adapter_parser, distance, teach
from braid.training.denoiser.batches import Batch, BatchKind
from braid.training.denoiser.latent_pools import PoolPlan
from braid.training.world.vocabulary import STYLES


def flow_matching_loss(model: AdaptedModel, batch: Batch) -> Tensor:
    """How far the adapted velocity is from the straight way between noise and clip."""
    contexts = model.contexts(batch.tokens, batch.lengths)
    return distance(batch.streams, model.velocities(batch.streams, contexts))


LESSON = Lesson(
    "style",
    flow_matching_loss,
    rank=8,
    pools=(PoolPlan(64, 25, 6_000), PoolPlan(128, 25, 2_000)),
    kinds=(BatchKind("small", 64, 25, 96, 0.5), BatchKind("large", 128, 25, 24, 0.5)),
)
"""From clips that are all in the style, which their captions name."""


def main() -> None:
    """The command."""
    parser = adapter_parser("teach a style adapter of braid-tiny", minutes=2.0, pool_seconds=25.0)
    parser.add_argument("style", choices=STYLES)
    options = parser.parse_args()
    name = f"style-{options.style}"
    teach(
        LESSON,
        options,
        log=f"{name}.jsonl",
        adapter=f"{name}-lora.safetensors",
        pool_seed=options.seed + 2,
        style=options.style,
    )


if __name__ == "__main__":
    main()
