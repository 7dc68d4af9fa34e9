"""Style adapters: plain training on clips in one style, of low-rank factors alone.

`python -m braid.training.denoiser.style STYLE --out DIR --minutes M --resume DIR --autoencoders DIR --captions FILE`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Generator, Tensor

from braid.diffusion.latents import each
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import Budget, TimeBudget
from braid.training.denoiser.adapters import adapted, initial_factors, write_adapter
from braid.training.denoiser.batches import Batch, BatchKind, BatchMaker
from braid.training.denoiser.compact_language_model import CompactLanguageModel
from braid.training.denoiser.connectors import Connectors, Text
from braid.training.denoiser.latent_pools import LatentEncoder, Pool, PoolPlan
from braid.training.denoiser.network import TrainingNetwork
from braid.training.denoiser.optimisation import Weights
from braid.training.denoiser.shards import Saved, read_shards
from braid.training.denoiser.training_run import Recipe, make_pools
from braid.training.world.vocabulary import STYLES

RANK = 8
LOG_EVERY = 50
POOLS = (PoolPlan(64, 25, 6_000), PoolPlan(128, 25, 2_000))
KINDS = (BatchKind("small", 64, 25, 192, 0.7), BatchKind("large", 128, 25, 48, 0.3))


class StyleTraining:
    """Teaches one adapter.

    Args:
        pools: of clips that are all in the style, which their captions name.
    """

    def __init__(
        self, saved: Saved, language_model: CompactLanguageModel, pools: Mapping[tuple[int, int], Pool],
        device: torch.device, log: Log, *, kinds: tuple[BatchKind, ...] = KINDS, rank: int = RANK,
        learning_rate: float = 1e-3, dtype: torch.dtype = torch.bfloat16, seed: int = 0,
    ) -> None:  # fmt: skip
        self._base = {name: value.to(device, dtype) for name, value in saved.weights.items()}
        factors = initial_factors(saved.weights, rank, Generator().manual_seed(seed))
        self.factors = Weights(factors, device, learning_rate=learning_rate, dtype=dtype)
        self.batches = BatchMaker(kinds, pools, Generator(device).manual_seed(seed))
        self._network = TrainingNetwork(TransformerConfig.from_metadata(saved.shape.section))
        self._connectors, self._language_model, self._log = Connectors(saved.shape), language_model, log

    def train(self, budget: Budget) -> None:
        """Steps until the budget is used up."""
        while (progress := budget.progress(self.factors.num_steps)) < 1:
            loss = self.loss(self.batches.draw(self.batches.kind()))
            self.factors.step(loss, progress)
            if self.factors.num_steps % LOG_EVERY == 0:
                step, shown = self.factors.num_steps, round(float(loss.detach()), 4)
                self._log.write(stage="style", step=step, progress=round(progress, 3), loss=shown)

    def loss(self, batch: Batch) -> Tensor:
        """Of plain flow matching."""
        with torch.no_grad():
            text = Text(self._language_model.hidden_states(batch.tokens), batch.lengths)
            contexts = self._connectors(self._base, text)
        streams = each(lambda state, context: state.with_context(context), batch.streams, contexts)
        velocities = self._network(adapted(self._base, self.factors.working), streams)
        losses = each(lambda state, velocity: state.losses(velocity).mean(), batch.streams, velocities)
        return torch.stack(list(losses.present())).sum()


def main() -> None:
    """The command."""
    start = time.monotonic()
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    log = Log(options.out / f"style-{options.style}.jsonl")
    language_model = CompactLanguageModel(options.captions, options.device)
    recipe = Recipe(pools=POOLS, pool_seconds=options.pool_seconds, style=options.style)
    encoder = LatentEncoder(options.autoencoders, options.device)
    pools = make_pools(recipe, encoder, language_model, log, options.seed + 2)
    run = StyleTraining(read_shards(options.resume), language_model, pools, options.device, log, seed=options.seed)
    run.train(TimeBudget(options.minutes * 60 - (time.monotonic() - start)))
    write_adapter(options.out / f"style-{options.style}-lora.safetensors", run.factors.averages, {"rank": RANK})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="teach a style adapter of braid-tiny")
    parser.add_argument("style", choices=STYLES)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the adapter")
    parser.add_argument("--minutes", type=float, default=2.0, help="for all of it")
    parser.add_argument("--resume", type=Path, required=True, help="a folder of shards: the model without style")
    parser.add_argument("--autoencoders", type=Path, required=True, help="a folder of trained autoencoders")
    parser.add_argument("--captions", type=Path, required=True, help="a file of `compact_language_model`")
    parser.add_argument("--pool-seconds", type=float, default=25.0, help="at most, for drawing and encoding clips")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default))
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
