"""yoyo's access to databases, with our rules. Blocking: used in a thread.

What is different from yoyo's own way, on databases whose transactions hold schema changes as well (PostgreSQL, SQLite):

- A migration and the note that it is applied are one transaction. yoyo writes the note in a second one, and a process
  that dies in between leaves a database that no further attempt gets on with.
- That transaction has the database to itself, among all who run migrations with Gati, and looks again what is applied.
  So a migration runs once even where the lock in the fabric has failed.
- Each package has tables of its own, so that two packages may name a migration alike.

No statement's text and no result is printed, and the database's password is in no message.
"""

from __future__ import annotations

import datetime
import getpass
import hashlib
import importlib.util
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

from yoyo import internalmigrations
from yoyo.backends.base import get_backend_class
from yoyo.backends.core.postgresql import PostgresqlBackend, PostgresqlPsycopgBackend
from yoyo.backends.core.sqlite3 import SQLiteBackend
from yoyo.connections import parse_uri
from yoyo.utils import change_param_style

from gati_core.errors import SchemaError
from gati_core.schemas._job import Job
from gati_core.schemas._thread import Control, Stopped

T = TypeVar("T")
Direction = Literal["apply", "rollback"]

_BUSY_S = 0.05
_SQLITE_WAIT_S = 1.0
_CONNECT_WITHIN_S = 10
_CANCEL_WITHIN_S = 2.0
_SERVER_MARGIN_S = 5.0
"""The database ends a transaction by itself this much later than we would: when our machine is gone."""
_LONGEST_STEM = 40
_MAX_TEXT = 600
# One number for all of Gati, as PostgreSQL's locks are by database already.
_ADVISORY_LOCK = int.from_bytes(hashlib.sha256(b"gati.schemas").digest()[:8], "big", signed=True)


class _Quiet:
    """A cursor for the statements of migrations: yoyo prints whatever rows they return, and here there are none."""

    description = None

    def __init__(self, cursor: Any, control: Control) -> None:
        self._cursor = cursor
        self._control = control

    def execute(self, statement: str) -> None:
        self._control.check()
        self._cursor.execute(statement)

    def close(self) -> None:
        self._cursor.close()


