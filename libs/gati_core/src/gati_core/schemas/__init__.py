"""Schemas of databases that versions of a package use: declaring them, and running their migrations.

Belongs here: what a package declares, the record and the lock in the fabric, and the only place that imports yoyo.
Does not belong here: when versions begin and end (the worker).

May import: `errors`, `ids`, `wire`; and of `fabric` the buckets.
"""

from gati_core.schemas._decisions import SchemaResult
from gati_core.schemas._declaration import SCRIPT_TIMEOUT_S, DbSchema, are_compatible
from gati_core.schemas._records import SchemaRecord, ScriptRecord, Status, is_record_key, read_schema_record
from gati_core.schemas._schemas import LOCK_TTL_S, LOCK_WAIT_S, Schemas, fabric_schemas

__all__ = [
    "LOCK_TTL_S",
    "LOCK_WAIT_S",
    "SCRIPT_TIMEOUT_S",
    "DbSchema",
    "SchemaRecord",
    "SchemaResult",
    "Schemas",
    "ScriptRecord",
    "Status",
    "are_compatible",
    "fabric_schemas",
    "is_record_key",
    "read_schema_record",
]
