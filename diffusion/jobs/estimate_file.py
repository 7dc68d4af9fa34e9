"""What an engine learnt of its work, kept for the next one at its seat. Losing it loses estimates, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from braid.diffusion.jobs.directory import DataDirectory
from braid.diffusion.jobs.estimate import Observation, WorkModel
from braid.errors import BraidError

logger = logging.getLogger("braid.diffusion")

NAME = "estimates"


class _Kept(msgspec.Struct):
    facts: dict[str, Any]
    """Of the model and the machine: with others, work takes another time."""
    seen: dict[str, list[Observation]]


def recall_estimates(directory: DataDirectory, facts: Mapping[str, Any], model: WorkModel) -> None:
    """Learn what the engine before this one did, if it was of the same facts."""
    data = directory.kept(NAME)
    if data is None:
        return
    try:
        kept = msgspec.json.decode(data, type=_Kept)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("the estimates of earlier jobs cannot be read and are begun anew: %s", error)
        return
    if kept.facts == msgspec.to_builtins(facts):
        model.recall(kept.seen)


def keep_estimates(directory: DataDirectory, facts: Mapping[str, Any], model: WorkModel) -> None:
    """Write down what was learnt."""
    data = msgspec.json.encode(_Kept(dict(facts), model.newest()))
    try:
        directory.keep(NAME, data)
    except (BraidError, OSError) as error:
        logger.warning("the estimates of this engine were not kept: %s", error)
