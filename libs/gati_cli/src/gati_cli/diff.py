"""`gati diff`: what changed between two versions of packages, and whom it breaks."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from gati_cli.packages import read_reports
from gati_core.app.inspection import PackageReport
from gati_core.gtype.diff import Diff, HandlerTypes, diff_handlers, render
from gati_core.manifests import HandlerManifest


class HandlerDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One handler in two versions."""

    app: str
    handler: str
    change: str
    """`added`, `removed`, `changed`, `types` (those alone tell the versions apart) or `same`."""
    is_breaking: bool
    notes: list[str] = []
    """Changes outside the types: route, methods, roles, delivery."""
    types: Diff


def compare(old: list[PackageReport], new: list[PackageReport]) -> list[HandlerDiff]:
    """All handlers of two sets of packages, by app and id."""
    before, after = _handlers(old), _handlers(new)
    found = []
    for app, handler in sorted({*before, *after}):
        was, now = before.get((app, handler)), after.get((app, handler))
        if now is None:
            found.append(HandlerDiff(app=app, handler=handler, change="removed", is_breaking=True, types=Diff()))
        elif was is None:
            found.append(HandlerDiff(app=app, handler=handler, change="added", is_breaking=False, types=Diff()))
        else:
            found.append(_compared(app, *was, *now))
    return found


def _handlers(reports: list[PackageReport]) -> dict[tuple[str, str], tuple[HandlerManifest, HandlerTypes]]:
    return {
        (report.app, handler.id): (handler, types_of(report, handler))
        for report in reports
        for handler in report.handlers
    }


def types_of(report: PackageReport, handler: HandlerManifest) -> HandlerTypes:
    """The types that a handler's manifest refers to."""
    refs, schemas = handler.gtypes, report.schemas
    return HandlerTypes(
        params=schemas.get(refs.params),
        query=schemas.get(refs.query),
        headers=schemas.get(refs.headers),
        request=schemas.get(refs.request),
        response=schemas.get(refs.response),
    )


def _compared(
    app: str, old: HandlerManifest, old_types: HandlerTypes, new: HandlerManifest, new_types: HandlerTypes
) -> HandlerDiff:
    types = diff_handlers(old_types, new_types)
    notes, is_breaking = [], types.requires_transformer
    if old.path != new.path:
        notes.append(f"path: {old.path} → {new.path}")
        is_breaking = True
    gone, come = sorted({*old.methods} - {*new.methods}), sorted({*new.methods} - {*old.methods})
    if gone:
        notes.append(f"methods removed: {', '.join(gone)}")
        is_breaking = True
    if come:
        notes.append(f"methods added: {', '.join(come)}")
    if old.policies.roles != new.policies.roles:
        before, after = (", ".join(each.policies.roles) or "everybody" for each in (old, new))
        notes.append(f"roles: {before} → {after}")
        # Whoever was let in still is, when nobody is asked any more or more roles suffice.
        is_breaking = is_breaking or not (
            not new.policies.roles or ({*old.policies.roles} <= {*new.policies.roles} and bool(old.policies.roles))
        )
    if old.mode != new.mode:
        notes.append(f"delivery: {old.mode} → {new.mode}")
    if old.fingerprint == new.fingerprint:
        change = "same"
    else:
        change = "types" if types.breaking or types.non_breaking else "changed"
    return HandlerDiff(app=app, handler=new.id, change=change, is_breaking=is_breaking, notes=notes, types=types)


def diff(old: str, new: str, directory: Path, *, as_json: bool, colour: bool | None) -> int:
    """Print what changed; returns the exit code: 1 when something breaks clients.

    Args:
        colour: None decides by whether the output is a terminal.
    """
    found = compare(read_reports([old], directory), read_reports([new], directory))
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        _print(found, colour=sys.stdout.isatty() if colour is None else colour)
    return 1 if any(each.is_breaking for each in found) else 0


def _print(found: list[HandlerDiff], *, colour: bool) -> None:
    changed = [each for each in found if each.change != "same"]
    for each in changed:
        mark = "  breaks clients" if each.is_breaking else ""
        what = {"changed": "code, route or policies changed", "types": "types changed"}.get(each.change, each.change)
        print(f"{each.app}:{each.handler}  {what}{mark}")
        for note in each.notes:
            print(f"  {note}")
        if each.types.breaking or each.types.non_breaking:
            print("\n".join(f"  {line}" for line in render(each.types, colour=colour).splitlines()))
    same = len(found) - len(changed)
    breaking = sum(each.is_breaking for each in found)
    print(f"{len(changed)} of {len(found)} handlers changed, {breaking} of them break clients; {same} are the same")