class Rules:
    """Before one of yoyo's backends in the order of classes."""

    is_transactional = False
    """Whether schema changes are part of transactions for certain."""

    def __init__(self, uri: Any, table: str, control: Control) -> None:
        self.control = control
        self._is_noting = False
        # yoyo's own names would be shared by all who use the database.
        stem = table.removesuffix("_migrations")
        self.log_table = f"{stem}_log"
        self.version_table = f"{stem}_version"
        super().__init__(uri, table)  # type: ignore[call-arg]  # of yoyo's backend
        self.has_transactional_ddl = self.is_transactional

    def connect(self, uri: Any) -> Any:
        connection = super().connect(uri)  # type: ignore[misc]
        interrupt = self.interrupt_of(connection)
        if interrupt is not None:
            self.control.add_interrupt(interrupt)
        return connection

    @staticmethod
    def interrupt_of(connection: Any) -> Callable[[], None] | None:
        """What ends a statement that runs on the connection, called from another thread."""
        return None

    def copy(self) -> Any:
        """yoyo's, on another connection, for what may not be in our transaction."""
        backend: Any = self
        other = type(self)(backend.uri, backend.migration_table, self.control)
        other.has_transactional_ddl = self.has_transactional_ddl
        return other

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        """yoyo's lock is a row that outlives its owner. The fabric's lock takes its place."""
        yield

    def cursor(self) -> _Quiet:
        """For the statements of migrations."""
        return _Quiet(self.connection.cursor(), self.control)  # type: ignore[attr-defined]

    def execute(self, sql: str, params: Mapping[str, Any] | None = None) -> Any:
        """For yoyo's own statements."""
        backend: Any = self
        cursor = backend.connection.cursor()
        cursor.execute(*change_param_style(backend.driver.paramstyle, sql, params))
        return cursor

    def commit(self) -> None:
        """Nothing is committed by who lost the lock, or is too late; but what is done is noted."""
        if not self._is_noting:
            self.control.check()
        super().commit()  # type: ignore[misc]

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """yoyo's, which asks a name server for this machine's name, and fails for users without an account."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):
            user = ""
        return {
            "id": hashlib.sha256(f"{time.time_ns()}{id(self)}".encode()).hexdigest()[:36],
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.datetime.now(datetime.UTC).replace(tzinfo=None),
            "operation": operation,
        }

    # -- used above ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make or upgrade yoyo's tables."""
        backend: Any = self
        if not self.is_transactional:
            backend.has_transactional_ddl = backend._check_transactional_ddl()
        with backend.transaction():
            if internalmigrations.needs_upgrading(backend):
                internalmigrations.upgrade(backend)
        backend._internal_schema_updated = True

    def applied_hashes_if_any(self) -> set[str]:
        """What is applied; nothing where yoyo's tables are missing. Changes nothing."""
        backend: Any = self
        if not backend._internal_schema_updated and internalmigrations.needs_upgrading(backend):
            return set()
        backend._internal_schema_updated = True
        return set(backend.get_applied_migration_hashes())

    def is_atomic(self, migration: Any) -> bool:
        """Whether a migration happens in full or not at all."""
        migration.load()
        return bool(self.is_transactional and migration.use_transactions)

    def apply_in_full(self, migration: Any) -> bool:
        """Apply one, and note it. Returns False where it was applied meanwhile."""
        return self._run(migration, "apply")

    def roll_back_in_full(self, migration: Any) -> bool:
        """Roll one back, and note it. Returns False where it was rolled back meanwhile."""
        return self._run(migration, "rollback")

    def apply_hook(self, migration: Any) -> None:
        """Run one that comes after all others, every time."""
        backend: Any = self
        if self.is_atomic(migration):
            with backend.transaction():
                migration.process_steps(backend, "apply")
        else:
            with self.copy() as other:
                migration.process_steps(other, "apply")

    def _run(self, migration: Any, direction: Direction) -> bool:
        backend: Any = self
        if self.is_atomic(migration):
            with backend.transaction():
                if (migration.hash in self.applied_hashes_if_any()) == (direction == "apply"):
                    return False
                migration.process_steps(backend, direction)
                self._note(migration, direction)
            return True
        self.control.check()
        with self.copy() as other:
            migration.process_steps(other, direction)
        self._is_noting = True
        with backend.transaction():
            self._note(migration, direction)
        self._is_noting = False
        return True

    def _note(self, migration: Any, direction: Direction) -> None:
        backend: Any = self
        backend.log_migration(migration, direction)
        if direction == "apply":
            backend.mark_one(migration, log=False)
        else:
            backend.unmark_one(migration, log=False)


