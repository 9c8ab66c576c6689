"""What a snapshot of the registry is: one gzip'ed JSON document, and the checks before anybody believes one.

The documents of the registry are in it byte for byte, so that what comes back is what was there, also where a newer
Gati wrote it. The checksum is over exactly those bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from gati_core.errors import MalformedManifest, RequestError, SnapshotError
from gati_core.fabric.kv import checked_key
from gati_core.gtype import canonical_json
from gati_core.timescape._registry import read_timeline, timeline_names
from gati_core.timescape._rollout import read_rollout, rollout_names
from gati_core.timescape._timeline import Timeline

FORMAT = 1
MAX_PACKED_BYTES = 64 * 1024 * 1024
"""What one snapshot may need in the object store and in a file."""
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
"""What one may need in memory: a small file that unpacks to more is refused."""

SnapshotType = Literal["light", "heavy"]
Area = Literal["timescape", "config", "manifests"]
AREAS: tuple[Area, ...] = ("timescape", "config", "manifests")

_ID = re.compile(r"snap:(\d{1,15})-(light|heavy)-([0-9a-f]{8})", re.ASCII)
_GZIP = b"\x1f\x8b"
_AS_GZIP = 31  # zlib's name for the format
_PASSING = ("lock.", "sweep.")
"""Whose turn it is, and who holds what: true only at the moment it was written."""


class SnapshotCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a snapshot."""

    handlers: int = 0
    versions: int = 0
    active: int = 0
    cold: int = 0
    tags: int = 0
    registered: int = 0
    """Versions that there have ever been, of all handlers."""
    documents: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that was read and checked."""

    id: str
    type: SnapshotType
    created_ms: int
    """Unix time."""
    created_by: str
    sha256: str
    """Of the state, in hex."""
    counts: SnapshotCounts
    packages: list[str]
    """Names in `{ns}_packages` that its package records refer to. The wheels themselves are not inside."""
    left_out: list[str]
    """Documents that could not be read when it was taken, and why; they are not inside."""
    state: dict[str, dict[str, bytes]]
    """By area, then by key."""

    def documents(self, area: Area) -> dict[str, bytes]:
        """What it has of one area."""
        return self.state.get(area, {})

    def timelines(self) -> list[Timeline]:
        """The timelines of all handlers, by key."""
        found = self.documents("timescape")
        return [read_timeline(key, found[key]) for key in sorted(found) if timeline_names(key) is not None]


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A snapshot as it is written."""

    format: int
    id: str
    type: SnapshotType
    created_ms: int
    created_by: str
    sha256: str
    counts: SnapshotCounts
    packages: list[str]
    left_out: list[str]
    state: msgspec.Raw


class _Stored(msgspec.Struct):
    """Of a package's record, what a snapshot asks of it."""

    stored: str = ""


class SnapshotName(NamedTuple):
    """What an id says."""

    created_ms: int
    type: SnapshotType
    sha256_start: str


def read_snapshot_id(id: str) -> SnapshotName | None:
    """What an id says; None for what is no id.

    >>> read_snapshot_id("snap:1793534400000-light-0a1b2c3d")
    SnapshotName(created_ms=1793534400000, type='light', sha256_start='0a1b2c3d')
    """
    found = _ID.fullmatch(id)
    if found is None:
        return None
    return SnapshotName(int(found[1]), "heavy" if found[2] == "heavy" else "light", found[3])


def snapshot_file_name(id: str) -> str:
    """The name of a snapshot's file: colons are in the way on some systems.

    >>> snapshot_file_name("snap:1793534400000-light-0a1b2c3d")
    'snap_1793534400000-light-0a1b2c3d.json.gz'
    """
    return id.replace(":", "_") + ".json.gz"


def is_part(area: Area, key: str) -> bool:
    """Whether a key belongs into snapshots: of the configuration rollouts alone, and nothing that passes by itself."""
    if area == "config":
        try:
            return rollout_names(key) is not None
        except UnicodeDecodeError:
            return False
    return not (area == "timescape" and key.startswith(_PASSING))


