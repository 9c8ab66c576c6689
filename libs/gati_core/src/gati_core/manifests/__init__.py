"""Manifests: what a package offers, and what a live worker says about itself.

May import: `errors`, `wire`. Pure: reading and writing them is the fabric's business.
"""

from gati_core.manifests._announcement import (
    METHODS,
    HandlerManifest,
    HookRecord,
    Method,
    PoolManifest,
    RouterBeat,
    WorkerAnnouncement,
    parse_announcement,
    parse_pool_manifest,
    pool_name,
    pools_in_order,
)

__all__ = [
    "METHODS",
    "HandlerManifest",
    "HookRecord",
    "Method",
    "PoolManifest",
    "RouterBeat",
    "WorkerAnnouncement",
    "parse_announcement",
    "parse_pool_manifest",
    "pool_name",
    "pools_in_order",
]
