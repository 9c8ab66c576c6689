"""What the fabric remembers of schemas: one record for each in `{ns}_timescape`, changed by compare-and-set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import anyio
import msgspec

from gati_core.errors import KeyConflict, MalformedManifest
from gati_core.schemas._lock import LockBucket
from gati_core.wire.subjects import key_token

T = TypeVar("T")
Status = Literal["pending", "applied", "rolled_back", "failed"]

_ATTEMPTS = 50


class ScriptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One migration of a schema."""

    id: str
    sha256: str
    """Of the text that was applied, or would be."""
    applied_ms: int = 0
    """Unix time at which it was first seen to be applied; 0 while it is not."""


class SchemaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a database schema."""

    app: str
    name: str
    status: Status = "pending"
    used_by: list[str] = []
    """The versions that use it."""
    scripts: list[ScriptRecord] = []
    """All that versions of the package have declared for it, in order."""
    compatible_with: list[str] = []
    database: str = ""
    """Where it is, without password."""
    database_id: str = ""
    """The same for the same database."""
    failed_script: str = ""
    error: str = ""
    changed_ms: int = 0
    changed_by: str = ""

    @property
    def applied(self) -> list[str]:
        """The ids of its migrations that are applied."""
        return [each.id for each in self.scripts if each.applied_ms]

    def sha256_of(self, id: str) -> str:
        """Of the text of a migration; empty where it has none of this name."""
        return next((each.sha256 for each in self.scripts if each.id == id), "")


Edit = Callable[[SchemaRecord], SchemaRecord]


class SchemaBook:
    """Reads and changes records."""

    def __init__(self, bucket: LockBucket) -> None:
        self._bucket = bucket

    async def get(self, app: str, name: str) -> SchemaRecord | None:
        """A schema's record; None where nobody has used it yet.

        Raises:
            MalformedManifest: what is stored is none.
        """
        entry = await self._bucket.get(record_key(app, name))
        return None if entry is None else read_schema_record(entry.key, entry.value)

    async def names(self, app: str) -> list[str]:
        """The schemas of a package that have records, sorted."""
        entry = await self._bucket.get(index_key(app))
        return [] if entry is None else _read(entry.key, entry.value, list[str])

    async def all_of(self, app: str) -> list[SchemaRecord]:
        """The records of a package, by name."""
        found = [await self.get(app, name) for name in await self.names(app)]
        return [each for each in found if each is not None]

    async def change(self, app: str, name: str, edit: Edit) -> SchemaRecord:
        """Change a record; `edit` gets what is stored, and is called again when somebody else was faster.

        It is written even where nothing changed: what is returned is certain to be current.

        Raises:
            KeyConflict: others were faster every time.
        """
        key = record_key(app, name)
        for attempt in range(_ATTEMPTS):
            entry = await self._bucket.get(key)
            if entry is None:
                await self._enter(app, name)
            before = SchemaRecord(app=app, name=name) if entry is None else _read(key, entry.value, SchemaRecord)
            after = edit(before)
            if await self._write(key, msgspec.json.encode(after), None if entry is None else entry.revision):
                return after
            await anyio.sleep(min(0.002 * attempt, 0.05))
        raise KeyConflict(f"the schema {name} of {app} was changed by others {_ATTEMPTS} times in a row")

    async def _enter(self, app: str, name: str) -> None:
        """Put a name on the list: reading all keys of the bucket to find the records would cost too much."""
        key = index_key(app)
        for attempt in range(_ATTEMPTS):
            entry = await self._bucket.get(key)
            names = [] if entry is None else _read(key, entry.value, list[str])
            if name in names:
                return
            data = msgspec.json.encode(sorted([*names, name]))
            if await self._write(key, data, None if entry is None else entry.revision):
                return
            await anyio.sleep(min(0.002 * attempt, 0.05))
        raise KeyConflict(f"the list of schemas of {app} was changed by others {_ATTEMPTS} times in a row")

    async def _write(self, key: str, data: bytes, revision: int | None) -> bool:
        try:
            if revision is None:
                await self._bucket.create(key, data)
            else:
                await self._bucket.update(key, data, revision=revision)
        except KeyConflict:
            return False
        return True


def record_key(app: str, name: str) -> str:
    """The key of a schema's record."""
    return f"schema.{key_token(app)}.{key_token(name)}"


def is_record_key(key: str) -> bool:
    """Whether a key is that of a schema's record."""
    return key.startswith("schema.") and key.count(".") == 2


def read_schema_record(key: str, value: bytes) -> SchemaRecord:
    """A stored record.

    Raises:
        MalformedManifest: it is none.
    """
    return _read(key, value, SchemaRecord)


def index_key(app: str) -> str:
    """The key of the list of a package's schemas."""
    return f"schemas.{key_token(app)}"


def schema_lock_key(app: str, name: str) -> str:
    """The key of the lock that guards a schema."""
    return f"lock.schema.{key_token(app)}.{key_token(name)}"


def database_lock_key(database_id: str) -> str:
    """The key of the lock that guards a database."""
    return f"lock.database.{key_token(database_id)}"


def _read(key: str, value: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc
