"""Manifests: what a package offers, and what a live worker says about itself.

May import: `errors`, `wire`, `gtype`, and for the store `fabric`. Pure: reading and writing them is the fabric's business.
"""

from gati_core.manifests._announcement import (
    PoolManifest,
    RouterBeat,
    WorkerAnnouncement,
    parse_announcement,
    parse_pool_manifest,
    pool_name,
    pools_in_order,
)
from gati_core.manifests._handler import (
    METHODS,
    Dependencies,
    GTypeRefs,
    HandlerManifest,
    HookRecord,
    Method,
    Policies,
    RateLimitPolicy,
    SourceLocation,
    UnknownFields,
    manifest_hash,
)

__all__ = [
    "METHODS",
    "Dependencies",
    "GTypeRefs",
    "HandlerManifest",
    "HookRecord",
    "Method",
    "Policies",
    "PoolManifest",
    "RateLimitPolicy",
    "RouterBeat",
    "SourceLocation",
    "UnknownFields",
    "WorkerAnnouncement",
    "manifest_hash",
    "parse_announcement",
    "parse_pool_manifest",
    "pool_name",
    "pools_in_order",
]
