"""API keys: who may use the server, and as what.

A key is a random token of 256 bits. Only its SHA-256 is stored: nobody can guess such a token, so there is nothing that
a slow hash (scrypt, Argon2) would make dearer to guess, while it would cost every request milliseconds and make wrong
keys a cheap attack. For the same reason a token is always made here, never chosen by a person.

A line for a key is `NAME ROLE sha256:HEX`. The name owns the jobs that are asked for with it; a name may have several
lines, so that a new token can be given out before the old one is taken away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from braid.errors import InvalidRequest

VARIABLE = "BRAID_API_KEYS"
"""The environment's keys: the same lines, separated by line ends or commas."""

TOKEN_PREFIX = "braid_"
"""Lets scanners for leaked secrets know one when they see it."""
_TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_FORM = "NAME ROLE sha256:HEX, as `braid keys new` prints it"


class Role(StrEnum):
    """What a key may do."""

    USER = "user"
    """Ask for text, pictures, films and sound, and see its own jobs."""
    ADMIN = "admin"
    """Also the counters of the whole server, and what changes it."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, as it is stored.

    Raises:
        InvalidRequest: the name cannot be one.
    """

    name: str
    role: Role
    digest: bytes = field(repr=False)
    """SHA-256 of the token, 32 bytes."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"name={self.name[:100]!r} must be 1 to 64 letters, digits and ._@-, the first a letter or digit",
                param="name",
            )

    @property
    def line(self) -> str:
        """What the file of keys holds of it."""
        return f"{self.name} {self.role} sha256:{self.digest.hex()}"


def new_key(name: str, role: Role = Role.USER) -> tuple[str, ApiKey]:
    """A new token, which is stored nowhere, and its key."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    return token, ApiKey(name, role, _digest(token))


class ApiKeys:
    """All keys of a server.

    Raises:
        InvalidRequest: there is none; two have the same token, or one name two roles.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)
        if not self._keys:
            raise InvalidRequest(f"there is no API key; give lines of the form {_FORM}", param="api_keys")
        self._check()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, token: str) -> ApiKey | None:
        """The key of a token. Takes as long for a wrong token as for any right one."""
        digest = _digest(token)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _check(self) -> None:
        roles: dict[str, Role] = {}
        for key in self._keys:
            if roles.setdefault(key.name, key.role) is not key.role:
                raise InvalidRequest(f"API key {key.name!r} is both user and admin; say one", param="api_keys")
        if len({key.digest for key in self._keys}) < len(self._keys):
            raise InvalidRequest("two API keys have the same token; make another one", param="api_keys")


def read_keys(file: Path | None, environment: Mapping[str, str]) -> ApiKeys | None:
    """The keys of a file and of the environment together; None where neither is given.

    Raises:
        InvalidRequest: the file cannot be read or anybody may write it, a line is no key, or there is no line.
    """
    listed = environment.get(VARIABLE)
    if file is None and listed is None:
        return None
    keys = [] if file is None else _parse(_read(file).split("\n"), str(file))
    if listed is not None:
        keys += _parse(re.split(r"[\n,]", listed), VARIABLE)
    return ApiKeys(keys)


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & stat.S_IWOTH:
            raise InvalidRequest(f"anybody may write the keys' file {file}; chmod o-w it first", param="api_keys")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the keys' file {file} cannot be read: {error}", param="api_keys") from None


def _parse(lines: Iterable[str], where: str) -> list[ApiKey]:
    keys = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words:
            keys.append(_key(words, f"{where}, line {number}"))
    return keys


def _key(words: list[str], where: str) -> ApiKey:
    """What is wrong is told without the line, which may be a token that was put here by mistake."""
    if len(words) != 3:
        raise InvalidRequest(f"{where}: {len(words)} words are no API key; write {_FORM}", param="api_keys")
    name, role, stored = words
    digest = _HASH.fullmatch(stored)
    if digest is None:
        raise InvalidRequest(f"{where}: the last word is no hash; write {_FORM}", param="api_keys")
    if role not in list(Role):
        raise InvalidRequest(f"{where}: the role must be {' or '.join(Role)}; write {_FORM}", param="api_keys")
    return ApiKey(name, Role(role), bytes.fromhex(digest[1]))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
