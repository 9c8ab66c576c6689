"""A key-value bucket without a broker, held to the same contracts as the broker's."""

from __future__ import annotations

import time
from collections.abc import Callable

from gati_core.errors import KeyConflict, MessageTooLarge
from gati_core.fabric import Entry, format_headers
from gati_core.fabric.kv import checked_key

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class MemoryBucket:
    """What `gctx.buckets[name]` is in a harness or a simulation.

    Args:
        now: seconds, for keys with a time to live.
        max_payload: bytes that a value may have, with what the broker's headers would add.
    """

    def __init__(self, name: str, *, now: Callable[[], float] = time.time, max_payload: int = 1024 * 1024) -> None:
        self.bucket = name
        self._now = now
        self._max_payload = max_payload
        self._entries: dict[str, tuple[Entry, float]] = {}
        self._revision = 0
        self._last: dict[str, int] = {}

    async def get(self, key: str) -> Entry | None:
        """The key's value and revision, or None."""
        return self._live(checked_key(key))

    async def put(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write whatever is there; returns the revision. After `ttl_s` the key is gone."""
        return self._write(key, value, {}, ttl_s)

    async def create(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write only if the key does not exist; `KeyConflict` otherwise."""
        if self._live(checked_key(key)) is not None:
            raise self._conflict(key)
        return self._write(key, value, {_EXPECTED: "0"}, ttl_s)

    async def update(self, key: str, value: bytes, *, revision: int, ttl_s: int = 0) -> int:
        """Write only if the revision is still this one; `KeyConflict` otherwise."""
        self._live(checked_key(key))  # a key that has expired meanwhile has another revision
        if self._last.get(key, 0) != revision:
            raise self._conflict(key)
        return self._write(key, value, {_EXPECTED: str(revision)}, ttl_s)

    async def delete(self, key: str) -> None:
        """Remove the key; one that is not there is no error."""
        self._remove(checked_key(key))

    async def keys(self) -> list[str]:
        """All keys, in no order."""
        return [key for key in list(self._entries) if self._live(key) is not None]

    def _live(self, key: str) -> Entry | None:
        found = self._entries.get(key)
        if found is None:
            return None
        entry, until = found
        if until <= self._now():
            self._remove(key)  # the broker leaves a marker, too
            return None
        return entry

    def _remove(self, key: str) -> None:
        self._entries.pop(key, None)
        self._revision += 1
        self._last[key] = self._revision

    def _write(self, key: str, value: bytes, headers: dict[str, str], ttl_s: int) -> int:
        checked_key(key)
        if ttl_s:
            headers["Nats-TTL"] = str(ttl_s)
        size = len(value) + len(format_headers(headers))
        if size > self._max_payload:
            raise MessageTooLarge(f"value and headers of {size} bytes exceed max_payload of {self._max_payload}")
        self._revision += 1
        self._last[key] = self._revision
        until = self._now() + ttl_s if ttl_s else float("inf")
        self._entries[key] = (Entry(key, bytes(memoryview(value)), self._revision), until)
        return self._revision

    def _conflict(self, key: str) -> KeyConflict:
        return KeyConflict(f"key {key!r} of bucket {self.bucket} changed since it was read")
