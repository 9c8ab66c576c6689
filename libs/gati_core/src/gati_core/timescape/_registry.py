"""The registry: the timelines of all handlers in `{ns}_timescape`, changed by compare-and-set.

One key for each handler, so that a version, its place and its tags change together or not at all. Two publishers
at once come one after the other. Every change is a line of the change log, too: it is part of the document it
changed, and copied to the log after that, so a crash in between loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import anyio
import msgspec
import structlog

from gati_core.errors import KeyConflict, MalformedManifest, MessageTooLarge, TransientError, VersionConflict
from gati_core.fabric import ChangeLog, Entry, Fabric, KvBucket
from gati_core.timescape._timeline import Change, ChangeFilter, Timeline, lost_versions, with_restored
from gati_core.wire.subjects import key_token, read_key_token

log = structlog.get_logger(__name__)

MAX_TIMELINE_BYTES = 900_000
_ATTEMPTS = 50
_PREFIX = "timeline."

EVERYTHING = ChangeFilter()

Edit = Callable[[Timeline], Timeline]


class Backend(Protocol):
    """Where timelines lie."""

    async def newest(self, key: str) -> Entry | None:
        """The key as it is; asks whoever keeps it."""

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that is not there, else raise `KeyConflict`."""

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write a key that is still of this revision, else raise `KeyConflict`."""

    async def delete(self, key: str) -> None:
        """Delete a key; one that is not there is no error."""

    async def keys(self) -> list[str]:
        """All keys, in no order."""


class Log(Protocol):
    """Where changes are appended."""

    async def append(self, app: str, handler: str, changes: list[Change]) -> None:
        """Append those that are not there yet."""

    async def read(self, app: str, handler: str, *, at_most: int, wanted: ChangeFilter = EVERYTHING) -> list[Change]:
        """The last ones, oldest first; of all handlers where the names are empty."""


class Registry:
    """See the module.

    Args:
        now_ms: Unix milliseconds, by this process's clock.
    """

    def __init__(
        self, backend: Backend, changes: Log, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._backend = backend
        self._changes = changes
        self.now_ms = now_ms

    async def timeline(self, app: str, handler: str) -> Timeline:
        """All about the versions of one handler; an empty one where there are none.

        Raises:
            MalformedManifest: what is stored is no timeline.
        """
        entry = await self._backend.newest(timeline_key(app, handler))
        return Timeline(app=app, handler=handler) if entry is None else read_timeline(entry.key, entry.value)

    async def handlers(self) -> list[tuple[str, str]]:
        """App and handler of every timeline, sorted. Reads the whole bucket: for tools."""
        return sorted(names for key in await self._backend.keys() if (names := timeline_names(key)) is not None)

    async def change(self, app: str, handler: str, edit: Edit) -> Timeline:
        """Change a timeline; `edit` gets what is stored, and is called again when somebody else was faster.

        Returns:
            It as stored.
        Raises:
            MessageTooLarge: it has become too large to be stored.
            KeyConflict: others were faster every time.
            Whatever `edit` raises; nothing is changed then.
        """
        key = timeline_key(app, handler)
        for attempt in range(_ATTEMPTS):
            entry = await self._backend.newest(key)
            before = Timeline(app=app, handler=handler) if entry is None else read_timeline(key, entry.value)
            after = edit(before)
            if after is before:
                return before
            data = msgspec.json.encode(after)
            if len(data) > MAX_TIMELINE_BYTES:
                raise MessageTooLarge(
                    f"the versions of {app}:{handler} need {len(data)} bytes, more than {MAX_TIMELINE_BYTES}:"
                    " deactivate old ones and take off tags"
                )
            try:
                if entry is None:
                    await self._backend.create(key, data)
                else:
                    await self._backend.update(key, data, revision=entry.revision)
            except KeyConflict:
                await anyio.sleep(min(0.002 * attempt, 0.05))
                continue
            await self._note(after)
            return after
        raise KeyConflict(f"the versions of {app}:{handler} were changed by others {_ATTEMPTS} times in a row")

    async def _note(self, timeline: Timeline) -> None:
        try:
            await self._changes.append(timeline.app, timeline.handler, timeline.changes)
        except TransientError as exc:
            # They are in the document; whoever changes it or reads the log next completes the log.
            log.warning("change_log_behind", app=timeline.app, handler=timeline.handler, error=str(exc))

    async def changes(
        self, app: str = "", handler: str = "", *, at_most: int = 10, wanted: ChangeFilter = EVERYTHING
    ) -> list[Change]:
        """The last lines of the change log, oldest first; of all handlers where no names are given."""
        if app and handler:
            await self._note(await self.timeline(app, handler))
        return await self._changes.read(app, handler, at_most=at_most, wanted=wanted)

    async def replace(
        self, timeline: Timeline, *, force: bool = False, actor: str = "system", reason: str = ""
    ) -> Timeline:
        """Put a timeline in the place of what is stored; for restoring a snapshot. See `with_restored`.

        Returns:
            It as stored.
        Raises:
            VersionConflict: what is stored has versions that it lacks, and `force` is not set.
        """
        app, handler = timeline.app, timeline.handler
        last_change = max((each.n for each in await self._changes.read(app, handler, at_most=1)), default=0)

        def edit(before: Timeline) -> Timeline:
            lost = lost_versions(before, timeline)
            if lost and not force:
                raise VersionConflict(
                    f"{app}:{handler} has {len(lost)} versions that the snapshot lacks, for example {lost[0]}:"
                    " restoring it would lose them (use --force)"
                )
            now_ms = self.now_ms()
            return with_restored(before, timeline, last_change=last_change, now_ms=now_ms, actor=actor, reason=reason)

        return await self.change(app, handler, edit)


def timeline_key(app: str, handler: str) -> str:
    """The key of a handler's timeline."""
    return f"{_PREFIX}{key_token(app)}.{key_token(handler)}"


