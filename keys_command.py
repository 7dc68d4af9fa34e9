"""`braid keys`: makes API keys and the secrets of webhooks."""

from __future__ import annotations

import argparse
import os

from braid.rest.keys import Role, new_key
from braid.rest.webhook_secret import VARIABLE, WebhookSecret


def add_keys_command(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser("new", help="make a key: its token is shown once, and kept by nobody")
    new.add_argument("name", help="whose it is; owns the jobs that are asked for with it")
    new.add_argument("--admin", action="store_true", help="may also see the server's counters and change the server")
    new.set_defaults(run=show_new_key)
    secret = commands.add_parser("webhook-secret", help="a new secret, or the one that verifies a key's webhooks")
    secret.add_argument("name", nargs="?", help=f"of the key; its secret is made from {VARIABLE}")
    secret.set_defaults(run=show_webhook_secret)


def show_new_key(arguments: argparse.Namespace) -> int:
    """`braid keys new`."""
    token, key = new_key(arguments.name, Role.ADMIN if arguments.admin else Role.USER)
    print("The key, which is shown only now; clients send it as `Authorization: Bearer KEY`:")
    print(f"  {token}")
    print("Its line for the file of `braid serve --api-keys FILE`, or for BRAID_API_KEYS:")
    print(f"  {key.line}")
    return 0


def show_webhook_secret(arguments: argparse.Namespace) -> int:
    """`braid keys webhook-secret`."""
    if arguments.name is None:
        print(f"A new secret for {VARIABLE}; without API keys, receivers verify with it, too:")
        print(f"  {WebhookSecret.new().text}")
        return 0
    secret = WebhookSecret.parse(os.environ.get(VARIABLE, ""))
    print(f"Who receives the webhooks of {arguments.name!r} verifies them with:")
    print(f"  {secret.of(arguments.name).text}")
    return 0
