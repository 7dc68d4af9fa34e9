"""The options of `braid serve` about who may use it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from braid.rest.access import Access
from braid.rest.keys import VARIABLE, read_keys
from braid.rest.limits import AdmissionLimits
from braid.rest.webhook_secret import VARIABLE as SECRET_VARIABLE
from braid.rest.webhook_secret import WebhookSecret

_LIMITS = {
    "requests_per_minute": "of each key, as far as they make work",
    "queued_jobs": "of all keys together (default: 256)",
    "queued_jobs_per_key": "of one key",
}


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Put the options into the parser of `braid serve`."""
    group = parser.add_argument_group("who may use it")
    group.add_argument("--api-keys", type=Path, metavar="FILE", help=f"keys, by `braid keys new` (also ${VARIABLE})")
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a name of this server")
    group.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help="a site that may use it")
    for name, words in _LIMITS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=words)
    group.add_argument("--allow-remote-urls", action="store_true", help="fetch pictures and films named by URL")
    group.add_argument(
        "--trusted-host", action="append", default=[], metavar="NAME", help="ask it although its address is private"
    )


def read_access(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Access:
    """What the command line and the environment say.

    Raises:
        InvalidRequest: a key, an origin, a limit or the secret cannot be right.
    """
    limits = {name: getattr(arguments, name) for name in _LIMITS}
    secret = environment.get(SECRET_VARIABLE)
    return Access(
        keys=read_keys(arguments.api_keys, environment),
        allowed_hosts=(*arguments.allowed_host, arguments.host),
        cors_origins=tuple(arguments.cors_origin),
        limits=AdmissionLimits(**{name: value for name, value in limits.items() if value is not None}),
        allow_remote_urls=arguments.allow_remote_urls,
        trusted_hosts=tuple(arguments.trusted_host),
        webhook_secret=None if secret is None else WebhookSecret.parse(secret),
    )
