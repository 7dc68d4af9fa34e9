"""Who asks, and whether they may: `Authorization: Bearer TOKEN` to `request.state.owner` and `request.state.role`.

A plain ASGI middleware: what it refuses costs no route anything. Everything needs a key but what is named here, so that
a route which is added later is closed until somebody opens it.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from braid.errors import BraidError
from braid.rest.errors import error_response
from braid.rest.keys import ApiKey, ApiKeys, Role

OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico", "/timeline"})
"""Without a key: whether the process lives, and the pages, which ask for the key themselves."""
OPEN_FOLDERS = ("/page/", "/timeline/files/", "/trace/")
"""The pages' own files. They are the same for everybody."""
ADMIN_PATHS = frozenset({"/stats", "/metrics", "/v1/traces", "/v1/timeline"})
"""What concerns everybody's requests."""
ADMIN_FOLDERS = ("/admin/", "/v1/admin/", "/v1/traces/")


class MissingApiKey(BraidError):
    """The request names no key."""

    status = 401
    type = "invalid_request_error"
    code = "missing_api_key"


class InvalidApiKey(BraidError):
    """The request's key is not one of this server's."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDenied(BraidError):
    """The key is right, and its role may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "permission_denied"


class Authenticate:
    """Gives each request `state.owner` (the key's name) and `state.role`, or refuses it.

    Args:
        keys: None asks nobody: every request is the admin's, and its owner is the empty string.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401 or 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            owner, role = self._identify(scope)
        except BraidError as error:
            await _refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {}).update(owner=owner, role=role)
        await self._app(scope, receive, send)

    def _identify(self, scope: Scope) -> tuple[str, Role]:
        """Raises:
        MissingApiKey, InvalidApiKey, PermissionDenied: the request may not pass.
        """
        if self._keys is None:
            return "", Role.ADMIN
        path = scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return "", Role.USER
        key = _presented(Headers(scope=scope), self._keys)
        if needs_admin(path) and key.role is not Role.ADMIN:
            raise PermissionDenied(f"{path[:100]} needs a key with the role admin; {key.name!r} has {key.role}")
        return key.name, key.role


def needs_admin(path: str) -> bool:
    """Whether a URL's path is only for administrators."""
    return path in ADMIN_PATHS or path.startswith(ADMIN_FOLDERS)


def _presented(headers: Headers, keys: ApiKeys) -> ApiKey:
    values = headers.getlist("authorization")
    if not values:
        raise MissingApiKey("this server needs an API key; send it as Authorization: Bearer KEY")
    scheme, _, token = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise InvalidApiKey("the Authorization header must be sent once, as Bearer KEY")
    key = keys.find(token.strip())
    if key is None:
        raise InvalidApiKey("the API key is not one of this server's")
    return key


async def _refuse(error: BraidError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    # `close`: the body of a request that may not be asked is not read to its end either.
    headers = {"connection": "close"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    await error_response(error, headers=headers)(scope, receive, send)
