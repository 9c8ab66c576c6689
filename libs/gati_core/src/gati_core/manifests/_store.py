"""The manifest store: manifests, types, graphs and records in `{ns}_manifests`, and their copies in memory.

Reads never leave the process: a view follows the bucket and what was decoded is kept until its key changes
(P36). Writes are compare-and-set; types and transformers are never changed once stored. A document that
cannot be read, because a newer version of Gati wrote it, is reported and does not hurt the others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import anyio
import msgspec
import structlog

from gati_core.errors import AlreadyStored, KeyConflict, MalformedGType, MalformedManifest, MessageTooLarge
from gati_core.fabric.kv import Entry
from gati_core.gtype import Document, canonical_json, fingerprint, read_document
from gati_core.manifests._bundle import version_of
from gati_core.manifests._graph import TimescapeMetadata, TransformerRecord, VersionGraph
from gati_core.manifests._handler import HandlerManifest, HookRecord, manifest_hash
from gati_core.manifests._module import ModuleManifest
from gati_core.wire.subjects import key_token

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 512_000
_ATTEMPTS = 20
_SEEN_WITHIN_S = 5.0
_MAX_PREFIXES = 10_000
_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """What a key held at some time."""

    revision: int
    value: bytes | None
    """None when it was deleted."""
    written_ms: int
    """Unix time."""


class StoreBackend(Protocol):
    """Where the documents lie: a bucket with a view on it, or memory."""

    def get(self, key: str) -> Entry | None:
        """The key as last seen; never leaves the process."""

    def entries(self) -> Iterator[Entry]:
        """All keys as last seen."""

    @property
    def generation(self) -> int:
        """Grows with every change of what `get` and `entries` show."""

    async def newest(self, key: str) -> Entry | None:
        """The key as it is; asks whoever keeps it."""

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that is not there, else raise `KeyConflict`."""

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Write a key that is still of this revision, else raise `KeyConflict`."""

    async def delete(self, key: str) -> None:
        """Delete a key; one that is not there is no error."""

    async def history(self, key: str) -> list[Revision]:
        """The last revisions of a key, oldest first."""


class StoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each kind are stored, and what cannot be read."""

    manifests: int = 0
    gtypes: int = 0
    modules: int = 0
    transformers: int = 0
    graphs: int = 0
    timescape: int = 0
    unreadable: list[str] = []
    """One line for each document that this process cannot read."""