class _PostgresRules(Rules):
    is_transactional = True

    @staticmethod
    def interrupt_of(connection: Any) -> Callable[[], None] | None:
        if hasattr(connection, "cancel_safe"):
            return lambda: connection.cancel_safe(timeout=_CANCEL_WITHIN_S)
        cancel: Callable[[], None] = connection.cancel
        return cancel

    def begin(self) -> None:
        super().begin()  # type: ignore[misc]
        limit_ms = int((self.control.timeout_s + _SERVER_MARGIN_S) * 1000)
        # For this transaction only: a pooler between us and the database may hand the session to somebody else.
        self.execute(f"SET LOCAL statement_timeout = {limit_ms}")
        self.execute(f"SET LOCAL idle_in_transaction_session_timeout = {limit_ms}")
        self.execute(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")


class _Postgres(_PostgresRules, PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    pass


class _Postgres2(_PostgresRules, PostgresqlBackend):  # type: ignore[misc]  # yoyo has no types
    pass


class _Sqlite(Rules, SQLiteBackend):  # type: ignore[misc]  # yoyo has no types
    is_transactional = True

    def connect(self, uri: Any) -> Any:
        # yoyo shares the cache between connections, which makes them fail where others wait.
        connection = sqlite3.connect(unquote(uri.database or ""), timeout=_SQLITE_WAIT_S, isolation_level=None)
        self.control.add_interrupt(connection.interrupt)
        return connection

    def __enter__(self) -> Any:
        return self  # yoyo's changes how the whole process stores dates in SQLite

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def execute(self, sql: str, params: Mapping[str, Any] | None = None) -> Any:
        plain = {
            name: value.isoformat(" ") if isinstance(value, datetime.datetime) else value
            for name, value in (params or {}).items()
        }
        return super().execute(sql, plain)

    def begin(self) -> None:
        # The lock for writing at once: whoever waits for it sees afterwards what the other one has done.
        self._patiently(lambda: self.connection.execute("BEGIN IMMEDIATE"))
        self._in_transaction = True

    def commit(self) -> None:
        self._patiently(super().commit)

    def savepoint_rollback(self, id: str) -> None:
        if self.connection.in_transaction:  # some errors have rolled back everything already
            super().savepoint_rollback(id)

    def _patiently(self, function: Callable[[], T]) -> T:
        while True:
            try:
                return function()
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                self.control.check()  # the step's time limits this
                time.sleep(_BUSY_S)


@contextmanager
def opened(job: Job, control: Control) -> Iterator[Any]:
    """A connection to the schema's database, closed at the end; what was not committed is gone then."""
    uri = parse_uri(job.database.url)
    backend_class, uri = _backend_class(uri)
    try:
        backend = backend_class(uri, _table_of(job.schema.app), control)
    except ImportError as exc:
        raise SchemaError(
            f"the driver for {job.database.family} is not installed ({exc}): add it to the package's dependencies"
            f"{_DRIVERS.get(job.database.family, '')}"
        ) from exc
    except Exception as exc:
        if control.reason:
            raise Stopped(control.reason) from None
        raise SchemaError(
            f"no connection to {job.database.shown}: {job.database.scrub(text_of(exc))}; check the url"
            f" ({job.schema.shown_url}), and whether the database runs and can be reached from here"
        ) from None
    with closing(backend.connection):
        yield backend


_DRIVERS = {"postgresql": ", for example psycopg[binary]", "mysql": ", for example pymysql"}


def _backend_class(uri: Any) -> tuple[Any, Any]:
    scheme = uri.scheme.lower()
    if scheme == "sqlite":
        return _Sqlite, uri
    if scheme in ("postgres", "postgresql", "psql", "postgresql+psycopg", "postgresql+psycopg2"):
        arguments = {"connect_timeout": _CONNECT_WITHIN_S, "fallback_application_name": "gati", **uri.args}
        is_new = scheme.endswith("+psycopg") or (
            not scheme.endswith("2") and (_is_installed("psycopg") or not _is_installed("psycopg2"))
        )
        if not is_new:
            return _Postgres2, uri._replace(args=arguments)
        # A pooler between us and the database knows nothing of statements prepared in another session.
        return _Postgres, uri._replace(args={**arguments, "prepare_threshold": None})
    try:
        base = get_backend_class(scheme)
    except KeyError:
        raise SchemaError(
            f"databases of the kind {scheme}:// are not known: sqlite, postgresql and mysql are"
        ) from None
    return type(f"_{base.__name__}", (Rules, base), {}), uri


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _table_of(app: str) -> str:
    """The table that says what of a package is applied; names may have 63 characters in PostgreSQL."""
    stem = app if len(app) <= _LONGEST_STEM else f"{app[: _LONGEST_STEM - 9]}_{hash_of(app)[:8]}"
    return f"_gati_{stem}_migrations"


def hash_of(id: str) -> str:
    """yoyo's name of a migration in its tables."""
    return hashlib.sha256(id.encode()).hexdigest()


def text_of(error: object) -> str:
    """What went wrong, without the statement and the rows that PostgreSQL quotes below its first line."""
    said = getattr(getattr(error, "diag", None), "message_primary", None) or error
    text = " ".join(str(said).split()) or "no reason given"
    if isinstance(error, BaseException):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
