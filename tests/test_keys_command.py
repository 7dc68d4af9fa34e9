"""`braid keys`."""

from __future__ import annotations

import pytest

from braid.cli import main
from braid.rest.keys import Role, read_keys


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
