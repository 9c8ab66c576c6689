"""`gati versions`: the timelines of handlers, read and changed in the registry."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast, get_args

import msgspec

from gati_cli._errors import CliError
from gati_cli.diff import types_of as types_in
from gati_cli.packages import read_reports
from gati_cli.routes import no_fabric
from gati_cli.target import Target, with_fabric
from gati_core.app.publishing import PackageRecord, fabric_records
from gati_core.app.stubs import transformer_stub
from gati_core.errors import (
    GatiError,
    InvalidTimestamp,
    InvalidVersion,
    RequestError,
    TagNotFound,
    TopologyError,
    VersionNotFound,
)
from gati_core.fabric import Fabric, stream_state
from gati_core.fabric.inspection import read_bucket
from gati_core.gtype.diff import Diff, render
from gati_core.manifests import publishing_store
from gati_core.settings import from_env
from gati_core.timescape import (
    Change,
    ChangeFilter,
    ChangeType,
    HandlerUsage,
    Registry,
    Rollout,
    Sweeper,
    SweepPolicy,
    Timeline,
    Verdict,
    VersionRecord,
    Versions,
    compare,
    compare_manifests,
    fabric_registry,
    fabric_usage,
    read_preference,
    read_rollout,
    rollout_key,
    types_of,
    with_deprecation,
    with_keep,
    with_status,
    with_tag,
    without_tag,
)

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version, as `gati versions list --json` tells it."""

    app: str
    handler: str
    version: VersionRecord
    tags: list[str]
    requests: int
    last_request_s: int
    """Unix time; 0 where there was none."""
    is_newest: bool


def run_on(target: Target, work: Callable[[Fabric], Awaitable[T]]) -> T:
    """Run `work` on the target's fabric.

    Raises:
        CliError: there is no fabric, or the version, tag or handler does not exist or may not be changed so.
    """

    async def checked(fabric: Fabric) -> T:
        # Reading a bucket that does not exist would wait for it.
        await stream_state(fabric.connection, fabric.subjects.changes_stream)
        return await work(fabric)

    try:
        return with_fabric(target, checked)
    except TopologyError as exc:
        raise CliError(no_fabric(target)) from exc
    except RequestError as exc:
        available = getattr(exc, "available", [])
        told = f"; there are: {', '.join(available)}" if available else ""
        raise CliError(f"{exc}{told}") from exc
    except GatiError as exc:
        raise CliError(str(exc)) from exc


async def find_handler(registry: Registry, name: str) -> Timeline:
    """The timeline of `app:handler`, or of the one handler of that name.

    Raises:
        CliError: there is none, or there are several; says which there are.
    """
    app, colon, handler = name.partition(":")
    known = await registry.handlers()
    found = [each for each in known if (each == (app, handler) if colon else each[1] == name)]
    if len(found) == 1:
        return await registry.timeline(*found[0])
    if found:
        raise CliError(f"several apps have a handler {name}: name one of {_listed(found)}", exit_code=2)
    if not known:
        raise CliError("no handler has a version yet: none was started or published in this fabric")
    near = [each for each in known if not colon or each[0] == app] or known
    raise CliError(f"there is no handler {name}; there are {_listed(near)}")


