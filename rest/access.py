"""Who may use the server, from where, how much, and whom it asks on their behalf: what is said when it is started.

Nothing heavy is imported here: the command line reads it before the engine is spawned. `protection` applies it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from braid.errors import InvalidRequest
from braid.rest.keys import ApiKeys
from braid.rest.limits import AdmissionLimits
from braid.rest.webhook_secret import WebhookSecret

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The settings.

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
    allow_remote_urls: bool = False
    """Whether pictures, films and sounds may be named by URL."""
    trusted_hosts: tuple[str, ...] = ()
    """Names that may be asked although they lead into a private network."""
    webhook_secret: WebhookSecret | None = None
    """None sends no webhooks."""

    def __post_init__(self) -> None:
        _check_origins(self.cors_origins, has_keys=self.keys is not None)


def _check_origins(origins: Sequence[str], *, has_keys: bool) -> None:
    """Raises:
    InvalidRequest: an origin is not one; `*` where nobody is asked for a key.
    """
    for origin in origins:
        if origin == "*":
            if not has_keys:
                raise InvalidRequest(
                    "--cors-origin '*' would let every web page use a server that asks nobody for a key; "
                    "name the origins, or give it --api-keys",
                    param="cors_origin",
                )
        elif not _ORIGIN.fullmatch(origin):
            raise InvalidRequest(
                f"--cors-origin {origin[:100]!r} must be as browsers send it: https://name or http://name:port, small "
                "letters and no path",
                param="cors_origin",
            )
