"""API keys: making them, reading them, finding the one of a token."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from braid.errors import InvalidRequest
from braid.rest.keys import ApiKey, ApiKeys, Role, new_key, read_keys

ANN, ANNS_KEY = new_key("ann")
BOB, BOBS_KEY = new_key("bob", Role.ADMIN)


def test_a_new_token_is_long_random_and_not_in_its_key() -> None:
    token, key = new_key("ann")
    assert token.startswith("braid_")
    assert len(token) == len("braid_") + 43  # 256 bits in base64
    assert token != ANN
    assert token not in f"{key!r} {key.line}"
    assert key.line == f"ann user sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    assert key.digest.hex() not in repr(key)


def test_a_token_finds_its_key_and_no_other() -> None:
    keys = ApiKeys([ANNS_KEY, BOBS_KEY])
    assert keys.find(ANN) == ANNS_KEY
    assert keys.find(BOB) == BOBS_KEY
    for wrong in ("", ANN[:-1], ANN + "x", ANN.upper(), ANNS_KEY.digest.hex(), "\udcff"):
        assert keys.find(wrong) is None


def test_every_stored_hash_is_compared_wherever_the_right_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare_digest(stored: bytes, given: bytes) -> bool:
        compared.append(stored)
        return stored == given

    monkeypatch.setattr("hmac.compare_digest", compare_digest)
    for token in (ANN, BOB, "wrong"):
        compared.clear()
        ApiKeys([ANNS_KEY, BOBS_KEY]).find(token)
        assert compared == [ANNS_KEY.digest, BOBS_KEY.digest]


def test_keys_are_read_from_a_file_with_comments_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may film\n\n  {ANNS_KEY.line}   # our first\n")
    _, third = new_key("cyd")
    keys = read_keys(file, {"BRAID_API_KEYS": f"{BOBS_KEY.line},{third.line}\n"})
    assert keys is not None
    assert len(keys) == 3
    assert keys.find(ANN) == ANNS_KEY
    assert keys.find(BOB) == BOBS_KEY


def test_no_file_and_no_variable_are_no_keys() -> None:
    assert read_keys(None, {}) is None


@pytest.mark.parametrize("environment", [{"BRAID_API_KEYS": ""}, {"BRAID_API_KEYS": "# later\n"}])
def test_given_keys_without_a_key_are_refused_rather_than_asking_nobody(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="there is no API key"):
        read_keys(None, environment)


def test_a_name_may_have_two_tokens() -> None:
    token, second = new_key("ann")
    keys = ApiKeys([ANNS_KEY, second])
    found = [keys.find(ANN), keys.find(token)]
    assert [key and key.name for key in found] == ["ann", "ann"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"ann {ANN}", "2 words"),
        (f"ann user {ANN}", "no hash"),
        (f"ann user sha256:{'A' * 64}", "no hash"),
        (f"ann root {ANNS_KEY.line.split()[2]}", "user or admin"),
        (f"a/b user {ANNS_KEY.line.split()[2]}", "name='a/b'"),
        (f"{'a' * 65} user {ANNS_KEY.line.split()[2]}", "1 to 64"),
        (ANNS_KEY.line + "\n" + ANNS_KEY.line, "same token"),
        (ANNS_KEY.line + "\n" + new_key("ann", Role.ADMIN)[1].line, "both user and admin"),
    ],
)
def test_a_wrong_line_is_refused_without_telling_what_may_be_a_token(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_keys(file, {})
    assert ANN not in str(caught.value)


def test_a_file_that_is_not_there_or_open_to_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_keys(file, {})
    file.write_text(ANNS_KEY.line)
    file.chmod(0o646)
    with pytest.raises(InvalidRequest, match="chmod o-w"):
        read_keys(file, {})


def test_a_name_must_be_one() -> None:
    with pytest.raises(InvalidRequest, match="name=''"):
        ApiKey("", Role.USER, b"\0" * 32)