def _listed(names: list[tuple[str, str]]) -> str:
    shown = ", ".join(f"{app}:{handler}" for app, handler in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def find_version(timeline: Timeline, name: str) -> VersionRecord:
    """The version that a tag, a TSV, a semantic version, a time or `newest` means, deactivated or not.

    Raises:
        CliError: no version is active, for `newest`.
        VersionNotFound, TagNotFound, InvalidVersion, InvalidTimestamp: it means none.
    """
    if name == "newest" and not any(tag.label == name for tag in timeline.tags):
        if timeline.newest is None:
            raise CliError(f"{timeline.app}:{timeline.handler} has no active version")
        return timeline.newest
    return Versions[str](timeline, {}).resolve(name)[0]


# -- reading ----------------------------------------------------------------------------------------


def list_versions(target: Target, handler: str, *, everything: bool, as_json: bool) -> None:
    """Print versions, the newest of each handler first."""

    async def read(fabric: Fabric) -> list[VersionRow]:
        registry, usage = fabric_registry(fabric), fabric_usage(fabric)
        if handler:
            timelines = [await find_handler(registry, handler)]
        else:
            timelines = [await registry.timeline(*each) for each in await registry.handlers()]
        rows: list[VersionRow] = []
        for each in timelines:
            rows += _rows(each, await usage.read(each.app, each.handler))
        return rows if everything else [row for row in rows if row.version.is_active]

    rows = run_on(target, read)
    if as_json:
        print_json([_told(row) for row in rows])
        return
    if not rows:
        print("no versions yet: no handler package has announced itself")
        return
    table = new_table("HANDLER", "VERSION", "STATUS", "PACKAGE", "TAGS", "REQUESTS", "REGISTERED", "NOTES")
    for row in rows:
        version = row.version
        table.add_row(
            f"{row.app}:{row.handler}",
            version.tsv,
            version.status,
            version.package,
            ", ".join(row.tags),
            str(row.requests),
            moment(version.registered_ms // 1000),
            ", ".join(_notes(row)),
        )
    print_table(table)


def _rows(timeline: Timeline, usage: HandlerUsage) -> list[VersionRow]:
    newest = timeline.newest
    return [
        VersionRow(
            app=timeline.app,
            handler=timeline.handler,
            version=version,
            tags=timeline.tags_of(version.tsv),
            requests=usage.of(version.tsv).total,
            last_request_s=usage.of(version.tsv).last_s,
            is_newest=version is newest,
        )
        for version in reversed(timeline.versions)
    ]


def _told(row: VersionRow) -> dict[str, object]:
    """For programs: every field, also those that are stored only when they differ from the usual."""
    return {**msgspec.structs.asdict(row), "version": msgspec.structs.asdict(row.version)}


def _notes(row: VersionRow) -> list[str]:
    version = row.version
    notes = ["newest"] if row.is_newest else []
    if version.breaking:
        notes.append("breaks clients of the one before")
    if version.transforms:
        notes.append("transforms")
    if version.override == "keep":
        notes.append("kept")
    if version.deprecated_s:
        notes.append("deprecated")
    return notes


def show(target: Target, handler: str, version: str, *, as_json: bool) -> None:
    """Print all about one version; of a package that never ran, why it does not."""

    async def read(fabric: Fabric) -> PackageRecord | tuple[VersionRow, list[Change], PackageRecord | None]:
        registry, records = fabric_registry(fabric), fabric_records(fabric)
        timeline = await find_handler(registry, handler)
        try:
            found = find_version(timeline, version)
        except (TagNotFound, VersionNotFound):
            unborn = await records.get(timeline.app, version.removeprefix("v"))
            if unborn is None or timeline.handler not in unborn.handlers:
                raise
            return unborn
        package = await records.get(timeline.app, found.package) if found.package else None
        usage = await fabric_usage(fabric).read(timeline.app, timeline.handler)
        row = next(each for each in _rows(timeline, usage) if each.version.tsv == found.tsv)
        changes = await registry.changes(timeline.app, timeline.handler, at_most=1000)
        return row, [each for each in changes if each.tsv == found.tsv], package

    told = run_on(target, read)
    if isinstance(told, PackageRecord):
        _show_package(told, as_json=as_json)
        return
    row, changes, package = told
    if as_json:
        print_json({**_told(row), "changes": changes, "published": package})
        return
    found = row.version
    print(f"{row.app}:{row.handler} {found.tsv}")
    for name, value in (
        ("route", f"{','.join(found.methods)} {found.path}"),
        ("status", found.status + (" (the newest)" if row.is_newest else "")),
        ("by hand", found.override),
        ("package", found.package),
        ("published", f"{moment(package.published_ms // 1000)} by {package.actor}" if package is not None else ""),
        ("trouble", package.trouble if package is not None else ""),
        ("tags", ", ".join(row.tags)),
        ("fingerprint", found.fingerprint),
        ("registered", moment(found.registered_ms // 1000)),
        ("requests", f"{row.requests}, the last at {moment(row.last_request_s)}" if row.requests else "none"),
        ("came after", found.parent),
        ("its clients", "breaks those of the one before" if found.breaking else ""),
        ("transforms from", ", ".join(found.transforms)),
        ("deprecated", moment(found.deprecated_s) if found.deprecated_s else ""),
        ("sunset", moment(found.sunset_s) if found.sunset_s else ""),
    ):
        if value:
            print(f"  {name:<16}{value}")
    for change in changes:
        print(f"  {_line(change)}")


def _show_package(record: PackageRecord, *, as_json: bool) -> None:
    """A package whose handlers have not become versions."""
    if as_json:
        print_json({"package": record})
        return
    print(f"{record.app} {record.version} is no version: the package has not started")
    for name, value in (
        ("state", record.state),
        ("published", f"{moment(record.published_ms // 1000)} by {record.actor}"),
        ("told by", record.told_by),
        ("where", record.where),
        ("error", record.error.replace("\n", "\n" + " " * 18)),
    ):
        if value:
            print(f"  {name:<16}{value}")


def show_log(target: Target, handler: str, wanted: ChangeFilter, *, limit: int, as_json: bool) -> None:
    """Print the change log."""

    async def read(fabric: Fabric) -> list[Change]:
        registry = fabric_registry(fabric)
        if not handler:
            return await registry.changes(at_most=limit, wanted=wanted)
        timeline = await find_handler(registry, handler)
        return await registry.changes(timeline.app, timeline.handler, at_most=limit, wanted=wanted)

    changes = run_on(target, read)
    if as_json:
        print_json(changes)
        return
    for change in changes:
        print(_line(change, with_version=True))
    if not changes:
        print("nothing was changed yet" if wanted == ChangeFilter() else "nothing of that kind was changed")


def time_of(option: str, text: str) -> float:
    """Unix time of what somebody has given as a time.

    Raises:
        CliError: it is none.
    """
    try:
        asked = read_preference(text)
    except (InvalidVersion, InvalidTimestamp) as exc:
        raise CliError(f"{option}: {exc}", exit_code=2) from exc
    if asked.kind != "timestamp":
        raise CliError(f"{option}: {text!r} is no time, for example 2026-12-31T00:00:00Z", exit_code=2)
    return asked.seconds


def filter_of(*, since: str, until: str, types: Sequence[str], actor: str) -> ChangeFilter:
    """What of the change log is asked for.

    Raises:
        CliError: a time is none, or a type is unknown.
    """
    known = get_args(ChangeType)
    unknown = next((each for each in types if each not in known), None)
    if unknown is not None:
        raise CliError(f"--type: {unknown!r} is none of {', '.join(known)}", exit_code=2)
    return ChangeFilter(
        since_s=time_of("--since", since) if since else 0.0,
        until_s=time_of("--until", until) if until else float("inf"),
        types=frozenset(cast("Sequence[ChangeType]", types)),
        actor=actor,
    )


def _line(change: Change, *, with_version: bool = False) -> str:
    """One change for people."""
    facts = " ".join(f"{name}={_fact(value)}" for name, value in change.payload.items())
    parts = [moment(change.at_ms // 1000), change.type, change.tsv if with_version else "", facts, f"by {change.actor}"]
    return " ".join(part for part in parts if part) + (f": {change.reason}" if change.reason else "")


def _fact(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def diff(target: Target, handler: str, old: str, new: str, *, as_json: bool) -> int:
    """Print what changed from one version to another; returns the exit code."""

    async def read(fabric: Fabric) -> tuple[str, str, Diff]:
        timeline = await find_handler(fabric_registry(fabric), handler)
        before, after = find_version(timeline, old), find_version(timeline, new)
        store = publishing_store(fabric)
        manifest = await store.load_manifest(timeline.app, timeline.handler, after.fingerprint)
        found = None
        if manifest is not None:
            found = await compare(store, timeline.app, before.fingerprint, manifest)
        if found is None:
            missing = after if manifest is None else before
            raise CliError(f"the manifest of {missing.tsv} is not stored any more: it cannot be compared")
        return before.tsv, after.tsv, found[0]

    before, after, found = run_on(target, read)
    if as_json:
        print_json({"old": before, "new": after, "diff": found})
    else:
        print(f"{before} → {after}")
        print(
            render(found, colour=sys.stdout.isatty()) if found.breaking or found.non_breaking else "no change of types"
        )
    return 1 if found.breaking else 0


# -- changing ---------------------------------------------------------------------------------------


def tag(target: Target, handler: str, version: str, label: str, *, actor: str) -> None:
    """Give a version a label."""

    def edit(registry: Registry, before: Timeline) -> Timeline:
        found = find_version(before, version)
        return with_tag(before, found.tsv, label, now_ms=registry.now_ms(), actor=actor)

    after = _change(target, handler, edit)
    print(f"{label} is {next(each.tsv for each in after.tags if each.label == label)}")


def untag(target: Target, handler: str, label: str, *, actor: str) -> None:
    """Take a label off."""
    _change(target, handler, lambda registry, before: without_tag(before, label, now_ms=registry.now_ms(), actor=actor))
    print(f"{label} is no tag any more")


def deactivate(target: Target, handler: str, version: str, *, actor: str, reason: str, force: bool) -> None:
    """End a version by hand."""
    found = ""

    def edit(registry: Registry, before: Timeline) -> Timeline:
        nonlocal found
        found = find_version(before, version).tsv
        now_ms = registry.now_ms()
        return with_status(
            before, found, "deactivated", now_ms=now_ms, actor=actor, reason=reason, force=force, by_hand=True
        )

    _change(target, handler, edit)
    print(f"{found} is deactivated; `gati versions reactivate` takes it back")


def reactivate(target: Target, handler: str, version: str, *, actor: str, reason: str) -> None:
    """Take a version back."""
    found = ""

    def edit(registry: Registry, before: Timeline) -> Timeline:
        nonlocal found
        known = find_version(before, version)
        found = known.tsv
        if known.is_active:
            raise CliError(f"{found} is active")
        return with_status(before, found, "warm", now_ms=registry.now_ms(), actor=actor, reason=reason, by_hand=True)

    _change(target, handler, edit)
    print(f"{found} is active again")


def deprecate(target: Target, handler: str, version: str, *, sunset: str, undo: bool, reason: str, actor: str) -> None:
    """Tell clients to move on."""
    found = ""
    ends_s = 0
    if sunset:
        ends_s = int(time_of("--sunset", sunset))

    def edit(registry: Registry, before: Timeline) -> Timeline:
        nonlocal found
        found = find_version(before, version).tsv
        now_ms = registry.now_ms()
        return with_deprecation(
            before,
            found,
            since_s=0 if undo else now_ms // 1000,
            sunset_s=0 if undo else ends_s,
            now_ms=now_ms,
            actor=actor,
            reason=reason,
        )

    _change(target, handler, edit)
    ending = f", and may vanish at {moment(ends_s)}" if ends_s and not undo else ""
    print(f"{found} is not deprecated any more" if undo else f"{found} is deprecated{ending}")


def stub(target: Target, handler: str, version: str, *, package: str, directory: Path, output: Path | None) -> None:
    """Write the beginning of a transformer from a version of the fabric to a package on disk."""
    place = directory / output if output is not None else None
    if place is not None and place.exists():
        raise CliError(f"{place} exists; it may be finished already, so it is not written over", exit_code=2)
    reports = {report.app: report for report in read_reports([package], directory)}

    async def read(fabric: Fabric) -> str:
        timeline = await find_handler(fabric_registry(fabric), handler)
        old = find_version(timeline, version)
        report = reports.get(timeline.app)
        manifest = next((each for each in report.handlers if each.id == timeline.handler), None) if report else None
        if report is None or manifest is None:
            raise CliError(f"{package} has no handler {timeline.app}:{timeline.handler}")
        store = publishing_store(fabric)
        before = await store.load_manifest(timeline.app, timeline.handler, old.fingerprint)
        if before is None:
            raise CliError(f"the manifest of {old.tsv} is not stored any more: it cannot be compared")
        old_types, new_types = await types_of(store, before), types_in(report, manifest)
        return transformer_stub(
            app=timeline.app,
            handler=timeline.handler,
            module=report.target.partition(":")[0] or timeline.app,
            from_version=old.tsv,
            forward=compare_manifests(before, old_types, manifest, new_types),
            backward=compare_manifests(manifest, new_types, before, old_types),
        )

    text = run_on(target, read)
    if place is None:
        sys.stdout.write(text)
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise CliError(f"{place}: {exc.strerror}") from exc
    print(f"{place}: {text.count('# TODO')} changes to write, and to import where your package is imported")


def keep(target: Target, handler: str, version: str, *, actor: str, wanted: bool) -> None:
    """Keep a version, or leave it to the sweep again."""
    found = ""

    def edit(registry: Registry, before: Timeline) -> Timeline:
        nonlocal found
        found = find_version(before, version).tsv
        return with_keep(before, found, keep=wanted, now_ms=registry.now_ms(), actor=actor)

    _change(target, handler, edit)
    print(f"{found} is kept" if wanted else f"{found} is left to the sweep")


def _change(target: Target, handler: str, edit: Callable[[Registry, Timeline], Timeline]) -> Timeline:
    async def change(fabric: Fabric) -> Timeline:
        registry = fabric_registry(fabric)
        known = await find_handler(registry, handler)
        return await registry.change(known.app, known.handler, lambda before: edit(registry, before))

    return run_on(target, change)


def sweep(target: Target, environ: Mapping[str, str], *, dry_run: bool, as_json: bool) -> None:
    """One sweep, now."""
    policy = from_env(SweepPolicy, "GATI_SWEEP_", environ)

    async def run(fabric: Fabric) -> list[Verdict]:
        stored = await read_bucket(fabric.connection, fabric.subjects.config_bucket)

        def rollout_of(app: str, name: str) -> Rollout | None:
            key = rollout_key(app, name)
            return read_rollout(key, stored[key]) if key in stored else None

        sweeper = Sweeper(fabric_registry(fabric), fabric_usage(fabric), policy, rollout_of=rollout_of)
        return await sweeper.run(dry_run=dry_run)

    verdicts = run_on(target, run)
    if as_json:
        print_json(verdicts)
        return
    table = new_table("HANDLER", "VERSION", "BEFORE", "NOW", "REASON", "SPARED BECAUSE")
    for each in verdicts:
        table.add_row(f"{each.app}:{each.handler}", each.tsv, each.before, each.status, each.reason, each.spared)
    print_table(table)
    ended = sum(each.status == "deactivated" for each in verdicts)
    print(f"{ended} of {len(verdicts)} versions {'would end' if dry_run else 'ended'}")


# -- printing ---------------------------------------------------------------------------------------


def moment(seconds: int) -> str:
    """A time for people.

    >>> moment(1735689600)
    '2025-01-01T00:00:00Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_table(*columns: str) -> Table:
    """A table without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("VERSION", "REGISTERED"))
    return table


def print_table(table: Table) -> None:
    """Print it, wide where nobody looks at it on a terminal."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def print_json(document: object) -> None:
    """Print a document as JSON for programs and people."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
