"""Where a manifest store keeps its documents: a bucket of the fabric, or memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gati_core.errors import KeyConflict
from gati_core.fabric import Fabric, KvBucket, KvView
from gati_core.fabric.kv import Entry, checked_key
from gati_core.manifests._store import ManifestStore, Revision

_HISTORY = 5


class FabricBackend:
    """The bucket `{ns}_manifests`, followed in memory. `view` must be started; whoever started it closes it."""

    def __init__(self, bucket: KvBucket, view: KvView) -> None:
        self._bucket = bucket
        self._view = view
        self.get = view.get
        self.entries = view.entries
        self.newest = bucket.get
        self.create = bucket.create
        self.update = bucket.update
        self.delete = bucket.delete

    @property
    def generation(self) -> int:
        """Grows with every change."""
        return self._view.generation

    async def history(self, key: str) -> list[Revision]:
        """The last revisions of a key, oldest first."""
        return await _history(self._bucket, key)


async def _history(bucket: KvBucket, key: str) -> list[Revision]:
    return [
        Revision(revision=each.revision, value=each.value, written_ms=each.written_ms)
        for each in await bucket.history(key)
    ]


class WritingBackend:
    """The bucket without a view, for processes that publish and do not read: they see what they wrote."""

    def __init__(self, bucket: KvBucket) -> None:
        self._bucket = bucket
        self._written: dict[str, Entry] = {}
        self.generation = 0
        """Grows with every change."""
        self.newest = bucket.get
        self.delete = bucket.delete

    async def history(self, key: str) -> list[Revision]:
        """The last revisions of a key, oldest first."""
        return await _history(self._bucket, key)

    def get(self, key: str) -> Entry | None:
        """What this process wrote under the key."""
        return self._written.get(key)

    def entries(self) -> Iterator[Entry]:
        """What this process wrote."""
        return iter(list(self._written.values()))

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that is not there."""
        return self._note(key, value, await self._bucket.create(key, value))

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write a key that is still of this revision."""
        return self._note(key, value, await self._bucket.update(key, value, revision=revision))

    def _note(self, key: str, value: bytes, revision: int) -> int:
        self._written[key] = Entry(key, value, revision)
        self.generation += 1
        return revision


class MemoryBackend:
    """A dictionary, for tools that work without a fabric and for tests."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._history: dict[str, list[Revision]] = {}
        self._revision = 0

    @property
    def generation(self) -> int:
        """Grows with every change."""
        return self._revision

    def get(self, key: str) -> Entry | None:
        """The key's entry."""
        return self._entries.get(key)

    def entries(self) -> Iterator[Entry]:
        """All entries."""
        return iter(list(self._entries.values()))

    async def newest(self, key: str) -> Entry | None:
        """The key's entry."""
        return self._entries.get(key)

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that is not there."""
        if key in self._entries:
            raise KeyConflict(f"key {key!r} exists")
        return self._write(key, value)

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write a key that is still of this revision."""
        entry = self._entries.get(key)
        if (entry.revision if entry is not None else 0) != revision:
            raise KeyConflict(f"key {key!r} changed since it was read")
        return self._write(key, value)

    async def delete(self, key: str) -> None:
        """Delete a key."""
        if self._entries.pop(key, None) is not None:
            self._note(key, None)

    async def history(self, key: str) -> list[Revision]:
        """The last revisions of a key, oldest first."""
        return list(self._history.get(key, ()))

    def _write(self, key: str, value: bytes) -> int:
        self._note(key, value)
        self._entries[checked_key(key)] = Entry(key, value, self._revision)
        return self._revision

    def _note(self, key: str, value: bytes | None) -> None:
        self._revision += 1
        past = self._history.setdefault(key, [])
        past.append(Revision(revision=self._revision, value=value, written_ms=time.time_ns() // 1_000_000))
        del past[:-_HISTORY]


def fabric_store(fabric: Fabric, view: KvView) -> ManifestStore:
    """The manifest store of a fabric, over a view of its manifests bucket that is started."""
    return ManifestStore(FabricBackend(KvBucket(fabric.connection, fabric.subjects.manifests_bucket), view))


def publishing_store(fabric: Fabric) -> ManifestStore:
    """The manifest store of a fabric for a process that only publishes; it needs no view."""
    return ManifestStore(WritingBackend(KvBucket(fabric.connection, fabric.subjects.manifests_bucket)))


def memory_store() -> ManifestStore:
    """A manifest store in memory."""
    return ManifestStore(MemoryBackend())
