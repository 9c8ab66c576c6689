"""How much each version is used, counted by all routers together in `{ns}_timescape`.

A router counts in memory and adds what it has counted to the handler's document now and then (compare-and-set), so
that requests pay for nothing but a number. The counts are kept by the hour: what is hot is asked of the last day,
not of all time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import anyio
import msgspec
import structlog

from gati_core.errors import GatiError, KeyConflict, MalformedManifest
from gati_core.fabric import Fabric
from gati_core.timescape._registry import Backend, BucketBackend
from gati_core.wire.subjects import key_token, read_key_token

log = structlog.get_logger(__name__)

_PREFIX = "usage."
_HOUR_S = 3600
_KEPT_HOURS = 24 * 8
_ATTEMPTS = 20


class VersionUsage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The requests of one version."""

    total: int = 0
    last_s: int = 0
    """Unix time of the last one."""
    hours: dict[str, int] = {}
    """By hours since the beginning of Unix time; the last eight days."""

    def within(self, seconds: float, now_s: float) -> int:
        """Requests in the last `seconds`, to the hour."""
        first = int((now_s - seconds) // _HOUR_S)
        return sum(count for hour, count in self.hours.items() if int(hour) > first)

    def add(self, count: int, at_s: float) -> None:
        """Count requests that came up to now."""
        hour = int(at_s // _HOUR_S)
        self.total += count
        self.last_s = max(self.last_s, int(at_s))
        self.hours[str(hour)] = self.hours.get(str(hour), 0) + count
        if len(self.hours) > _KEPT_HOURS:
            self.hours = {name: each for name, each in self.hours.items() if int(name) > hour - _KEPT_HOURS}


class HandlerUsage(msgspec.Struct, kw_only=True):
    """The requests of all versions of one handler."""

    app: str
    handler: str
    versions: dict[str, VersionUsage] = {}
    """By TSV."""

    def of(self, tsv: str) -> VersionUsage:
        """The usage of a version; none where nobody has counted any."""
        return self.versions.get(tsv) or VersionUsage()


class UsageBook:
    """Reads and adds to what is counted."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def read(self, app: str, handler: str) -> HandlerUsage:
        """The usage of a handler's versions.

        Raises:
            MalformedManifest: what is stored is no usage.
        """
        entry = await self._backend.newest(usage_key(app, handler))
        return HandlerUsage(app=app, handler=handler) if entry is None else read_usage(entry.key, entry.value)

    async def add(self, app: str, handler: str, counts: Mapping[str, int], *, at_s: float) -> None:
        """Add requests, by TSV.

        Raises:
            KeyConflict: others were faster every time; nothing was added.
            BrokerUnavailable: nothing was added.
        """
        key = usage_key(app, handler)
        for attempt in range(_ATTEMPTS):
            entry = await self._backend.newest(key)
            try:
                usage = HandlerUsage(app=app, handler=handler) if entry is None else read_usage(key, entry.value)
            except MalformedManifest as exc:
                log.warning("usage_replaced", key=key, error=str(exc))
                usage = HandlerUsage(app=app, handler=handler)
            for tsv, count in counts.items():
                usage.versions.setdefault(tsv, VersionUsage()).add(count, at_s)
            data = msgspec.json.encode(usage)
            try:
                if entry is None:
                    await self._backend.create(key, data)
                else:
                    await self._backend.update(key, data, revision=entry.revision)
            except KeyConflict:
                await anyio.sleep(min(0.002 * attempt, 0.05))
                continue
            return
        raise KeyConflict(f"the usage of {app}:{handler} was changed by others {_ATTEMPTS} times in a row")


class UsageCounter:
    """What one router has counted and not added yet."""

    def __init__(self, book: UsageBook) -> None:
        self._book = book
        self._counts: dict[tuple[str, str], dict[str, int]] = {}

    def count(self, app: str, handler: str, tsv: str) -> None:
        """One request of a version."""
        counts = self._counts.get((app, handler))
        if counts is None:
            counts = self._counts[app, handler] = {}
        counts[tsv] = counts.get(tsv, 0) + 1

    async def flush(self, *, now_s: float | None = None) -> int:
        """Add all to the book; what could not be added stays. Returns for how many handlers it was."""
        waiting, self._counts = self._counts, {}
        at_s = time.time() if now_s is None else now_s
        done = 0
        for (app, handler), counts in waiting.items():
            try:
                await self._book.add(app, handler, counts, at_s=at_s)
                done += 1
            except GatiError as exc:
                log.warning("usage_not_added", app=app, handler=handler, error=str(exc))
                kept = self._counts.setdefault((app, handler), {})
                for tsv, count in counts.items():
                    kept[tsv] = kept.get(tsv, 0) + count
        return done


def fabric_usage(fabric: Fabric) -> UsageBook:
    """The usage that all routers of a fabric count."""
    return UsageBook(BucketBackend(fabric))


def merged_usage(key: str, ours: bytes, theirs: bytes) -> bytes:
    """Two documents of one handler's usage as one; each number is the higher of both. It may be done twice.

    Raises:
        MalformedManifest: one of them is no usage.
    """
    usage, other = read_usage(key, ours), read_usage(key, theirs)
    for tsv, each in other.versions.items():
        known = usage.versions.setdefault(tsv, VersionUsage())
        known.total, known.last_s = max(known.total, each.total), max(known.last_s, each.last_s)
        known.hours = each.hours | {hour: max(n, each.hours.get(hour, 0)) for hour, n in known.hours.items()}
    return msgspec.json.encode(usage)


def usage_key(app: str, handler: str) -> str:
    """The key of a handler's usage."""
    return f"{_PREFIX}{key_token(app)}.{key_token(handler)}"


def usage_names(key: str) -> tuple[str, str] | None:
    """App and handler that a key belongs to; None for a key of another kind."""
    parts = key.split(".")
    if len(parts) != 3 or not key.startswith(_PREFIX):
        return None
    return read_key_token(parts[1]), read_key_token(parts[2])


def read_usage(key: str, value: bytes) -> HandlerUsage:
    """A stored document.

    Raises:
        MalformedManifest: it is no usage.
    """
    try:
        return msgspec.json.decode(value, type=HandlerUsage)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc
