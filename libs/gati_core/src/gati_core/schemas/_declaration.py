"""What a package says of one version of a database schema that it uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gati_core.errors import RegistrationError
from gati_core.limits import check_timeout
from gati_core.schemas._scripts import is_script
from gati_core.schemas._urls import ENV_PREFIX, problem_of
from gati_core.wire import token

SCRIPT_TIMEOUT_S = 30.0


class DbSchema:
    """One version of a database schema, as `App.db_schema` declares it.

    Args:
        app: the package's name.
        name: of this version of the schema, for example `schema_v42`.
        url: of the database, or `env:NAME`.
        directory: where the migration files are.
        compatible_with: names of other schemas whose users can also work with this one.
        timeout_s: for each migration.
        where: `file:line` of the declaration.
    Raises:
        RegistrationError: something of it is not right; with file and line.
    """

    __slots__ = ("app", "compatible_with", "directory", "name", "timeout_s", "url", "where")

    def __init__(
        self,
        *,
        app: str,
        name: str,
        url: str,
        directory: Path,
        compatible_with: Sequence[str] = (),
        timeout_s: float = SCRIPT_TIMEOUT_S,
        where: str = "",
    ) -> None:
        label = f"db_schema {name!r} ({where})" if where else f"db_schema {name!r}"
        given: Any = name  # whatever its annotation promises
        if not isinstance(given, str):
            raise RegistrationError(f"{label}: the name must be text")
        problem = problem_of(url)
        if problem:
            raise RegistrationError(f"{label}: {problem}")
        self.app = app
        self.name = token(name, f"{label}: the name")
        self.url = url
        self.directory = _checked_directory(directory, label)
        self.compatible_with = _checked_names(compatible_with, name, label)
        check_timeout(timeout_s, label)
        self.timeout_s = float(timeout_s)
        self.where = where

    def __repr__(self) -> str:
        return f"<DbSchema {self.name} of {self.app}>"  # the url may hold a password

    @property
    def shown_url(self) -> str:
        """Where the url comes from: the variable's name, and nothing of a literal one."""
        return self.url if self.url.startswith(ENV_PREFIX) else "(literal)"


class Versioned(Protocol):
    """A schema as far as compatibility goes: a declaration, or a record."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def compatible_with(self) -> Sequence[str]:
        """The schemas whose users can also work with it."""


def are_compatible(a: Versioned, b: Versioned) -> bool:
    """Whether both can be in use at once: they are the same, or one of them is declared compatible with the other."""
    return a.name == b.name or b.name in a.compatible_with or a.name in b.compatible_with


def _checked_directory(directory: Path, label: str) -> Path:
    if not directory.is_dir():
        raise RegistrationError(
            f"{label}: there is no directory {directory}; migrations= is relative to the module that declares the"
            " schema, and the directory must be part of the package"
        )
    if not any(is_script(path) for path in directory.iterdir()):
        raise RegistrationError(f"{label}: {directory} holds no migration: expected files such as 0001_orders.sql")
    return directory


def _checked_names(names: Sequence[str], own: str, label: str) -> tuple[str, ...]:
    given: Any = names
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise RegistrationError(f"{label}: compatible_with must be a list of names, not {names!r}")
    for each in names:
        token(each, f"{label}: compatible_with:")
    if own in names:
        raise RegistrationError(f"{label}: it is compatible with itself anyway; take it out of compatible_with")
    return tuple(dict.fromkeys(names))
