"""API keys: made here, kept as hashes in a file, compared in constant time.

A line of the file is `NAME ROLE sha256:HEX`; empty lines and those that begin with # are comments. A key is 256 random
bits, so nobody can try them all, and one round of SHA-256 is enough. Slow hashes (scrypt, Argon2) protect passwords
that people think up; here they would cost milliseconds of CPU for every request, even of clients without a key.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from export.errors import UsageError

# So that scanners for leaked secrets, and people, recognise a key.
PREFIX = "segpress_"
_RANDOM_BYTES = 32

_LINE = re.compile(r"(?P<name>\S+)\s+(?P<role>\S+)\s+sha256:(?P<digest>[0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Role(StrEnum):
    """What a key permits."""

    USE = "use"
    """Ask for masks, metadata and metrics."""
    ADMIN = "admin"
    """That, and change which models are served."""


class KeyFileError(UsageError):
    """A key file that a server must not start with."""


@dataclass(frozen=True)
class Key:
    """A key as the server knows it: not the secret, only its hash."""

    name: str
    """Name of whoever holds it; the log shows it with every request made with the key."""
    role: Role
    digest: bytes
    """SHA-256 of the secret."""

    def line(self) -> str:
        """Its line in the file."""
        return f"{self.name} {self.role} sha256:{self.digest.hex()}"


def make_key(name: str, role: Role) -> tuple[str, Key]:
    """A new secret, which is stored nowhere, and the key by which a server recognises it.

    Raises UsageError for a name that cannot be part of a line of the file.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a key; use up to 64 letters, digits, dots, dashes and underscores")
    secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return secret, Key(name, role, _digest(secret))


def add_key(path: Path, name: str, role: Role) -> str:
    """Append a new key to a file, and return its secret. A new file can be read by its owner alone.

    Raises UsageError for a bad name or one that is there already, KeyFileError for a file that is not of keys or cannot
    be written.
    """
    text = _text(path) if path.exists() else ""
    if any(key.name == name for key in _keys(path, text)):
        raise UsageError(f"{path} has a key named {name} already; take another name, or delete its line first")
    secret, key = make_key(name, role)
    # A file edited by hand may lack the newline at its end.
    opening = "\n" if text and not text.endswith("\n") else ""
    try:
        path.touch(mode=0o600)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{opening}{key.line()}\n")
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; name a file that can be written") from error
    return secret


@dataclass(frozen=True)
class Keyring:
    """The keys that a server takes."""

    keys: Sequence[Key]

    def find(self, secret: str) -> Key | None:
        """The key with this secret, or None. A wrong secret takes as long as a right one, whichever key that is."""
        digest, found = _digest(secret), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def load_keys(path: Path) -> Keyring:
    """Read a file of keys for a server.

    Raises KeyFileError with everything that is wrong with it; a file without keys is wrong, too.
    """
    keys = _keys(path, _text(path))
    if not keys:
        raise _wrong(
            path, ["there is no key in it, so every request would be refused; make one with compress serve-key"]
        )
    return Keyring(keys)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is not text; make keys with compress serve-key") from error
    except OSError as error:
        raise KeyFileError(f"API keys {path}: {error.strerror}; make it with compress serve-key") from error


def _keys(path: Path, text: str) -> list[Key]:
    """The keys in `text`, the content of `path`; perhaps none. Raises KeyFileError."""
    keys: list[Key] = []
    problems: list[str] = []
    for number, line in enumerate((line.strip() for line in text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        # The line itself is not shown: it may be a secret that somebody put here by mistake.
        match = _LINE.fullmatch(line)
        if match is None or match["role"] not in set(Role):
            problems.append(f"line {number} is not NAME {'|'.join(Role)} sha256:HEX; make it with compress serve-key")
        elif any(key.name == match["name"] for key in keys):
            problems.append(f"line {number} has the name of an earlier line; give each key its own")
        else:
            keys.append(Key(match["name"], Role(match["role"]), bytes.fromhex(match["digest"])))
    if problems:
        raise _wrong(path, problems)
    return keys


def _wrong(path: Path, problems: Sequence[str]) -> KeyFileError:
    return KeyFileError(f"API keys {path}:" + "".join(f"\n  - {problem}" for problem in problems))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
