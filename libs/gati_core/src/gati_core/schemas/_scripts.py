"""The migration files of a directory, as yoyo names and reads them; nothing of them runs here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

_SUFFIXES = (".sql", ".py")
_ROLLBACK = ".rollback.sql"
_TEMPORARY = "_tmp_yoyo"
_POST_APPLY = "post-apply"


class Script(msgspec.Struct, frozen=True):
    """One migration."""

    id: str
    """The file's name without its ending, which is how yoyo remembers it."""
    path: Path
    sha256: str
    """Of its text, whatever its line endings; what rolls it back does not count."""


def is_script(path: Path) -> bool:
    """Whether a file is a migration: neither a rollback, nor a hook after all of them, nor a package's file."""
    name = path.name
    return (
        path.suffix in _SUFFIXES
        and not name.endswith(_ROLLBACK)
        and not name.startswith((_TEMPORARY, _POST_APPLY, "__"))
        and path.is_file()
    )


def find_scripts(directory: Path) -> list[Script]:
    """The migrations of a directory, by name.

    Raises:
        OSError: it cannot be read.
    """
    return [
        Script(path.stem, path, _digest(path.read_bytes())) for path in sorted(directory.iterdir()) if is_script(path)
    ]


def _digest(text: bytes) -> str:
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()
