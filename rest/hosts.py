"""A server that asks nobody for a key must not be driven by a web page of somebody else's.

A browser on this machine reaches a local server for any page that it shows. Two ways are closed here. *DNS rebinding*:
the page's own name is made to lead to this machine, so that the browser takes our answers for the page's; then `Host`
holds that name, and only names that no stranger can own are served. *Blind requests*: a page may send a form to any
address without asking first; then `Origin` (or `Sec-Fetch-Site`) tells that another site sends it.

With keys none of this is needed: a page does not know the key, and a browser does not add it by itself.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from braid.errors import BraidError
from braid.rest.errors import error_response

_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{1,5})?")
_OWN_SITE = ("same-origin", "none")
"""What `Sec-Fetch-Site` says of our own page and of a person who typed the address."""


class HostRefused(BraidError):
    """The request names a host that is not known to be this server."""

    status = 403
    type = "invalid_request_error"
    code = "host_not_allowed"


class OriginRefused(BraidError):
    """The request was made by a web page of another site."""

    status = 403
    type = "invalid_request_error"
    code = "origin_not_allowed"


class CheckHosts:
    """Refuses requests to names that are not this server's, and from pages of other sites.

    Args:
        names: hosts that are served beside `localhost` and plain IP addresses, which no stranger's name can be.
        origins: other sites whose pages may ask, such as `https://studio.example`.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 403."""
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope), scope["method"])
            except BraidError as error:
                await error_response(error, headers={"connection": "close"})(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, method: str) -> None:
        """Raises:
        HostRefused, OriginRefused: the request may not pass.
        """
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            raise HostRefused(
                f"the host {host[:100]!r} is not known to be this server, which asks nobody for a key; use its IP "
                "address, or start it with --allowed-host NAME or with --api-keys"
            )
        if not self._is_from_ours(headers, host, method):
            raise OriginRefused(
                f"a page of {headers.get('origin', 'another site')[:100]!r} may not use this server; start it with "
                "--cors-origin ORIGIN to allow that"
            )

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = (found["name"] or found["address"]).lower()
        return name == "localhost" or name.endswith(".localhost") or name in self._names or _is_address(name)

    def _is_from_ours(self, headers: Headers, host: str, method: str) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin in self._origins or origin.partition("://")[2] == host
        is_link = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        return is_link or headers.get("sec-fetch-site", "none") in _OWN_SITE


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