class ManifestStore:
    """See the module.

    Args:
        now_ms: Unix milliseconds; when manifests were stored.
    """

    def __init__(
        self, backend: StoreBackend, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._backend = backend
        self._now_ms = now_ms
        self._decoded: dict[str, tuple[int, Any]] = {}
        """By key: the revision that was decoded, and what it was; None for what cannot be read."""
        self._unreadable: dict[str, str] = {}
        self._keys: dict[str, list[str]] = {}
        """By beginning, the keys that have it, in order; as of `_keys_at`."""
        self._keys_at = -1

    # -- handlers ---------------------------------------------------------------------------------

    async def store_manifest(self, app: str, manifest: HandlerManifest) -> HandlerManifest:
        """Store a version of a handler. One that is stored already stays as it is, with its date.

        Returns:
            It as stored: with `created_ms` and `hash`.
        Raises:
            AlreadyStored: another manifest is stored under this version.
        """
        key = _key("handler", app, manifest.id, version_of(manifest))
        stored = msgspec.structs.replace(manifest, created_ms=manifest.created_ms or self._now_ms())
        stored = msgspec.structs.replace(stored, hash=manifest_hash(stored))
        try:
            await self._create(key, stored)
        except KeyConflict:
            known = await self._newest(key, HandlerManifest)
            if known is not None and _without_places(known) == _without_places(stored):
                return known  # the same behaviour, from other lines of its file
            if known is None or known.hash != stored.hash:
                raise AlreadyStored(
                    f"handler {app}:{manifest.id} of version {version_of(manifest)} is stored with other content"
                ) from None
            return known
        return stored

    def manifest(self, app: str, handler_id: str, version: str = "") -> HandlerManifest | None:
        """A version of a handler, or the newest one.

        Args:
            version: as it was stored: the TSV, or the manifest's fingerprint where it had none.
        """
        if version:
            return self._cached(_key("handler", app, handler_id, _short(version)), HandlerManifest)
        return next(reversed(self.manifest_versions(app, handler_id)), None)

    def manifest_versions(self, app: str, handler_id: str) -> list[HandlerManifest]:
        """All versions of a handler, oldest first."""
        found = self._all(_key("handler", app, handler_id) + ".", HandlerManifest)
        return sorted(found, key=lambda each: (each.created_ms, version_of(each)))

    def manifests(self) -> list[HandlerManifest]:
        """All versions of all handlers."""
        return self._all("handler.", HandlerManifest)

    def hooks(self, app: str, handler_id: str, version: str = "") -> list[HookRecord]:
        """The hooks around a version of a handler; they are part of its manifest."""
        manifest = self.manifest(app, handler_id, version)
        return manifest.hooks if manifest is not None else []

    # -- types ------------------------------------------------------------------------------------

    async def store_gtype(self, document: Document) -> str:
        """Store a type under its fingerprint, which is returned. Storing it again changes nothing."""
        name = fingerprint(document)
        key = _key("gtype", name)
        if self._backend.get(key) is None:
            try:
                await self._create(key, document)
            except KeyConflict:
                pass  # the same content has the same key
        return name

    def gtype(self, name: str) -> Document | None:
        """The type of this fingerprint."""
        return self._cached(_key("gtype", name), Document)

    # -- for processes without a view -------------------------------------------------------------

    async def load_manifest(self, app: str, handler_id: str, version: str) -> HandlerManifest | None:
        """A version of a handler, read from where it lies; for processes that follow no bucket.

        Args:
            version: as it was stored: the TSV, or the manifest's fingerprint where it had none.
        """
        return await self._newest(_key("handler", app, handler_id, _short(version)), HandlerManifest)

    async def load_gtype(self, name: str) -> Document | None:
        """The type of this fingerprint, read from where it lies."""
        return await self._newest(_key("gtype", name), Document)

    # -- modules ----------------------------------------------------------------------------------

    async def store_module(self, manifest: ModuleManifest) -> ModuleManifest:
        """Store a version of a module; see `store_manifest`."""
        key = _key("module", manifest.module_id, manifest.version)
        stored = msgspec.structs.replace(manifest, created_ms=manifest.created_ms or self._now_ms())
        stored = msgspec.structs.replace(stored, hash=manifest_hash(stored))
        try:
            await self._create(key, stored)
        except KeyConflict:
            known = await self._newest(key, ModuleManifest)
            if known is None or known.hash != stored.hash:
                raise AlreadyStored(
                    f"module {manifest.module_id} of version {manifest.version} is stored with other content"
                ) from None
            return known
        return stored

    def module(self, module_id: str, version: str = "") -> ModuleManifest | None:
        """A version of a module, or the newest one."""
        if version:
            return self._cached(_key("module", module_id, version), ModuleManifest)
        found = self._all(_key("module", module_id) + ".", ModuleManifest)
        return max(found, key=lambda each: (each.created_ms, each.version), default=None)

    def modules(self) -> list[ModuleManifest]:
        """All versions of all modules."""
        return self._all("module.", ModuleManifest)

    # -- versions ---------------------------------------------------------------------------------

    async def store_transformer(self, record: TransformerRecord) -> TransformerRecord:
        """Store a transformer, once and for all.

        Raises:
            AlreadyStored: one with other content leads from this version to that one already.
        """
        key = _key("transformer", record.app, record.handler_id, record.from_version, record.to_version)
        stored = msgspec.structs.replace(record, created_ms=record.created_ms or self._now_ms())
        stored = msgspec.structs.replace(stored, hash=manifest_hash(stored))
        try:
            await self._create(key, stored)
        except KeyConflict:
            known = await self._newest(key, TransformerRecord)
            if known is None or known.hash != stored.hash:
                raise AlreadyStored(
                    f"a transformer of {record.app}:{record.handler_id} from {record.from_version} to"
                    f" {record.to_version} is stored already, and transformers are never changed"
                ) from None
            return known
        return stored

    def transformer(self, app: str, handler_id: str, from_version: str, to_version: str) -> TransformerRecord | None:
        """The transformer from one version of a handler to another."""
        return self._cached(_key("transformer", app, handler_id, from_version, to_version), TransformerRecord)

    def transformers(self, app: str, handler_id: str) -> list[TransformerRecord]:
        """All transformers of a handler."""
        return self._all(_key("transformer", app, handler_id) + ".", TransformerRecord)

    def graph(self, app: str, handler_id: str) -> VersionGraph | None:
        """The versions of a handler."""
        return self._cached(_key("graph", app, handler_id), VersionGraph)

    async def update_graph(
        self, app: str, handler_id: str, change: Callable[[VersionGraph], VersionGraph]
    ) -> VersionGraph:
        """Change a version graph; `change` gets what is stored and may be called again when others change it, too.

        Raises:
            KeyConflict: others were faster every time.
        """
        empty = VersionGraph(app=app, handler_id=handler_id)
        return await self._change(_key("graph", app, handler_id), VersionGraph, empty, change)

    def timescape(self, app: str, handler_id: str, version: str) -> TimescapeMetadata | None:
        """What Timescape knows of a version."""
        return self._cached(_key("timescape", app, handler_id, version), TimescapeMetadata)

    async def store_timescape(self, record: TimescapeMetadata) -> None:
        """Store what Timescape knows of a version, in the place of what it knew before."""
        key = _key("timescape", record.app, record.handler_id, record.version)
        await self._change(key, TimescapeMetadata, record, lambda _known: record)

    # -- looking around ---------------------------------------------------------------------------

    async def history(self, *parts: str) -> list[Revision]:
        """The last revisions of a document, oldest first: `history("graph", "shop", "place_order")`."""
        return await self._backend.history(_key(*parts))

    def stats(self) -> StoreStats:
        """How many of each kind are stored. Looks at all of them."""
        kinds: dict[str, Any] = {
            "handler": HandlerManifest,
            "gtype": Document,
            "module": ModuleManifest,
            "transformer": TransformerRecord,
            "graph": VersionGraph,
            "timescape": TimescapeMetadata,
        }
        counts = {name: len(self._all(f"{name}.", kind)) for name, kind in kinds.items()}
        return StoreStats(
            manifests=counts["handler"],
            gtypes=counts["gtype"],
            modules=counts["module"],
            transformers=counts["transformer"],
            graphs=counts["graph"],
            timescape=counts["timescape"],
            unreadable=sorted(self._unreadable.values()),
        )

    async def clear(self) -> None:
        """Delete everything that this class stores; for tools and tests."""
        prefixes = ("handler.", "gtype.", "module.", "transformer.", "graph.", "timescape.")
        for entry in list(self._backend.entries()):
            if entry.key.startswith(prefixes):
                await self._backend.delete(entry.key)

    # -- reading and writing ----------------------------------------------------------------------

    def _cached(self, key: str, kind: type[T]) -> T | None:
        entry = self._backend.get(key)
        if entry is None:
            self._decoded.pop(key, None)
            self._unreadable.pop(key, None)
            return None
        known = self._decoded.get(key)
        if known is None or known[0] != entry.revision:
            known = (entry.revision, self._read(entry, kind))
            self._decoded[key] = known
        value: T | None = known[1]
        return value

    def _all(self, prefix: str, kind: type[T]) -> list[T]:
        if self._keys_at != self._backend.generation:
            self._keys, self._keys_at = {}, self._backend.generation
        keys = self._keys.get(prefix)
        if keys is None:
            keys = sorted(entry.key for entry in self._backend.entries() if entry.key.startswith(prefix))
            if len(self._keys) >= _MAX_PREFIXES:
                self._keys.clear()
            self._keys[prefix] = keys
        return [value for key in keys if (value := self._cached(key, kind)) is not None]

    def _read(self, entry: Entry, kind: type[T]) -> T | None:
        try:
            value = _decoded(entry, kind)
        except (MalformedManifest, MalformedGType) as exc:
            self._unreadable[entry.key] = f"{entry.key}: {exc}"
            log.warning("document_unreadable", key=entry.key, error=str(exc))
            return None
        self._unreadable.pop(entry.key, None)
        return value

    async def _newest(self, key: str, kind: type[T]) -> T | None:
        entry = await self._backend.newest(key)
        return None if entry is None else self._read(entry, kind)

    async def _create(self, key: str, value: Any) -> None:
        await self._seen(key, await self._backend.create(key, _encoded(key, value)))

    async def _change(self, key: str, kind: type[T], empty: T, change: Callable[[T], T]) -> T:
        for attempt in range(_ATTEMPTS):
            entry = await self._backend.newest(key)
            changed = change(empty if entry is None else _decoded(entry, kind))
            data = _encoded(key, changed)
            try:
                if entry is None:
                    revision = await self._backend.create(key, data)
                else:
                    revision = await self._backend.update(key, data, revision=entry.revision)
            except KeyConflict:
                await anyio.sleep(0.002 * attempt)
                continue
            await self._seen(key, revision)
            return changed
        raise KeyConflict(f"key {key!r} was changed by others {_ATTEMPTS} times in a row")

    async def _seen(self, key: str, revision: int) -> None:
        """Return once the copy in memory has it: whoever writes can read it next."""
        with anyio.move_on_after(_SEEN_WITHIN_S) as limit:
            while (  # noqa: ASYNC110 - a view has no event for a revision of a key
                entry := self._backend.get(key)
            ) is None or entry.revision < revision:
                await anyio.sleep(0.001)
        if limit.cancelled_caught:
            log.warning("store_view_behind", key=key, revision=revision)


def _without_places(manifest: HandlerManifest) -> HandlerManifest:
    """What a handler does, wherever it stands and whatever is said about it."""
    hooks = [msgspec.structs.replace(hook, source=None) for hook in manifest.hooks]
    return msgspec.structs.replace(manifest, source="", summary="", hooks=hooks, hash="", created_ms=0)


def _short(version: str) -> str:
    """A version as keys have it; see `version_of`."""
    return version[:16] if _FINGERPRINT.fullmatch(version) is not None else version


def _key(*parts: str) -> str:
    return ".".join((parts[0], *map(key_token, parts[1:])))


def _encoded(key: str, value: Any) -> bytes:
    data = canonical_json(value)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise MessageTooLarge(f"{key}: the document of {len(data)} bytes exceeds the limit of {MAX_DOCUMENT_BYTES}")
    return data


def _decoded(entry: Entry, kind: type[T]) -> T:
    if kind is Document:
        document: Any = read_document(entry.value)
        if _key("gtype", fingerprint(document)) != entry.key:
            raise MalformedGType("its content has another fingerprint than its key says")
        value: T = document
        return value
    try:
        return msgspec.json.decode(entry.value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedManifest(str(exc)) from exc
