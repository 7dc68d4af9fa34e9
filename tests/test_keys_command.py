"""`braid keys`."""

from __future__ import annotations

import pytest

from braid.cli import main
from braid.rest.keys import Role, read_keys
from braid.rest.webhook_secret import WebhookSecret


@pytest.mark.parametrize(("options", "role"), [([], Role.USER), (["--admin"], Role.ADMIN)])
def test_the_printed_line_lets_the_printed_token_in(
    options: list[str], role: Role, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", "ann", *options]) == 0
    _, token, _, line = capsys.readouterr().out.splitlines()
    keys = read_keys(None, {"BRAID_API_KEYS": line.strip()})
    assert keys is not None
    found = keys.find(token.strip())
    assert found is not None
    assert (found.name, found.role) == ("ann", role)


def test_a_name_that_cannot_be_one_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "two words"]) == 2
    assert "name='two words'" in capsys.readouterr().err


def test_a_webhook_secret_is_made_and_then_that_of_each_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["keys", "webhook-secret"]) == 0
    secret = WebhookSecret.parse(capsys.readouterr().out.splitlines()[1])
    monkeypatch.setenv("BRAID_WEBHOOK_SECRET", secret.text)
    assert main(["keys", "webhook-secret", "ann"]) == 0
    assert capsys.readouterr().out.splitlines()[1].strip() == secret.of("ann").text


def test_a_keys_webhook_secret_needs_the_servers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRAID_WEBHOOK_SECRET", raising=False)
    assert main(["keys", "webhook-secret", "ann"]) == 2
    assert "whsec_" in capsys.readouterr().err
