"""The order in which an app applies what was said about access."""

from __future__ import annotations

from fastapi import FastAPI

from braid.rest.access import Access
from braid.rest.admission import LimitRequests, RequestRates
from braid.rest.authentication import Authenticate
from braid.rest.cors import add_cors
from braid.rest.hosts import CheckHosts
from braid.rest.security_headers import AddSecurityHeaders


def protect(app: FastAPI, access: Access) -> None:
    """Put the checks in front of the routes. What is added later sees a request earlier."""
    if access.limits.requests_per_minute is not None:
        app.add_middleware(LimitRequests, rates=RequestRates(access.limits.requests_per_minute))
    app.add_middleware(Authenticate, keys=access.keys)
    add_cors(app, access.cors_origins)  # outside of authentication: browsers ask before they send a key
    if access.keys is None:
        app.add_middleware(CheckHosts, names=access.allowed_hosts, origins=access.cors_origins)
    app.add_middleware(AddSecurityHeaders)