def pack_snapshot(
    state: Mapping[Area, Mapping[str, bytes]], *, type: SnapshotType, created_ms: int, created_by: str
) -> tuple[bytes, Snapshot]:
    """Make a snapshot of documents; also says what is in it. Takes its time: not for an event loop.

    A document that nobody can read is left out and named: it must not keep the others from being safe.

    Raises:
        SnapshotError: it is too large.
    """
    left_out: list[str] = []
    kept: dict[str, dict[str, bytes]] = {}
    for area in AREAS:
        if area not in state:
            continue
        kept[area] = {}
        for key, value in state[area].items():
            if not is_part(area, key):
                continue
            try:
                _check_document(area, key, value)
            except _Unreadable as exc:
                left_out.append(str(exc))
            else:
                kept[area][key] = value
    raw = {area: {key: msgspec.Raw(value) for key, value in each.items()} for area, each in kept.items()}
    written = canonical_json(raw)
    sha256 = hashlib.sha256(written).hexdigest()
    snapshot = Snapshot(
        id=f"snap:{created_ms}-{type}-{sha256[:8]}",
        type=type,
        created_ms=created_ms,
        created_by=created_by,
        sha256=sha256,
        counts=_counts(kept),
        packages=_packages(kept),
        left_out=sorted(left_out),
        state=kept,
    )
    fields = {name: getattr(snapshot, name) for name in Snapshot.__struct_fields__ if name != "state"}
    data = canonical_json(_File(format=FORMAT, state=msgspec.Raw(written), **fields))
    _check_size(len(data), MAX_UNPACKED_BYTES, f"the {type} snapshot needs", "unpacked")
    packed = gzip.compress(data, compresslevel=6, mtime=0)
    _check_size(len(packed), MAX_PACKED_BYTES, f"the {type} snapshot needs", "packed")
    return packed, snapshot