def timeline_names(key: str) -> tuple[str, str] | None:
    """App and handler that a key belongs to; None for a key of another kind."""
    parts = key.split(".")
    if len(parts) != 3 or not key.startswith(_PREFIX):
        return None
    return read_key_token(parts[1]), read_key_token(parts[2])


def read_timeline(key: str, value: bytes) -> Timeline:
    """A stored timeline.

    Raises:
        MalformedManifest: it is none; names the key and the field.
    """
    try:
        timeline = msgspec.json.decode(value, type=Timeline)
        for version in timeline.versions:
            _ = version.order
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc
    except Exception as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc
    return timeline


class _FabricLog:
    def __init__(self, fabric: Fabric) -> None:
        self._log = ChangeLog(fabric.connection)
        self._subjects = fabric.subjects

    async def append(self, app: str, handler: str, changes: list[Change]) -> None:
        subject = self._subjects.change(app, handler)
        await self._log.append(subject, [(each.n, msgspec.json.encode(each)) for each in changes])

    async def read(self, app: str, handler: str, *, at_most: int, wanted: ChangeFilter = EVERYTHING) -> list[Change]:
        subject = self._subjects.change(app, handler) if app and handler else self._subjects.change_all
        lines = await self._log.read(subject, at_most=at_most, wanted=lambda line: wanted.takes(_change(line)))
        return [_change(line) for line in lines]


def _change(line: bytes) -> Change:
    return msgspec.json.decode(line, type=Change)


class BucketBackend:
    """The bucket `{ns}_timescape`."""

    def __init__(self, fabric: Fabric) -> None:
        bucket = KvBucket(fabric.connection, fabric.subjects.timescape_bucket)
        self.newest = bucket.get
        self.create = bucket.create
        self.update = bucket.update
        self.delete = bucket.delete
        self.keys = bucket.keys


class _Memory:
    """Timelines and changes in dictionaries, for tools without a fabric and for tests."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._changes: list[tuple[str, str, Change]] = []
        self._revision = 0

    async def newest(self, key: str) -> Entry | None:
        return self._entries.get(key)

    async def create(self, key: str, value: bytes) -> int:
        if key in self._entries:
            raise KeyConflict(f"key {key!r} exists")
        return self._write(key, value)

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        entry = self._entries.get(key)
        if entry is None or entry.revision != revision:
            raise KeyConflict(f"key {key!r} changed since it was read")
        return self._write(key, value)

    async def delete(self, key: str) -> None:
        self._entries.pop(key, None)

    async def keys(self) -> list[str]:
        return list(self._entries)

    async def append(self, app: str, handler: str, changes: list[Change]) -> None:
        last = max((each.n for where, which, each in self._changes if (where, which) == (app, handler)), default=0)
        self._changes += [(app, handler, each) for each in changes if each.n > last]

    async def read(self, app: str, handler: str, *, at_most: int, wanted: ChangeFilter = EVERYTHING) -> list[Change]:
        return [each for each in self._matching(app, handler) if wanted.takes(each)][-at_most:]

    def _matching(self, app: str, handler: str) -> Iterator[Change]:
        for where, which, change in self._changes:
            if not app or (where, which) == (app, handler):
                yield change

    def _write(self, key: str, value: bytes) -> int:
        self._revision += 1
        self._entries[key] = Entry(key, value, self._revision)
        return self._revision


def fabric_registry(fabric: Fabric) -> Registry:
    """The registry of a fabric."""
    return Registry(BucketBackend(fabric), _FabricLog(fabric))


def memory_registry(*, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> Registry:
    """A registry in memory."""
    memory = _Memory()
    return Registry(memory, memory, now_ms=now_ms)


def fabric_backend(fabric: Fabric) -> Backend:
    """The bucket of a fabric where timelines lie, for other documents beside them."""
    return BucketBackend(fabric)
