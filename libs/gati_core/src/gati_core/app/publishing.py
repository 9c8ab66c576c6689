"""Publishing: a built wheel goes into a running fabric, whose workers fetch, check and start it.

A wheel is first compared with what runs (`check_wheel`): a change that breaks clients and has no transformer is
refused. Then it is stored, and a record says that it is `pending`. The first worker that has it running makes it
`active`; one that finds that it cannot run makes it `failed`, with the reason. Its handlers become versions only
when its worker is ready, so that a package which does not start changes nothing for anybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import anyio
import msgspec

from gati_core.app.inspection import PackageReport
from gati_core.app.wheels import WheelInfo, read_wheel
from gati_core.errors import KeyConflict, MalformedManifest, PackageError
from gati_core.fabric import Fabric, PackageStore
from gati_core.gtype.diff import Diff, HandlerTypes
from gati_core.manifests import HandlerManifest, ManifestStore, publishing_store
from gati_core.timescape import (
    Backend,
    Registry,
    compare_manifests,
    fabric_backend,
    fabric_registry,
    types_of,
)
from gati_core.wire.subjects import key_token

PREFIX = "package."
_ATTEMPTS = 50
_POLL_S = 0.05

State = Literal["pending", "active", "failed"]


class PackageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the fabric knows of one version of a package; key `package.<app>.<version>` in `{ns}_timescape`."""

    app: str
    version: str
    distribution: str
    target: str
    """`module:attribute`."""
    entry_point: str
    stored: str
    """Its name in the object store `{ns}_packages`."""
    filename: str
    sha256: str
    size_bytes: int
    handlers: dict[str, str]
    """Fingerprints by handler: what its versions are known by."""
    state: State = "pending"
    published_ms: int = 0
    """Unix time of the last attempt."""
    actor: str = ""
    reason: str = ""
    error: str = ""
    """Why it failed."""
    where: str = ""
    """`file:line` of the failure, where it is known."""
    told_by: str = ""
    """Who made it active or failed."""
    pool: str = ""
    """Of its workers; known once it has run."""
    trouble: str = ""
    """What a worker that runs it has to report, such as a process that dies again and again; empty when all is well."""


class HandlerCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One handler of a wheel, beside the version that runs now."""

    handler: str
    change: Literal["new", "same", "compatible", "breaking", "unknown"]
    """`unknown`: what runs now cannot be compared any more."""
    parent: str = ""
    """The version it was compared with."""
    has_transformer: bool = False
    unfinished: list[str] = []
    """Functions of its transformer that nobody has written yet."""
    diff: Diff | None = None

    @property
    def is_refused(self) -> bool:
        """Whether its old clients would be left with nothing but the old version."""
        return bool(self.unfinished) or (self.change in ("breaking", "unknown") and not self.has_transformer)


class PublicationRefused(PackageError):
    """The wheel breaks clients and brings no transformer for them; `checks` says where."""

    code = "package.breaks_clients"

    def __init__(self, message: str, checks: Sequence[HandlerCheck]) -> None:
        super().__init__(message)
        self.checks = list(checks)


class PackageFailed(PackageError):
    """No worker could run the package; the record has the reason."""

    code = "package.failed"

    def __init__(self, message: str, record: PackageRecord) -> None:
        super().__init__(message)
        self.record = record


# -- records ----------------------------------------------------------------------------------------


def package_key(app: str, version: str) -> str:
    """The key of a package's record."""
    return f"{PREFIX}{key_token(app)}.{key_token(version)}"