def unpack_snapshot(data: bytes, *, name: str, max_bytes: int = MAX_UNPACKED_BYTES) -> Snapshot:
    """Read a snapshot and check all of it. Takes its time: not for an event loop.

    Args:
        name: what messages call it: a file, or an id.
        max_bytes: what it may unpack to.
    Raises:
        SnapshotError: it is none, damaged, too large, or of a newer format; says what is wrong and where.
    """
    text = _unzipped(data, name, max_bytes)
    try:
        # First the format alone: a newer one may have other fields, and is not damaged.
        version = msgspec.json.decode(text, type=_Format).format
        if version != FORMAT:
            raise SnapshotError(f"{name} is of format {version}, and this Gati reads format {FORMAT}: use a newer one")
        file = msgspec.json.decode(text, type=_File)
        state = msgspec.json.decode(file.state, type=dict[str, dict[str, msgspec.Raw]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SnapshotError(f"{name} is no snapshot: {exc}") from exc
    sha256 = hashlib.sha256(file.state).hexdigest()
    if sha256 != file.sha256:
        raise SnapshotError(
            f"{name} is damaged: the checksum of its state is {sha256[:12]}…, and it says {file.sha256[:12]}…"
        )
    named = read_snapshot_id(file.id)
    if named != SnapshotName(file.created_ms, file.type, sha256[:8]):
        raise SnapshotError(f"{name} is damaged: its id {file.id!r} does not fit its time, type and checksum")
    documents = {area: {key: bytes(value) for key, value in each.items()} for area, each in state.items()}
    for area, each in documents.items():
        known = next((one for one in AREAS if one == area), None)
        if known is None:
            raise SnapshotError(f"{name} is damaged: it has an area {area!r}; those known are {', '.join(AREAS)}")
        for key, value in each.items():
            _check_part(known, key, value, name)
    if _counts(documents) != file.counts:
        raise SnapshotError(f"{name} is damaged: its counts are not those of its documents")
    fields = {field: getattr(file, field) for field in Snapshot.__struct_fields__ if field != "state"}
    return Snapshot(state=documents, **fields)


class _Format(msgspec.Struct, frozen=True):
    format: int


class _Unreadable(Exception):
    """A document that cannot be read; names its area and key."""


def _check_part(area: Area, key: str, value: bytes, name: str) -> None:
    try:
        checked_key(key)
    except RequestError as exc:
        raise SnapshotError(f"{name} is damaged: {area}: {exc}") from exc
    if not is_part(area, key):
        raise SnapshotError(f"{name} is damaged: {area} has the key {key}, which is in no snapshot")
    try:
        _check_document(area, key, value)
    except _Unreadable as exc:
        raise SnapshotError(f"{name} is damaged: {exc}") from exc


def _check_document(area: Area, key: str, value: bytes) -> None:
    """Whether a document can be read, and is the one that its key says."""
    try:
        names = timeline_names(key) if area == "timescape" else None
        if names is not None:
            timeline = read_timeline(key, value)
            if names != (timeline.app, timeline.handler):
                raise _Unreadable(f"{area}: {key}: it is the timeline of {timeline.app}:{timeline.handler}")
        elif area == "config":
            read_rollout(key, value)
        else:
            msgspec.json.decode(value)
    except MalformedManifest as exc:
        raise _Unreadable(f"{area}: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _Unreadable(f"{area}: {key}: {exc}") from exc


def _counts(state: Mapping[str, Mapping[str, bytes]]) -> SnapshotCounts:
    found = state.get("timescape", {})
    timelines = [read_timeline(key, found[key]) for key in found if timeline_names(key) is not None]
    return SnapshotCounts(
        handlers=len(timelines),
        versions=_sum(timelines, lambda each: len(each.versions)),
        active=_sum(timelines, lambda each: sum(version.is_active for version in each.versions)),
        cold=_sum(timelines, lambda each: sum(version.status == "cold" for version in each.versions)),
        tags=_sum(timelines, lambda each: len(each.tags)),
        registered=_sum(timelines, lambda each: each.registered),
        documents=sum(len(each) for each in state.values()),
    )


def _sum(timelines: list[Timeline], number: Callable[[Timeline], int]) -> int:
    return sum(number(each) for each in timelines)


def registered_in(documents: Mapping[str, bytes]) -> int:
    """How many versions there have ever been, by the timelines among these documents; unreadable ones do not count."""
    total = 0
    for key, value in documents.items():
        try:
            if timeline_names(key) is not None:
                total += read_timeline(key, value).registered
        except (MalformedManifest, UnicodeDecodeError):
            continue  # whoever uses it says so
    return total


def _packages(state: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    found = set()
    for key, value in state.get("timescape", {}).items():
        if key.startswith("package."):
            try:
                found.add(msgspec.json.decode(value, type=_Stored).stored)
            except msgspec.DecodeError:
                continue  # no record that this Gati knows
    return sorted(found - {""})


def _unzipped(data: bytes, name: str, max_bytes: int) -> bytes:
    if not data.startswith(_GZIP):
        raise SnapshotError(f"{name} is no snapshot: it is not gzip'ed")
    unzip = zlib.decompressobj(wbits=_AS_GZIP)
    try:
        text = unzip.decompress(data, max_bytes + 1)  # never more in memory, whatever it would unpack to
    except zlib.error as exc:
        raise SnapshotError(f"{name} is damaged: {exc}") from exc
    if len(text) > max_bytes:
        raise SnapshotError(f"{name} has {len(data)} bytes and unpacks to more than {max_bytes}: it is not read")
    if not unzip.eof:
        raise SnapshotError(f"{name} is damaged: it is cut off after {len(data)} bytes")
    if unzip.unused_data:
        raise SnapshotError(f"{name} is damaged: {len(unzip.unused_data)} bytes follow its end")
    return text


def _check_size(size: int, limit: int, what: str, how: str) -> None:
    if size > limit:
        raise SnapshotError(f"{what} {size} bytes {how}, and at most {limit} can be stored")


def equal_documents(one: bytes, other: bytes) -> bool:
    """Whether two documents say the same, in whatever order."""
    if one == other:
        return True
    try:
        first: Any = msgspec.json.decode(one)
        second: Any = msgspec.json.decode(other)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return bool(first == second)
