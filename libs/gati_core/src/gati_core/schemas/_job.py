"""What is to be done to a database, and what became of it: between the event loop and the thread that does it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gati_core.schemas._declaration import DbSchema
from gati_core.schemas._scripts import Script
from gati_core.schemas._urls import Database


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A schema in a database, and what is known of the migrations there.

    Args:
        known: of migrations that versions of the package have applied: by id, the SHA-256 of the text, and the schema.
        is_unfinished: whether an attempt broke off, or there was none; what comes after all migrations runs again.
    """

    schema: DbSchema
    database: Database
    scripts: list[Script]
    known: Mapping[str, tuple[str, str]] = {}
    is_unfinished: bool = False


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a run so far; filled by the thread. `error` is empty when all of it was done."""

    executed: list[str] = []
    applied: list[str] = []
    """What of the schema is applied in the database, in order."""
    is_known: bool = False
    """Whether the database was asked what is applied."""
    kept: list[str] = []
    """What was not rolled back, and need not be."""
    script: str = ""
    """The migration that runs, or has failed."""
    error: str = ""
    is_atomic: bool = True
    """Whether the database undoes all of that migration when it fails."""
    is_stopped: bool = False
    """Whether it took too long, or the lock was lost."""
