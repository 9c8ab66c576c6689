"""Snapshots of the registry: taken when enough versions came, kept in the fabric, restored without losing versions.

A light one has all that is durable in `{ns}_timescape` and the rollouts in `{ns}_config`; a heavy one `{ns}_manifests`
as well. They lie in the object store `{ns}_snapshots`. Wheels are not inside: they are never changed where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec import Meta

from gati_core.errors import KeyConflict, MalformedManifest, PackageError, SnapshotError, VersionConflict
from gati_core.fabric import Entry, Fabric, KvBucket, PackageLost, PackageStore, StoredPackage
from gati_core.fabric.inspection import read_bucket
from gati_core.timescape._registry import Registry, fabric_registry, read_timeline, timeline_names
from gati_core.timescape._restoring import Restoration, RestoreStep, merged_document, plan_document, plan_restore
from gati_core.timescape._snapshot_format import (
    AREAS,
    MAX_PACKED_BYTES,
    Area,
    Snapshot,
    SnapshotCounts,
    SnapshotType,
    pack_snapshot,
    read_snapshot_id,
    registered_in,
    unpack_snapshot,
)

log = structlog.get_logger(__name__)

_ATTEMPTS = 50
_READ_WITHIN_S = 60.0
_SHOWN = 10


class SnapshotPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When snapshots are taken, and how long they are kept: `GATI_SNAPSHOT_*`."""

    light_every: Annotated[int, Meta(ge=1)] = 100
    """Versions registered since the last snapshot of any type, from which a light one is due."""
    heavy_every: Annotated[int, Meta(ge=1)] = 1000
    """Versions registered since the last heavy one, from which a heavy one is due."""
    retention_s: Annotated[float, Meta(gt=0)] = 90 * 86_400.0
    """Seconds for which they are kept; the newest of each type is kept for ever."""


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A stored snapshot, without what is in it."""

    id: str
    type: SnapshotType
    created_ms: int
    """Unix time."""
    created_by: str = ""
    counts: SnapshotCounts = SnapshotCounts()
    size_bytes: int = 0
    """As stored, packed."""


class SnapshotStats(msgspec.Struct, frozen=True, kw_only=True):
    """All stored snapshots together."""

    light: int = 0
    heavy: int = 0
    bytes: int = 0
    oldest_ms: int = 0
    """Unix time; 0 where there is none."""
    newest_ms: int = 0


class Documents(Protocol):
    """One bucket of the registry."""

    async def read(self) -> dict[str, bytes]:
        """All keys with their values."""

    async def newest(self, key: str) -> Entry | None:
        """The key as it is; asks whoever keeps it."""

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that is not there, else raise `KeyConflict`."""

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write a key that is still of this revision, else raise `KeyConflict`."""


def due_type(registered: int, stored: Sequence[SnapshotInfo], policy: SnapshotPolicy) -> SnapshotType | None:
    """Which snapshot is due; a heavy one where both are.

    Args:
        registered: versions that there have ever been.
        stored: all snapshots, the newest first.
    """
    heavy = next((each for each in stored if each.type == "heavy"), None)
    if _since(registered, heavy) >= policy.heavy_every:
        return "heavy"
    if _since(registered, stored[0] if stored else None) >= policy.light_every:
        return "light"
    return None


def _since(registered: int, last: SnapshotInfo | None) -> int:
    # Fewer than then: the registry was emptied. What is in it now is in no snapshot after that.
    if last is None or registered < last.counts.registered:
        return registered
    return registered - last.counts.registered


def expired(stored: Sequence[SnapshotInfo], *, retention_s: float, now_ms: int) -> list[SnapshotInfo]:
    """Those that are older than `retention_s`, but never the newest of a type.

    Args:
        stored: all snapshots, the newest first.
    """
    newest = {each.type: each.id for each in reversed(stored)}
    return [each for each in stored if now_ms - each.created_ms > retention_s * 1000 and newest[each.type] != each.id]


class RegistrySnapshots:
    """See the module.

    Args:
        store: the object store of snapshots.
        packages: the object store of wheels, for saying which ones are missing.
        areas: where the documents lie.
        now_ms: Unix milliseconds, by this process's clock.
    """

    def __init__(
        self,
        *,
        store: PackageStore,
        packages: PackageStore,
        registry: Registry,
        areas: Mapping[Area, Documents],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._packages = packages
        self._registry = registry
        self._areas = areas
        self._now_ms = now_ms

    # -- taking ---------------------------------------------------------------------------------

    async def create(self, type: SnapshotType, *, by: str) -> SnapshotInfo:
        """Take a snapshot now.

        Each document is whole and as it was at some moment of the reading; two handlers may be some
        milliseconds apart.

        Args:
            by: who asked for it: `user:ann`, `router:<id>`.
        Raises:
            SnapshotError: it is too large.
            BrokerUnavailable: nothing was stored.
        """
        return await self._create(type, await self._areas["timescape"].read(), by=by)

    async def create_if_needed(self, policy: SnapshotPolicy, *, by: str) -> SnapshotInfo | None:
        """Take the snapshot that is due, if one is.

        Raises:
            SnapshotError: it is too large.
            BrokerUnavailable: nothing was stored.
        """
        documents = await self._areas["timescape"].read()
        registered = await anyio.to_thread.run_sync(registered_in, documents, abandon_on_cancel=True)
        type = due_type(registered, await self.list(), policy)
        return None if type is None else await self._create(type, documents, by=by)

    async def _create(self, type: SnapshotType, timescape: dict[str, bytes], *, by: str) -> SnapshotInfo:
        # Manifests are read last: they are stored before the versions that need them, so none is missing.
        state: dict[Area, dict[str, bytes]] = {"timescape": timescape, "config": await self._areas["config"].read()}
        if type == "heavy":
            state["manifests"] = await self._areas["manifests"].read()
        now_ms = self._now_ms()
        packed, snapshot = await anyio.to_thread.run_sync(
            lambda: pack_snapshot(state, type=type, created_ms=now_ms, created_by=by), abandon_on_cancel=True
        )
        for each in snapshot.left_out:
            log.warning("snapshot_incomplete", snapshot=snapshot.id, left_out=each)
        return await self._put(snapshot, packed)

    async def _put(self, snapshot: Snapshot, packed: bytes) -> SnapshotInfo:
        counts = msgspec.json.encode(snapshot.counts).decode()
        metadata = {"created_by": snapshot.created_by, "counts": counts}
        stored = _info(await self._store.put(snapshot.id, packed, metadata=metadata))
        if stored is None:
            raise SnapshotError(f"{snapshot.id} was stored with a description that cannot be read: delete it")
        return stored

    # -- reading --------------------------------------------------------------------------------

    async def list(self, type: SnapshotType | None = None) -> list[SnapshotInfo]:
        """All snapshots, or those of one type, the newest first."""
        found = [info for each in await self._store.list() if (info := _info(each)) is not None]
        return sorted(
            (each for each in found if type is None or each.type == type),
            key=lambda each: (each.created_ms, each.id),
            reverse=True,
        )

    async def latest(self, type: SnapshotType | None = None) -> SnapshotInfo | None:
        """The newest snapshot, or the newest of one type."""
        return next(iter(await self.list(type)), None)

    async def stats(self) -> SnapshotStats:
        """All snapshots together."""
        return snapshot_stats(await self.list())

    async def load(self, id: str) -> Snapshot:
        """Read a snapshot and check all of it.

        Raises:
            SnapshotError: there is none of this id, or it is damaged; says what is wrong.
        """
        return await _unpacked(await self._fetch(id), id)

    async def _fetch(self, id: str) -> bytes:
        await self._require(id)
        try:
            return await self._store.get(id, max_bytes=MAX_PACKED_BYTES)
        except (PackageLost, PackageError) as exc:
            raise SnapshotError(str(exc)) from exc

    async def _require(self, id: str) -> None:
        if read_snapshot_id(id) is not None and await self._store.exists(id):
            return
        known = [each.id for each in await self.list()]
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        there = f"there are {', '.join(known[:_SHOWN])}{more}" if known else "there is none yet"
        raise SnapshotError(f"there is no snapshot {id!r}; {there}")

    # -- restoring ------------------------------------------------------------------------------

    async def restore(self, id: str, *, by: str, force: bool = False, dry_run: bool = False) -> Restoration:
        """Bring back what a snapshot has, each document by compare-and-set.

        Timelines and rollouts become what they were. Usage is added up to the higher counts. Manifests, records of
        packages and of schemas come back where they are missing; those that are there stay. So does what is not in
        the snapshot: nothing is deleted. Interrupted, it may be repeated.

        Args:
            by: who asked for it, for the change log.
            force: give up versions that were registered since.
            dry_run: only say what it would do.
        Returns:
            What it changed.
        Raises:
            SnapshotError: there is none of this id, or it is damaged; nothing is changed.
            VersionConflict: versions were registered since, and `force` is not set; nothing is changed, unless they
                were registered in the middle of it.
            KeyConflict: a document was changed by others every time.
        """
        snapshot = await self.load(id)
        stored: dict[Area, dict[str, bytes]] = {
            area: await self._areas[area].read() for area in AREAS if area in snapshot.state
        }
        missing = [name for name in snapshot.packages if not await self._packages.exists(name)]
        plan = await anyio.to_thread.run_sync(lambda: plan_restore(snapshot, stored, missing_packages=missing))
        if dry_run:
            return plan
        if plan.lost and not force:
            raise VersionConflict(_told_lost(id, plan.lost))
        done: list[RestoreStep] = []
        for step in plan.changes:
            try:
                taken = await self._take(snapshot, step, by=by, force=force)
            except VersionConflict as exc:
                raise VersionConflict(f"{exc}; {len(done)} documents are restored already, repeat it") from exc
            if taken is not None:
                done.append(taken)
        kept = [each for each in plan.steps if each.action == "keep"]
        log.info("snapshot_restored", snapshot=id, changed=len(done), kept=len(kept), by=by)
        return msgspec.structs.replace(plan, is_dry_run=False, steps=[*done, *kept])

    async def _take(self, snapshot: Snapshot, planned: RestoreStep, *, by: str, force: bool) -> RestoreStep | None:
        """Take one step, as it has to be taken now; returns it, or None where somebody else has taken it."""
        area, key = planned.area, planned.key
        bucket, wanted = self._areas[area], snapshot.documents(area)[key]
        for attempt in range(_ATTEMPTS):
            entry = await bucket.newest(key)
            step = plan_document(area, key, None if entry is None else entry.value, wanted)
            if step is None:
                return None
            try:
                if area == "timescape" and timeline_names(key) is not None and _is_readable(entry):
                    timeline = read_timeline(key, wanted)
                    await self._registry.replace(timeline, force=force, actor=by, reason=f"restored {snapshot.id}")
                elif entry is None:
                    await bucket.create(key, wanted)
                elif step.action != "keep":
                    value = merged_document(key, entry.value, wanted) if step.action == "merge" else wanted
                    await bucket.update(key, value, revision=entry.revision)
            except KeyConflict:
                await anyio.sleep(min(0.002 * attempt, 0.05))
                continue
            return step
        raise KeyConflict(f"{area}: {key} was changed by others {_ATTEMPTS} times in a row")

    # -- looking after them ---------------------------------------------------------------------

    async def prune(self, retention_s: float, *, dry_run: bool = False) -> Sequence[SnapshotInfo]:
        """Delete those that are older than `retention_s`, but never the newest of a type. Returns them."""
        old = expired(await self.list(), retention_s=retention_s, now_ms=self._now_ms())
        if dry_run:
            return old
        return [each for each in old if await self._store.delete(each.id)]

    async def delete(self, id: str) -> None:
        """Delete a snapshot.

        Raises:
            SnapshotError: there is none of this id.
        """
        await self._require(id)
        await self._store.delete(id)

    # -- files ----------------------------------------------------------------------------------

    async def export_file(self, id: str, path: Path) -> int:
        """Write a snapshot to a file that is not there yet; returns its size in bytes.

        Raises:
            SnapshotError: there is none of this id, it is damaged, or the file exists or cannot be written.
        """
        data = await self._fetch(id)
        await _unpacked(data, id)
        await anyio.to_thread.run_sync(_write_new, path, data)
        return len(data)

    async def import_file(self, path: Path) -> SnapshotInfo:
        """Store a snapshot from a file under the id that it has. The same one again changes nothing.

        Raises:
            SnapshotError: the file cannot be read, or is no snapshot or a damaged one; says what is wrong.
        """
        data = await anyio.to_thread.run_sync(_read_file, path)
        return await self._put(await _unpacked(data, str(path)), data)


def snapshot_stats(stored: Sequence[SnapshotInfo]) -> SnapshotStats:
    """Snapshots together; the newest first."""
    if not stored:
        return SnapshotStats()
    return SnapshotStats(
        light=sum(each.type == "light" for each in stored),
        heavy=sum(each.type == "heavy" for each in stored),
        bytes=sum(each.size_bytes for each in stored),
        oldest_ms=stored[-1].created_ms,
        newest_ms=stored[0].created_ms,
    )


def _told_lost(id: str, lost: Mapping[str, Sequence[str]]) -> str:
    total = sum(len(each) for each in lost.values())
    shown = [tsv for each in lost.values() for tsv in each][:_SHOWN]
    more = f" and {total - _SHOWN} more" if total > _SHOWN else ""
    return (
        f"{total} versions of {', '.join(list(lost)[:_SHOWN])} were registered after {id}, and restoring it would lose"
        f" them: {', '.join(shown)}{more}; nothing was changed (use --force to give them up)"
    )


def _is_readable(entry: Entry | None) -> bool:
    """Whether the registry can change it; what nobody can read is replaced as a whole."""
    if entry is None:
        return True
    try:
        read_timeline(entry.key, entry.value)
    except MalformedManifest:
        return False
    return True


def _info(stored: StoredPackage) -> SnapshotInfo | None:
    """A snapshot as the object store describes it; None for what is none."""
    named = read_snapshot_id(stored.name)
    if named is None:
        return None
    try:
        counts = msgspec.json.decode(stored.metadata.get("counts", "{}"), type=SnapshotCounts)
    except msgspec.DecodeError:
        counts = SnapshotCounts()  # what is inside counts itself when it is read
    return SnapshotInfo(
        id=stored.name,
        type=named.type,
        created_ms=named.created_ms,
        created_by=stored.metadata.get("created_by", ""),
        counts=counts,
        size_bytes=stored.size_bytes,
    )


async def _unpacked(data: bytes, name: str) -> Snapshot:
    return await anyio.to_thread.run_sync(lambda: unpack_snapshot(data, name=name), abandon_on_cancel=True)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PACKED_BYTES + 1)
    except OSError as exc:
        raise SnapshotError(f"{path}: {exc.strerror}") from exc
    if len(data) > MAX_PACKED_BYTES:
        raise SnapshotError(f"{path} has more than {MAX_PACKED_BYTES} bytes: it is no snapshot")
    return data


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as exc:
        raise SnapshotError(f"{path} exists; it is not written over") from exc
    except OSError as exc:
        raise SnapshotError(f"{path}: {exc.strerror}") from exc


class _Bucket:
    """One bucket of a fabric."""

    def __init__(self, fabric: Fabric, bucket: str) -> None:
        self._connection = fabric.connection
        handle = KvBucket(fabric.connection, bucket)
        self._name = bucket
        self.newest = handle.get
        self.create = handle.create
        self.update = handle.update

    async def read(self) -> dict[str, bytes]:
        return await read_bucket(self._connection, self._name, within_s=_READ_WITHIN_S)


def fabric_snapshots(
    fabric: Fabric, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
) -> RegistrySnapshots:
    """The snapshots of a fabric's registry."""
    subjects = fabric.subjects
    return RegistrySnapshots(
        store=fabric.snapshots,
        packages=fabric.packages,
        registry=fabric_registry(fabric),
        areas={
            "timescape": _Bucket(fabric, subjects.timescape_bucket),
            "config": _Bucket(fabric, subjects.config_bucket),
            "manifests": _Bucket(fabric, subjects.manifests_bucket),
        },
        now_ms=now_ms,
    )
