"""What a run trains with beside its network: the language model that reads captions, and pools of encoded clips."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from braid.training.autoencoders.run import Log
from braid.training.denoiser.compact_language_model import CompactLanguageModel
from braid.training.denoiser.latent_pools import LatentEncoder, Pool, PoolPlan, load_pools, make_pools, save_pools


@dataclass(frozen=True)
class Material:
    """On the device of the run."""

    language_model: CompactLanguageModel
    """Gives the hidden states of captions; nothing of it is trained."""
    pools: Mapping[tuple[int, int], Pool]
    """By size and number of frames."""


def add_sources(parser: argparse.ArgumentParser, *, pool_seconds: float) -> None:
    """Options for what `prepare` reads, and for how long it may take."""
    parser.add_argument("--autoencoders", type=Path, required=True, help="a folder of trained autoencoders")
    parser.add_argument("--captions", type=Path, required=True, help="a file of `compact_language_model`")
    parser.add_argument("--pool-seconds", type=float, default=pool_seconds, help="at most, to draw and encode clips")
    parser.add_argument("--pools", type=Path, help="a file of these clips, read if it is there, else written")
    parser.add_argument("--tiny", action="store_true", help="a few clips, to see on a CPU that everything runs")


def prepare(
    options: argparse.Namespace, plans: Sequence[PoolPlan], log: Log, *, seed: int, style: str | None = None
) -> Material:
    """Read the language model and make pools, by the options of `add_sources`.

    Args:
        style: of all clips.
    """
    language_model = CompactLanguageModel(options.captions, options.device)
    if options.pools is not None and options.pools.exists():
        pools = load_pools(options.pools, options.device)
        log.write(stage="pools", clips=sum(len(pool) for pool in pools.values()))
        return Material(language_model, pools)
    encoder = LatentEncoder(options.autoencoders, options.device)
    pools = make_pools(plans, encoder, language_model.words, log, seconds=options.pool_seconds, seed=seed, style=style)
    if options.pools is not None:
        save_pools(options.pools, pools)
    return Material(language_model, pools)