def read_record(key: str, value: bytes) -> PackageRecord:
    """A stored record.

    Raises:
        MalformedManifest: it is none; names the key and the field.
    """
    try:
        return msgspec.json.decode(value, type=PackageRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc


class PackageRecords:
    """The records of all published packages, changed by compare-and-set."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def get(self, app: str, version: str) -> PackageRecord | None:
        """The record of a package; None where it was never published."""
        entry = await self._backend.newest(package_key(app, version))
        return None if entry is None else read_record(entry.key, entry.value)

    async def change(
        self, app: str, version: str, edit: Callable[[PackageRecord | None], PackageRecord | None]
    ) -> PackageRecord | None:
        """Change a record; `edit` gets what is stored, is called again when somebody else was faster, and returns
        what it got, or None, to change nothing.

        Returns:
            It as stored.
        Raises:
            KeyConflict: others were faster every time.
        """
        key = package_key(app, version)
        for attempt in range(_ATTEMPTS):
            entry = await self._backend.newest(key)
            before = None if entry is None else read_record(key, entry.value)
            after = edit(before)
            if after is None or after is before:
                return before
            try:
                if entry is None:
                    await self._backend.create(key, msgspec.json.encode(after))
                else:
                    await self._backend.update(key, msgspec.json.encode(after), revision=entry.revision)
            except KeyConflict:
                await anyio.sleep(min(0.002 * attempt, 0.05))
                continue
            return after
        raise KeyConflict(f"the record of {app} {version} was changed by others {_ATTEMPTS} times in a row")

    async def started(self, record: PackageRecord, *, pool: str, by: str) -> None:
        """A worker has it running."""

        def edit(known: PackageRecord | None) -> PackageRecord | None:
            if known is None or known.sha256 != record.sha256 or (known.state, known.pool) == ("active", pool):
                return known
            return msgspec.structs.replace(known, state="active", pool=pool, error="", where="", told_by=by)

        await self.change(record.app, record.version, edit)

    async def refused(self, record: PackageRecord, error: str, *, where: str = "", by: str) -> bool:
        """A worker cannot run it. What runs elsewhere stays active. Returns whether it has failed."""

        def edit(known: PackageRecord | None) -> PackageRecord | None:
            if known is None or known.sha256 != record.sha256 or known.state != "pending":
                return known
            return msgspec.structs.replace(known, state="failed", error=error, where=where, told_by=by)

        after = await self.change(record.app, record.version, edit)
        return after is None or after.state == "failed"

    async def troubled(self, record: PackageRecord, trouble: str, *, by: str) -> None:
        """A worker has something to report of a package that runs; empty when all is well again."""

        def edit(known: PackageRecord | None) -> PackageRecord | None:
            if known is None or known.sha256 != record.sha256 or known.trouble == trouble:
                return known
            return msgspec.structs.replace(known, trouble=trouble, told_by=by)

        await self.change(record.app, record.version, edit)


def fabric_records(fabric: Fabric) -> PackageRecords:
    """The records of a fabric."""
    return PackageRecords(fabric_backend(fabric))


# -- the gate ---------------------------------------------------------------------------------------


async def check_wheel(registry: Registry, store: ManifestStore, report: PackageReport) -> list[HandlerCheck]:
    """Compare each handler of a package with the version that clients get now."""
    checks = []
    for manifest in report.handlers:
        timeline = await registry.timeline(report.app, manifest.id)
        newest = timeline.newest
        if newest is None:
            checks.append(HandlerCheck(handler=manifest.id, change="new"))
            continue
        if timeline.with_fingerprint(manifest.fingerprint) is not None:
            checks.append(HandlerCheck(handler=manifest.id, change="same", parent=newest.tsv))
            continue
        names = {newest.tsv, *timeline.tags_of(newest.tsv)}
        names |= {label.removeprefix("v") for label in names} | ({newest.package} - {""})
        leading = [
            each
            for each in report.transformers
            if each.handler == manifest.id and not each.to_version and each.from_version in names
        ]
        unfinished = [f"{each.name}.{function}" for each in leading for function in each.unfinished]
        old = await store.load_manifest(report.app, manifest.id, newest.fingerprint)
        if old is None:
            checks.append(
                HandlerCheck(
                    handler=manifest.id,
                    change="unknown",
                    parent=newest.tsv,
                    has_transformer=bool(leading),
                    unfinished=unfinished,
                )
            )
            continue
        diff = compare_manifests(old, await types_of(store, old), manifest, _types_in(report, manifest))
        checks.append(
            HandlerCheck(
                handler=manifest.id,
                change="breaking" if diff.breaking else "compatible",
                parent=newest.tsv,
                has_transformer=bool(leading),
                unfinished=unfinished,
                diff=diff,
            )
        )
    return checks


def _types_in(report: PackageReport, manifest: HandlerManifest) -> HandlerTypes:
    refs, schemas = manifest.gtypes, report.schemas
    return HandlerTypes(
        params=schemas.get(refs.params),
        query=schemas.get(refs.query),
        headers=schemas.get(refs.headers),
        request=schemas.get(refs.request),
        response=schemas.get(refs.response),
    )


def _refusal(info: WheelInfo, refused: Sequence[HandlerCheck]) -> str:
    lines = [f"{info.name} {info.version} breaks clients of {len(refused)} of its handlers:"]
    sources = {each.id: each.source for each in info.report.handlers}
    for check in refused:
        lines.append(f"  {check.handler} ({sources[check.handler]}), compared with {check.parent}")
        if check.unfinished:
            lines.append(
                f"    its transformer is not finished: {', '.join(check.unfinished)} raises NotImplementedError"
            )
        elif check.diff is None:
            lines.append("    what runs now is not stored any more, so that it cannot be compared")
        else:
            lines += [f"    {each.path}  {each.description}" for each in check.diff.breaking[:10]]
    lines.append(
        "add a transformer from that version for each (@app.transformer; `gati versions stub` writes the beginning of"
        " one), or keep both versions for their clients with --keep-old"
    )
    return "\n".join(lines)


# -- publishing -------------------------------------------------------------------------------------


async def publish_wheel(
    fabric: Fabric,
    wheel: Path,
    *,
    actor: str,
    reason: str = "",
    keep_old: bool = False,
    progress: Callable[[int, int], None] | None = None,
    store: PackageStore | None = None,
) -> PackageRecord:
    """Check a wheel against what runs, store it, and ask the workers to run it.

    The same wheel again is no error: one that failed is tried again.

    Args:
        keep_old: go on although clients break: they keep the old version as long as it runs.
        progress: hears how many bytes of how many are stored.
    Returns:
        The record; `wait_until_served` says what becomes of it.
    Raises:
        PackageError: the file is no wheel that `gati build` made.
        PublicationRefused: it breaks clients.
        AlreadyStored: another wheel of this version was published before.
        BrokerUnavailable: nothing was published.
    """
    info = await anyio.to_thread.run_sync(read_wheel, wheel)
    checks = await check_wheel(fabric_registry(fabric), publishing_store(fabric), info.report)
    refused = [each for each in checks if each.is_refused]
    if any(each.unfinished for each in refused) or (refused and not keep_old):
        raise PublicationRefused(_refusal(info, refused), checks)
    name = f"{info.report.app}/{info.version}/{info.filename}"
    packages = store if store is not None else fabric.packages
    await packages.put(name, wheel, metadata={"app": info.report.app, "version": info.version}, progress=progress)
    (entry_point, target), *_ = info.apps.items()
    wanted = PackageRecord(
        app=info.report.app,
        version=info.version,
        distribution=info.name,
        target=target,
        entry_point=entry_point,
        stored=name,
        filename=info.filename,
        sha256=info.sha256,
        size_bytes=info.size_bytes,
        handlers={each.id: each.fingerprint for each in info.report.handlers},
        published_ms=time.time_ns() // 1_000_000,
        actor=actor,
        reason=reason,
    )

    def edit(known: PackageRecord | None) -> PackageRecord:
        return known if known is not None and known.state != "failed" else wanted

    after = await fabric_records(fabric).change(wanted.app, wanted.version, edit)
    return after if after is not None else wanted


async def wait_until_served(fabric: Fabric, record: PackageRecord, *, within_s: float = 60.0) -> PackageRecord:
    """Wait for a worker to run a package.

    Raises:
        PackageFailed: none can; says why.
        PackageError: none has said anything in time.
        BrokerUnavailable: the fabric could not be asked.
    """
    records = fabric_records(fabric)
    with anyio.move_on_after(within_s):
        while True:
            known = await records.get(record.app, record.version)
            if known is not None and known.state == "active":
                return known
            if known is not None and known.state == "failed":
                place = f" ({known.where})" if known.where else ""
                raise PackageFailed(
                    f"{known.app} {known.version} does not start: {known.error}{place}; what ran before runs on", known
                )
            await anyio.sleep(_POLL_S)
    raise PackageError(
        f"{record.app} {record.version} is stored, but no worker has run it within {within_s:g} s: is there one that"
        " hosts published packages (GATI_WORKER_PUBLISHED)? `gati doctor` shows those there are"
    )
