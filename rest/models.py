"""`/v1/models`: what the engine serves, under which names."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.errors import ModelNotFound
from braid.llm_core.engine.messages import EngineReady


class ServedModel(msgspec.Struct, frozen=True):
    """A model under the name that a client used for it."""

    name: str
    """What the client said, or the model's id: answers carry it."""
    id: str
    """What the engine calls it."""


def resolve(ready: EngineReady, name: str | None, *, can: str | None = "chat") -> ServedModel:
    """Find a model by id or alias; no name is the first model.

    Args:
        can: what it must be able to do; None is anything.
    Raises:
        ModelNotFound: with the names that there are.
    """
    able = [served for served in _served(ready) if can is None or can in _entry(ready, served).get("capabilities", ())]
    if not able:
        raise ModelNotFound("no language model is served here", param="model")
    if not name:
        return ServedModel(able[0].id, able[0].id)
    for served in able:
        if served.name == name:
            return served
    names = ", ".join(served.name for served in able)
    what = "is not served here" if can is None else f"is none that can {can} here"
    raise ModelNotFound(f"model {name[:200]!r} {what}; there is {names}", param="model")


async def list_models(request: Request) -> Response:
    """`GET /v1/models`: every name, aliases included."""
    ready = request.app.state.engine.ready
    created = request.app.state.created
    data = [_card(ready, served, created) for served in _served(ready)]
    return _json({"object": "list", "data": data})


async def get_model(request: Request) -> Response:
    """`GET /v1/models/{id}`; an id may hold slashes."""
    ready = request.app.state.engine.ready
    return _json(_card(ready, resolve(ready, request.path_params["model"], can=None), request.app.state.created))


def _served(ready: EngineReady) -> list[ServedModel]:
    return [
        ServedModel(name, model["id"]) for model in ready.models for name in (model["id"], *model.get("aliases", ()))
    ]


def _card(ready: EngineReady, served: ServedModel, created: int) -> dict[str, Any]:
    model = _entry(ready, served)
    more = {key: value for key, value in model.items() if key not in ("id", "aliases")}
    return {"id": served.name, "object": "model", "created": created, "owned_by": "braid", "root": served.id, **more}


def _entry(ready: EngineReady, served: ServedModel) -> dict[str, Any]:
    return next(model for model in ready.models if model["id"] == served.id)


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
