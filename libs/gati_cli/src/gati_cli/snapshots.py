"""`gati versions snapshot`: snapshots of the version registry, taken, looked at and restored."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gati_cli._errors import CliError
from gati_cli.target import Target
from gati_cli.versions import moment, new_table, print_json, print_table, run_on
from gati_core.errors import TopologyError
from gati_core.fabric import Fabric
from gati_core.settings import from_env
from gati_core.timescape import (
    RegistrySnapshots,
    Restoration,
    Snapshot,
    SnapshotInfo,
    SnapshotPolicy,
    fabric_snapshots,
    snapshot_file_name,
    snapshot_stats,
)

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")

_SHOWN = 20


def create(target: Target, *, heavy: bool, actor: str, as_json: bool) -> None:
    """Take a snapshot now."""
    made = _run(target, lambda snapshots: snapshots.create("heavy" if heavy else "light", by=actor))
    if as_json:
        print_json(made)
        return
    print(f"{made.id}: {_counted(made)}, {made.size_bytes} bytes")


def list_snapshots(target: Target, *, as_json: bool) -> None:
    """Print all snapshots."""
    found = _run(target, lambda snapshots: snapshots.list())
    stats = snapshot_stats(found)
    if as_json:
        print_json({"snapshots": found, "stats": stats})
        return
    if not found:
        print("no snapshots yet: routers take one for every hundred new versions, `gati versions snapshot create` now")
        return
    print_table(_table(found))
    print(f"{stats.light} light and {stats.heavy} heavy, {stats.bytes} bytes, since {_moment(stats.oldest_ms)}")


def show(target: Target, id: str, *, as_json: bool) -> None:
    """Print what is in one snapshot."""

    async def read(snapshots: RegistrySnapshots) -> Snapshot:
        return await snapshots.load(await _found(snapshots, id))

    found = _run(target, read)
    timelines = found.timelines()
    if as_json:
        head = {name: getattr(found, name) for name in Snapshot.__struct_fields__ if name != "state"}
        print_json({**head, "timelines": timelines, "keys": {area: sorted(each) for area, each in found.state.items()}})
        return
    print(found.id)
    for name, value in (
        ("taken", f"{_moment(found.created_ms)} by {found.created_by}"),
        ("documents", ", ".join(f"{len(each)} of {area}" for area, each in found.state.items())),
        (
            "wheels",
            f"{len(found.packages)}, which are in the fabric's packages and not inside" if found.packages else "",
        ),
        ("left out", "; ".join(found.left_out)),
        ("sha256", found.sha256),
    ):
        if value:
            print(f"  {name:<12}{value}")
    table = new_table("HANDLER", "VERSIONS", "ACTIVE", "COLD", "NEWEST", "TAGS")
    for each in timelines:
        table.add_row(
            f"{each.app}:{each.handler}",
            str(len(each.versions)),
            str(sum(version.is_active for version in each.versions)),
            str(sum(version.status == "cold" for version in each.versions)),
            each.newest.tsv if each.newest is not None else "",
            ", ".join(tag.label for tag in each.tags[:_SHOWN]) + (" …" if len(each.tags) > _SHOWN else ""),
        )
    if timelines:
        print_table(table)


def restore(target: Target, id: str, *, dry_run: bool, yes: bool, force: bool, actor: str, as_json: bool) -> None:
    """Say what restoring a snapshot changes, ask, and do it.

    Raises:
        CliError: nobody can be asked, or versions would be lost; nothing is changed.
    """

    async def look(snapshots: RegistrySnapshots) -> Restoration:
        return await snapshots.restore(await _found(snapshots, id), by=actor, dry_run=True)

    plan = _run(target, look)
    if dry_run:
        _tell(plan, as_json=as_json)
        return
    if not as_json:
        _tell(plan, as_json=False)
    if not plan.changes:
        if as_json:
            print_json(plan)
        return
    if plan.lost and not force:
        raise CliError(f"{_lost(plan)} would be lost; nothing was changed (use --force to give them up)")
    if not yes:
        _ask(plan)
    done = _run(target, lambda snapshots: snapshots.restore(plan.id, by=actor, force=force))
    if as_json:
        print_json(done)
        return
    print(f"restored {done.id}: {_documents(len(done.changes))} changed")


def _ask(plan: Restoration) -> None:
    if not sys.stdin.isatty():
        raise CliError(
            f"nothing was changed: to change {_documents(len(plan.changes))} without being asked, add --yes",
            exit_code=2,
        )
    import typer

    if not typer.confirm(f"change {_documents(len(plan.changes))}?", err=True):
        raise CliError("nothing was changed")


def prune(target: Target, environ: Mapping[str, str], *, dry_run: bool, as_json: bool) -> None:
    """Delete snapshots that are too old."""
    policy = from_env(SnapshotPolicy, "GATI_SNAPSHOT_", environ)
    gone = _run(target, lambda snapshots: snapshots.prune(policy.retention_s, dry_run=dry_run))
    if as_json:
        print_json(gone)
        return
    for each in gone:
        print(f"{each.id} {'would be' if dry_run else 'is'} deleted")
    if not gone:
        print(f"no snapshot is older than {policy.retention_s / 86_400:g} days and not the newest of its type")


def delete(target: Target, id: str) -> None:
    """Delete one snapshot."""

    async def run(snapshots: RegistrySnapshots) -> str:
        found = await _found(snapshots, id)
        await snapshots.delete(found)
        return found

    print(f"{_run(target, run)} is deleted")


def export_file(target: Target, id: str, *, directory: Path, output: Path | None) -> None:
    """Write a snapshot to a file."""

    async def run(snapshots: RegistrySnapshots) -> tuple[Path, int]:
        found = await _found(snapshots, id)
        path = directory / (output if output is not None else snapshot_file_name(found))
        return path, await snapshots.export_file(found, path)

    path, size = _run(target, run)
    print(f"{path}: {size} bytes")


def import_file(target: Target, path: Path, *, as_json: bool) -> None:
    """Check a file and store its snapshot."""
    stored = _run(target, lambda snapshots: snapshots.import_file(path))
    if as_json:
        print_json(stored)
        return
    print(f"{stored.id}: {_counted(stored)}; `gati versions snapshot restore` brings them back")


async def _found(snapshots: RegistrySnapshots, id: str) -> str:
    """The id that is meant."""
    if id != "latest":
        return id
    latest = await snapshots.latest()
    if latest is None:
        raise CliError("there is no snapshot yet: `gati versions snapshot create` takes one")
    return latest.id


def _run(target: Target, work: Callable[[RegistrySnapshots], Awaitable[T]]) -> T:
    async def run(fabric: Fabric) -> T:
        try:
            return await work(fabric_snapshots(fabric))
        except TopologyError as exc:  # the fabric is there, and older than its snapshots
            raise CliError(str(exc)) from exc

    return run_on(target, run)


# -- printing ---------------------------------------------------------------------------------------


def _table(found: Sequence[SnapshotInfo]) -> Table:
    table = new_table("SNAPSHOT", "TYPE", "TAKEN", "BY", "HANDLERS", "VERSIONS", "ACTIVE", "DOCUMENTS", "BYTES")
    for each in found:
        counts = each.counts
        numbers = (counts.handlers, counts.versions, counts.active, counts.documents, each.size_bytes)
        table.add_row(each.id, each.type, _moment(each.created_ms), each.created_by, *map(str, numbers))
    return table


def _tell(plan: Restoration, *, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    if plan.steps:
        table = new_table("DOCUMENT", "ACTION", "NOTE")
        for each in plan.steps:
            table.add_row(f"{each.area}: {each.key}", _ACTIONS[each.action], each.note)
        print_table(table)
    kept = len(plan.steps) - len(plan.changes)
    print(
        f"{plan.id}: {len(plan.changes)} to change, {kept} that stay, {plan.same} the same,"
        f" {len(plan.newer)} that are not in it and stay"
    )
    if plan.lost:
        print(f"versions registered since: {_lost(plan)}")
    if plan.missing_packages:
        shown = ", ".join(plan.missing_packages[:_SHOWN])
        print(f"wheels that are not in the fabric, so that nobody can run them: {shown}")
    if not plan.changes:
        print("all that it would bring back is there")


_ACTIONS: dict[str, str] = {"create": "comes back", "replace": "is replaced", "merge": "is merged", "keep": "stays"}


def _lost(plan: Restoration) -> str:
    """The versions in the way, for people."""
    lost = [tsv for each in plan.lost.values() for tsv in each]
    return ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")


def _documents(number: int) -> str:
    return "1 document" if number == 1 else f"{number} documents"


def _counted(info: SnapshotInfo) -> str:
    counts = info.counts
    return f"{counts.versions} versions of {counts.handlers} handlers"


def _moment(ms: int) -> str:
    return moment(ms // 1000)
