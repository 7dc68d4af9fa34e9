"""A pipeline around a pipeline: everything that the inner one says passes here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from braid.llm_core.pipeline import Pipeline

Say = Callable[[Any], Pipeline]
"""From an operation to a generator that asks for it, or for something else, and returns the answer."""


def relayed(pipeline: Pipeline, say: Say) -> Pipeline:
    """The pipeline with each of its operations said by `say`; what that raises is raised in the pipeline."""
    go_on: Callable[[], Any] = partial(next, pipeline)
    while True:
        try:
            asked = go_on()
        except StopIteration as stop:
            return stop.value
        try:
            answer = yield from say(asked)
        except Exception as error:  # the pipeline's to handle, as anywhere
            go_on = partial(pipeline.throw, error)
        else:
            go_on = partial(pipeline.send, answer)
