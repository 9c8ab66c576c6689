"""What follows from what: the decisions about schemas and their records, and what people are told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from gati_core.schemas._declaration import DbSchema
from gati_core.schemas._job import Job, Outcome
from gati_core.schemas._records import SchemaRecord, ScriptRecord, Status
from gati_core.schemas._scripts import Script
from gati_core.schemas._urls import Database


class SchemaResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an activation or deactivation."""

    app: str
    schema: str
    success: bool
    status: Status
    """Of the schema, afterwards."""
    executed: list[str] = []
    """The migrations that were run, or rolled back, in this order."""
    kept: list[str] = []
    """What stays applied although this schema is no longer used: others need it, or nothing rolls it back."""
    failed_script: str = ""
    error: str = ""
    """What, where, and how to go on; empty after a success."""
    database: str = ""
    """Where, without the password."""
    duration_ms: int = 0


class Place(NamedTuple):
    """A schema, its database and its files."""

    schema: DbSchema
    database: Database
    scripts: list[Script]


def job_of(place: Place, record: SchemaRecord, siblings: Sequence[SchemaRecord], *, is_unfinished: bool = False) -> Job:
    """What the thread is to know; migrations count as known where they were applied."""
    known = {
        script.id: (script.sha256, each.name)
        for each in (*siblings, record)
        for script in each.scripts
        if script.applied_ms
    }
    return Job(
        schema=place.schema,
        database=place.database,
        scripts=place.scripts,
        known=known,
        is_unfinished=is_unfinished,
    )


def is_recorded(place: Place, record: SchemaRecord, version: str) -> bool:
    """Whether the record says that there is nothing to do."""
    applied = {each.id: each.sha256 for each in record.scripts if each.applied_ms}
    return (
        record.status == "applied"
        and version in record.used_by
        and record.database_id == place.database.id
        and list(place.schema.compatible_with) == record.compatible_with
        and all(applied.get(script.id) == script.sha256 for script in place.scripts)
    )


def needed_by(record: SchemaRecord, siblings: Sequence[SchemaRecord]) -> set[str]:
    """The migrations that must stay because of other schemas in use."""
    in_use = [each for each in siblings if each.used_by]
    if any(record.name in each.compatible_with for each in in_use):
        # The other one was made to serve this one's users, too: it stands on what is here.
        return {each.id for each in record.scripts}
    return {script.id for each in in_use for script in each.scripts}


def explained(place: Place, outcome: Outcome, *, is_rollback: bool = False) -> str:
    """What a run failed of, for people: what, where, in which state the database is, and how to go on."""
    schema, database = place.schema, place.database
    if not outcome.script:
        text = f"looking at {database.shown}: {outcome.error}" if outcome.is_stopped else outcome.error
        return _headed(schema, text)
    path: Path = next((each.path for each in place.scripts if each.id == outcome.script), schema.directory)
    what = f"{'the rollback of ' if is_rollback else ''}migration {outcome.script}"
    count = f"{len(outcome.applied)} of {len(place.scripts)} migrations are applied"
    if outcome.is_atomic:
        state = f"The database is as it was before it; {count}."
    else:
        state = f"It does not run in a transaction, so that parts of it may remain: look at the database. {count}."
    advice = f"Correct {path}, and start the package again: it goes on with this one."
    if outcome.is_stopped:
        advice = f"Give the schema a longer timeout_s, or make {path} quicker; the next attempt goes on with this one."
    elif is_rollback:
        advice = f"Correct what rolls back {path}, and deactivate it again."
    return _headed(schema, f"{what} failed on {database.shown}: {outcome.error}. {state} {advice}")


def _headed(schema: DbSchema, text: str) -> str:
    where = f", declared at {schema.where}" if schema.where else ""
    return f"schema {schema.name} of {schema.app}{where}: {text}"


def result_of(place: Place, success: bool, status: Status, **fields: Any) -> SchemaResult:
    """A result, with what every result says."""
    schema = place.schema
    fields.setdefault("database", place.database.shown)
    return SchemaResult(app=schema.app, schema=schema.name, success=success, status=status, **fields)


def failure_of(schema: DbSchema, error: str) -> SchemaResult:
    """A result of an attempt that did not get as far as the migrations."""
    return SchemaResult(
        app=schema.app, schema=schema.name, success=False, status="failed", error=_headed(schema, error)
    )


def registered(record: SchemaRecord, place: Place, version: str, *, now_ms: int, actor: str) -> SchemaRecord:
    """The record when a version begins to use the schema; nothing has run yet."""
    # What is recorded as applied was applied in the database of the record.
    known = {each.id: each for each in record.scripts} if record.database_id == place.database.id else {}
    scripts = []
    for script in place.scripts:
        old = known.pop(script.id, None)
        scripts.append(old if old and old.applied_ms else ScriptRecord(id=script.id, sha256=script.sha256))
    scripts += known.values()
    is_done = record.status == "applied" and all(each.applied_ms for each in scripts)
    return replace(
        record,
        status="applied" if is_done else "pending",
        used_by=record.used_by if version in record.used_by else [*record.used_by, version],
        scripts=scripts,
        compatible_with=list(place.schema.compatible_with),
        database=place.database.shown,
        database_id=place.database.id,
        failed_script="",
        error="",
        changed_ms=now_ms,
        changed_by=actor,
    )


def finished(
    record: SchemaRecord,
    outcome: Outcome,
    place: Place,
    status: Status,
    error: str,
    *,
    now_ms: int,
    actor: str,
    used_by: list[str] | None = None,
) -> SchemaRecord:
    """The record after a run."""
    declared = {script.id: script.sha256 for script in place.scripts}
    scripts = []
    for each in record.scripts:
        if each.id in outcome.applied:
            sha256 = each.sha256 if each.applied_ms else declared.get(each.id, each.sha256)
            each = ScriptRecord(id=each.id, sha256=sha256, applied_ms=each.applied_ms or now_ms)
        elif each.id in declared and outcome.is_known:
            each = replace(each, applied_ms=0)
        scripts.append(each)
    return replace(
        record,
        status=status,
        used_by=record.used_by if used_by is None else used_by,
        scripts=scripts,
        failed_script=outcome.script,
        error=error,
        changed_ms=now_ms,
        changed_by=actor,
    )
