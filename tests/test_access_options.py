"""The options of `braid serve` about who may use it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from braid.access_options import add_access_options, read_access
from braid.errors import InvalidRequest
from braid.rest.access import Access
from braid.rest.keys import new_key
from braid.rest.webhook_secret import WebhookSecret


def access(line: str, **environment: str) -> Access:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    add_access_options(parser)
    return read_access(parser.parse_args(line.split()), environment)


def test_nothing_said_is_closed() -> None:
    plain = access("")
    assert (plain.keys, plain.cors_origins, plain.allow_remote_urls, plain.webhook_secret) == (None, (), False, None)
    assert (plain.allowed_hosts, plain.trusted_hosts) == (("127.0.0.1",), ())
    assert (plain.limits.requests_per_minute, plain.limits.queued_jobs) == (None, 256)


def test_every_option_is_taken(tmp_path: Path) -> None:
    token, key = new_key("ann")
    file = tmp_path / "keys"
    file.write_text(key.line)
    said = access(
        f"--host studio --api-keys {file} --allowed-host a --allowed-host b --cors-origin https://c.example "
        "--requests-per-minute 5 --queued-jobs 6 --queued-jobs-per-key 7 --allow-remote-urls --trusted-host d",
        BRAID_WEBHOOK_SECRET=WebhookSecret(b"s" * 24).text,
    )
    assert said.keys is not None
    assert said.keys.find(token) == key
    assert (said.allowed_hosts, said.cors_origins) == (("a", "b", "studio"), ("https://c.example",))
    limits = said.limits
    assert (limits.requests_per_minute, limits.queued_jobs, limits.queued_jobs_per_key) == (5, 6, 7)
    assert (said.allow_remote_urls, said.trusted_hosts) == (True, ("d",))
    assert said.webhook_secret == WebhookSecret(b"s" * 24)


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("--api-keys /no/such/file", {}),
        ("", {"BRAID_API_KEYS": "ann"}),
        ("", {"BRAID_WEBHOOK_SECRET": "x"}),
        ("--queued-jobs 0", {}),
        ("--cors-origin *", {}),
    ],
)
def test_what_cannot_be_right_is_refused(line: str, environment: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        access(line, **environment)


def test_reading_them_imports_no_web_framework() -> None:
    code = "import braid.access_options, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"fastapi", "starlette", "h11", "asyncio", "torch"} & set(run.stdout.split())
