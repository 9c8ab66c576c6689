"""Bringing schemas into databases, and out of them again, once for the whole fabric.

A schema is used by versions of a package. The first that uses it has its migrations run; when the last has gone,
its rollbacks run. What is applied is asked of the database itself; the record in `{ns}_timescape` says who uses the
schema, and what anybody without access to the database may want to know.

Two locks, always in this order: the schema's, and the database's, because schemas of one database share migrations.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
import structlog
from msgspec.structs import replace

from gati_core.errors import SchemaError
from gati_core.fabric import Fabric, KvBucket
from gati_core.schemas._decisions import (
    Place,
    SchemaResult,
    explained,
    failure_of,
    finished,
    is_recorded,
    job_of,
    needed_by,
    registered,
    result_of,
)
from gati_core.schemas._declaration import DbSchema, are_compatible
from gati_core.schemas._job import Job, Outcome
from gati_core.schemas._lock import ClusterLock, Lease, LockBucket
from gati_core.schemas._records import (
    SchemaBook,
    SchemaRecord,
    Status,
    database_lock_key,
    schema_lock_key,
)
from gati_core.schemas._scripts import find_scripts
from gati_core.schemas._thread import Abandoned, Control, Stopped
from gati_core.schemas._urls import Database

log = structlog.get_logger(__name__)

LOCK_TTL_S = 15
"""How long the lock of a process that died keeps others waiting."""
LOCK_WAIT_S = 120.0
_VERIFY_WITHIN_S = 5.0


Callback = Callable[[SchemaResult], None]
Work = Callable[[Any, Control, Outcome], None]


class Schemas:
    """See the module.

    Args:
        bucket: `{ns}_timescape`.
        environ: where urls of the form `env:NAME` are looked up.
        actor: who does all this, for records and for others that wait.
        on_applied: told when migrations were run.
        on_rolled_back: told when rollbacks were run.
        on_progress: told before everything that takes long, with the seconds that it may take.
        lock_ttl_s: how long a lock outlives its holder.
        lock_wait_s: how long somebody else's lock is waited for.
        now_ms: Unix milliseconds.
    """

    def __init__(
        self,
        bucket: LockBucket,
        *,
        environ: Mapping[str, str],
        actor: str,
        on_applied: Callback = lambda result_of: None,
        on_rolled_back: Callback = lambda result_of: None,
        on_progress: Callable[[float], None] = lambda _seconds: None,
        lock_ttl_s: int = LOCK_TTL_S,
        lock_wait_s: float = LOCK_WAIT_S,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._bucket = bucket
        self._book = SchemaBook(bucket)
        self._environ = environ
        self._actor = actor
        self._on_applied = on_applied
        self._on_rolled_back = on_rolled_back
        self._on_progress = on_progress
        self._lock_ttl_s = lock_ttl_s
        self._lock_wait_s = lock_wait_s
        self._now_ms = now_ms

    # -- asking -----------------------------------------------------------------------------------

    async def record(self, app: str, name: str) -> SchemaRecord | None:
        """What is known of a schema; None where nobody has used it yet."""
        return await self._book.get(app, name)

    async def records(self, app: str) -> list[SchemaRecord]:
        """What is known of all schemas of a package, by name."""
        return await self._book.all_of(app)

    async def are_compatible(self, app: str, a: str, b: str) -> bool:
        """Whether two schemas of a package can be in use at once, by their records."""
        first, second = await self._book.get(app, a), await self._book.get(app, b)
        return are_compatible(first or SchemaRecord(app=app, name=a), second or SchemaRecord(app=app, name=b))

    # -- several ----------------------------------------------------------------------------------

    async def activate_all(self, schemas: Sequence[DbSchema], version: str) -> list[SchemaResult]:
        """Activate schemas one after another.

        Raises:
            SchemaError: one could not be; those before it are active.
            BrokerUnavailable, KeyConflict: the fabric could not be asked.
        """
        done: list[SchemaResult] = []
        for schema in schemas:
            result = await self.activate(schema, version)
            if not result.success:
                raise SchemaError(result.error, schema=schema.name, script=result.failed_script)
            done.append(result)
        return done

    async def deactivate_all(self, schemas: Sequence[DbSchema], version: str) -> list[SchemaResult]:
        """Deactivate schemas, the last one first; one that fails does not keep the others from it."""
        return [await self.deactivate(schema, version) for schema in reversed(schemas)]

    # -- one --------------------------------------------------------------------------------------

    async def activate(self, schema: DbSchema, version: str) -> SchemaResult:
        """Note that a version uses a schema, and run what of its migrations is not applied.

        What is applied already is a success without doing anything. After a failure the next attempt goes on with
        the migration that failed.

        Args:
            version: who uses it: a TSV, or whatever names a version of the package.
        Raises:
            BrokerUnavailable, KeyConflict: the fabric could not be asked; everything else is in the result.
        """
        began = time.monotonic()
        try:
            place = await self._placed(schema)
            if await self._is_in_place(place, version):
                result = result_of(place, True, "applied")
            else:
                async with self._locked(place) as leases:
                    result = await self._activate(place, version, leases)
        except SchemaError as exc:
            result = failure_of(schema, str(exc))
        result = replace(result, duration_ms=_since(began))
        if result.executed and result.success:
            _note("schema_applied", result)
            self._on_applied(result)
        return result

    async def deactivate(self, schema: DbSchema, version: str) -> SchemaResult:
        """Note that a version no longer uses a schema; when none does, run its rollbacks, the last first.

        Migrations that other schemas in use have as well stay, and so do those that bring no rollback, with all
        before them.

        Raises:
            BrokerUnavailable, KeyConflict: the fabric could not be asked; everything else is in the result.
        """
        began = time.monotonic()
        try:
            place = await self._placed(schema)
            if await self._book.get(schema.app, schema.name) is None:
                result = result_of(place, True, "pending")
            else:
                async with self._locked(place) as leases:
                    result = await self._deactivate(place, version, leases)
        except SchemaError as exc:
            result = failure_of(schema, str(exc))
        result = replace(result, duration_ms=_since(began))
        if result.success and (result.executed or result.kept):
            _note("schema_rolled_back", result)
        if result.success and result.executed:
            self._on_rolled_back(result)
        return result

    # -- activating -------------------------------------------------------------------------------

    async def _is_in_place(self, place: Place, version: str) -> bool:
        """Whether there is nothing to do; so that the next worker of a version neither waits nor writes."""
        schema = place.schema
        record = await self._book.get(schema.app, schema.name)
        if record is None or not is_recorded(place, record, version):
            return False
        control = Control(timeout_s=min(schema.timeout_s, _VERIFY_WITHIN_S))
        self._on_progress(control.timeout_s)
        try:
            return not await control.run(partial(_pending, place, control), name=f"schema {schema.name}")
        except (SchemaError, Stopped, Abandoned) as exc:
            # A version that has run here before is not kept from starting by a database that is away for a moment.
            log.warning("schema_not_verified", app=schema.app, schema=schema.name, error=str(exc))
            return True

    async def _activate(self, place: Place, version: str, leases: list[Lease]) -> SchemaResult:
        schema, database = place.schema, place.database
        before: list[SchemaRecord] = []

        def register(record: SchemaRecord) -> SchemaRecord:
            before[:] = [record]
            return registered(record, place, version, now_ms=self._now_ms(), actor=self._actor)

        record = await self._book.change(schema.app, schema.name, register)
        siblings = await self._siblings(place)
        for each in siblings:
            if each.used_by and not are_compatible(record, each):
                log.warning(
                    "schema_incompatible",
                    app=schema.app,
                    schema=schema.name,
                    other=each.name,
                    used_by=each.used_by[:5],
                    hint="versions that use the other one may fail; say compatible_with= where they do not",
                )
        outcome = await self._in_thread(
            place,
            leases,
            lambda yoyo, control, outcome: yoyo.apply(
                job_of(place, record, siblings, is_unfinished=before[0].status != "applied"), control, outcome
            ),
        )
        error = "" if not outcome.error else explained(place, outcome)

        def finish(record: SchemaRecord) -> SchemaRecord:
            if error and not outcome.is_known and before[0].status == "applied":
                return before[0]  # those who use it already are none the worse for it
            used_by = record.used_by
            if error and version not in before[0].used_by:
                used_by = [each for each in used_by if each != version]
            status: Status = "failed" if error else "applied"
            return self._after(record, outcome, place, status, error, used_by=used_by)

        if all(lease.is_valid for lease in leases):  # whoever has the lock now writes the record
            await self._book.change(schema.app, schema.name, finish)
        return result_of(
            place,
            not error,
            "failed" if error else "applied",
            executed=outcome.executed,
            failed_script=outcome.script,
            error=error,
            database=database.shown,
        )

    # -- deactivating -----------------------------------------------------------------------------

    async def _deactivate(self, place: Place, version: str, leases: list[Lease]) -> SchemaResult:
        schema, database = place.schema, place.database

        def leave(record: SchemaRecord) -> SchemaRecord:
            used_by = [each for each in record.used_by if each != version]
            return replace(record, used_by=used_by, changed_ms=self._now_ms(), changed_by=self._actor)

        record = await self._book.change(schema.app, schema.name, leave)
        if record.used_by or record.status == "rolled_back":
            return result_of(place, True, record.status)
        if record.database_id != database.id:
            raise SchemaError(
                f"it was applied in {record.database}, and its url ({schema.shown_url}) leads to {database.shown} here:"
                " deactivate it where the url leads there"
            )
        siblings = await self._siblings(place)
        outcome = await self._in_thread(
            place,
            leases,
            lambda yoyo, control, outcome: yoyo.roll_back(
                job_of(place, record, siblings), control, outcome, needed=needed_by(record, siblings)
            ),
        )
        error = "" if not outcome.error else explained(place, outcome, is_rollback=True)
        status: Status = "failed" if error else "rolled_back"
        if outcome.kept and not outcome.executed and not error:
            status = "applied"
        if all(lease.is_valid for lease in leases):
            await self._book.change(
                schema.app, schema.name, lambda record: self._after(record, outcome, place, status, error)
            )
            await self._tell_siblings(siblings, outcome.executed)
        return result_of(
            place,
            not error,
            status,
            executed=outcome.executed,
            kept=outcome.kept,
            failed_script=outcome.script,
            error=error,
            database=database.shown,
        )

    async def _tell_siblings(self, siblings: Sequence[SchemaRecord], gone: Sequence[str]) -> None:
        """Migrations of schemas that nobody uses may have gone with those of another one."""
        for each in siblings:
            if set(each.applied).isdisjoint(gone):
                continue

            def without(record: SchemaRecord) -> SchemaRecord:
                scripts = [replace(each, applied_ms=0) if each.id in gone else each for each in record.scripts]
                status: Status = "rolled_back" if not any(each.applied_ms for each in scripts) else record.status
                return replace(record, scripts=scripts, status=status, changed_ms=self._now_ms())

            await self._book.change(each.app, each.name, without)

    # -- both -------------------------------------------------------------------------------------

    async def _placed(self, schema: DbSchema) -> Place:
        database = Database(schema.url, self._environ)
        try:
            scripts = await anyio.to_thread.run_sync(find_scripts, schema.directory)
        except OSError as exc:
            raise SchemaError(f"{schema.directory} cannot be read: {exc.strerror}") from exc
        return Place(schema, database, scripts)

    @asynccontextmanager
    async def _locked(self, place: Place) -> AsyncIterator[list[Lease]]:
        schema, database = place.schema, place.database
        self._on_progress(2 * self._lock_wait_s)
        what = f"the schema {schema.name} of {schema.app}"
        async with (
            self._lock(schema_lock_key(schema.app, schema.name), what).hold(within_s=self._lock_wait_s) as first,
            self._lock(database_lock_key(database.id), f"the database {database.shown}").hold(
                within_s=self._lock_wait_s
            ) as second,
        ):
            yield [first, second]

    def _lock(self, key: str, what: str) -> ClusterLock:
        return ClusterLock(self._bucket, key, what=what, actor=self._actor, ttl_s=self._lock_ttl_s)

    async def _in_thread(self, place: Place, leases: list[Lease], work: Work) -> Outcome:
        schema, outcome = place.schema, Outcome()
        control = Control(
            timeout_s=schema.timeout_s,
            is_allowed=lambda: all(lease.is_valid for lease in leases),
            on_step=lambda: self._on_progress(schema.timeout_s),
        )
        self._on_progress(schema.timeout_s)
        try:
            await control.run(lambda: work(_yoyo(), control, outcome), name=f"schema {schema.name}")
        except (Stopped, Abandoned) as exc:
            runs_on = ", and it does not react: it runs on until this process ends" if control.is_running else ""
            return replace(outcome, error=f"{exc}{runs_on}", is_stopped=True)
        finally:
            for lease in leases:
                lease.is_forsaken = control.is_running
        return outcome

    def _after(
        self,
        record: SchemaRecord,
        outcome: Outcome,
        place: Place,
        status: Status,
        error: str,
        *,
        used_by: list[str] | None = None,
    ) -> SchemaRecord:
        now_ms, actor = self._now_ms(), self._actor
        return finished(record, outcome, place, status, error, now_ms=now_ms, actor=actor, used_by=used_by)

    async def _siblings(self, place: Place) -> list[SchemaRecord]:
        """The other schemas of the package in the same database."""
        schema = place.schema
        found = await self._book.all_of(schema.app)
        return [each for each in found if each.name != schema.name and each.database_id == place.database.id]


def fabric_schemas(fabric: Fabric, *, environ: Mapping[str, str], actor: str, **options: Any) -> Schemas:
    """The schemas of a fabric; options as `Schemas` takes them."""
    bucket = KvBucket(fabric.connection, fabric.subjects.timescape_bucket)
    return Schemas(bucket, environ=environ, actor=actor, **options)


def _yoyo() -> Any:
    """What runs migrations; imported where there are any, and not in the event loop's thread."""
    try:
        from gati_core.schemas import _yoyo as module
    except ImportError as exc:
        raise SchemaError(f"database schemas need yoyo-migrations ({exc}): install gati-core[schemas]") from exc
    return module


def _pending(place: Place, control: Control) -> list[str]:
    job = Job(schema=place.schema, database=place.database, scripts=place.scripts)
    found: list[str] = _yoyo().pending(job, control)
    return found


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)


def _note(event: str, result: SchemaResult) -> None:
    log.info(
        event,
        app=result.app,
        schema=result.schema,
        database=result.database,
        executed=result.executed,
        kept=result.kept,
        duration_ms=result.duration_ms,
    )
