"""Snapshots of the version registry: taken by the router whose turn to sweep it is, when enough versions came."""

from __future__ import annotations

import structlog

from gati_core.errors import GatiError
from gati_core.fabric import Fabric
from gati_core.timescape import RegistrySnapshots, SnapshotPolicy, fabric_snapshots

log = structlog.get_logger(__name__)


class RouterSnapshots:
    """See the module."""

    def __init__(self, fabric: Fabric, policy: SnapshotPolicy, *, router_id: str) -> None:
        self._snapshots: RegistrySnapshots = fabric_snapshots(fabric)
        self._policy = policy
        self._router_id = router_id
        self._is_running = False

    async def run(self) -> None:
        """Take the snapshot that is due, and delete those that are too old. What fails is logged and left for the
        next turn: requests are routed without snapshots, too."""
        if self._is_running:
            return
        self._is_running = True
        try:
            made = await self._snapshots.create_if_needed(self._policy, by=f"router:{self._router_id}")
            if made is not None:
                log.info("snapshot_taken", snapshot=made.id, versions=made.counts.versions, bytes=made.size_bytes)
            for each in await self._snapshots.prune(self._policy.retention_s):
                log.info("snapshot_pruned", snapshot=each.id)
        except GatiError as exc:
            log.warning("snapshot_failed", error=str(exc))
        except Exception:
            log.exception("snapshot_failed")
        finally:
            self._is_running = False
