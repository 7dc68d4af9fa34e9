"""Who may use the server, from where, and how much: the settings, and the order in which an app applies them."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import FastAPI

from braid.rest.admission import AdmissionLimits, LimitRequests, RequestRates
from braid.rest.authentication import Authenticate
from braid.rest.cors import add_cors, check_origins
from braid.rest.hosts import CheckHosts
from braid.rest.keys import ApiKeys
from braid.rest.security_headers import AddSecurityHeaders


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a server is told about its clients when it is started.

    Raises:
        InvalidRequest: an origin is not one, or opens a server without keys to every page.
    """

    keys: ApiKeys | None = None
    """None asks nobody for a key; then only known hosts and our own pages are served (see `hosts`)."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of this server, beside localhost and IP addresses. They matter only without keys."""
    cors_origins: tuple[str, ...] = ()
    """Other sites whose pages may use it."""
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)

    def __post_init__(self) -> None:
        check_origins(self.cors_origins, has_keys=self.keys is not None)


def protect(app: FastAPI, access: Access) -> None:
    """Put the checks in front of the routes. What is added later sees a request earlier."""
    if access.limits.requests_per_minute is not None:
        app.add_middleware(LimitRequests, rates=RequestRates(access.limits.requests_per_minute))
    app.add_middleware(Authenticate, keys=access.keys)
    add_cors(app, access.cors_origins)  # outside of authentication: browsers ask before they send a key
    if access.keys is None:
        app.add_middleware(CheckHosts, names=access.allowed_hosts, origins=access.cors_origins)
    app.add_middleware(AddSecurityHeaders)
