"""Database URLs: where the database is, what may be shown of that, and which URLs mean the same database.

A URL may carry a password. Nothing here puts one into a message, and `Database.scrub` takes it out of the messages
of others.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from gati_core.errors import SchemaError

ENV_PREFIX = "env:"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*:[^\s@]*(?=@)")
_SECRET_FIELD = re.compile(r"pass|secret|token|key", re.IGNORECASE)
_POSTGRES = ("postgres", "postgresql", "psql", "postgresql+psycopg", "postgresql+psycopg2")
_HIDDEN = "***"
_SHORTEST_SECRET = 3
_ID_DIGITS = 16


def problem_of(url: object) -> str:
    """What is wrong with a declared URL; nothing when it may be one. Never shows it."""
    if not isinstance(url, str) or not url:
        return "url must be text: a database URL, or env:NAME for the environment variable that holds it"
    if url.startswith(ENV_PREFIX):
        name = url.removeprefix(ENV_PREFIX)
        return "" if _ENV_NAME.fullmatch(name) else f"url names no environment variable: {name!r} is no such name"
    if _SCHEME.match(url) is None:
        return (
            "url is no database URL: expected sqlite:///path, postgresql://user@host/database or the like, or env:NAME"
            " for the environment variable that holds it"
        )
    return ""


class Database:
    """The database that a URL leads to.

    Args:
        url: as it is declared.
        environ: where `env:NAME` is looked up.
    Raises:
        SchemaError: the variable is not set, or what is there is no database URL; does not show it.
    """

    __slots__ = ("_secrets", "family", "id", "shown", "url")

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        said = "the url"
        if url.startswith(ENV_PREFIX):
            name = url.removeprefix(ENV_PREFIX)
            said = f"the environment variable {name}"
            url = environ.get(name, "")
            if not url:
                raise SchemaError(f"{said} is not set in this process: set it to the database's URL")
            if url.startswith(ENV_PREFIX) or problem_of(url):
                raise SchemaError(
                    f"{said} holds no database URL: expected, for example, postgresql://user@host/database"
                )
        parts = _split(url)
        if parts is None:
            raise SchemaError(
                f"{said} cannot be read: characters such as / ? # [ ] @ in a user name or password are written"
                " percent-encoded (%2F for /)"
            )
        self.url = url
        self.family = _family(parts.scheme)
        fields = dict(parse_qsl(parts.query))
        self.shown = _shown(self.family, parts)
        self.id = _identity(self.family, parts, fields)
        self._secrets = _secrets(url, parts, fields)

    def scrub(self, text: str) -> str:
        """The text without passwords, this database's above all."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return _CREDENTIALS.sub(_HIDDEN, text)


def _split(url: str) -> SplitResult | None:
    """None where it cannot be read; Python's message quotes the piece, which may be part of a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return None if _is_cut(parts) else parts


def _is_cut(parts: SplitResult) -> bool:
    """Whether the place of the database ended within its password: what follows looks like its rest."""
    if parts.scheme.lower() == "sqlite" or "@" in parts.netloc:
        return False
    return "@" in parts.path or "@" in parts.fragment or ("@" in parts.query and "=" not in parts.query.split("@")[0])


def _family(scheme: str) -> str:
    scheme = scheme.lower()
    return "postgresql" if scheme in _POSTGRES else scheme


def _shown(family: str, parts: SplitResult) -> str:
    user = f"{parts.username}@" if parts.username else ""
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    return f"{family}://{user}{host}{parts.path}"


def _identity(family: str, parts: SplitResult, fields: Mapping[str, str]) -> str:
    """The same for the same database, whoever logs in and however that is spelled."""
    if family == "sqlite":
        place = os.path.realpath(unquote(parts.path[1:]))
    else:
        host = parts.hostname or fields.get("host", "")
        default = {"postgresql": "5432", "mysql": "3306"}.get(family, "")
        number = str(parts.port) if parts.port else fields.get("port", default)
        place = f"{host}:{number}/{parts.path[1:] or fields.get('dbname', '')}#{fields.get('schema', '')}"
    return hashlib.sha256(f"{family}\0{place}".encode()).hexdigest()[:_ID_DIGITS]


def _secrets(url: str, parts: SplitResult, fields: Mapping[str, str]) -> list[str]:
    found = {value for name, value in fields.items() if _SECRET_FIELD.search(name)}
    if parts.password:
        found |= {parts.password, unquote(parts.password)}
        found.add(url)
    # A secret of one or two characters says nothing, and taking it out would make messages unreadable.
    return sorted((each for each in found if len(each) >= _SHORTEST_SECRET), key=len, reverse=True)
