"""All versions of one handler: a document that is changed only as a whole.

Timelines are values. `with_…` functions return the changed timeline and never touch the old one, so that a
registry can try them again on what somebody else has written meanwhile (compare-and-set).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gati_core.errors import VersionConflict, VersionNotFound
from gati_core.timescape._preference import check_label
from gati_core.timescape._tsv import Tsv, parse_tsv

PROTECTED_TAGS = frozenset({"stable", "production", "latest"})
"""A version with one of these is never deactivated by itself, and by hand only with force."""
MAX_VERSIONS = 1000
_MAX_TAGS = 1000
_KEPT_CHANGES = 16

Status = Literal["hot", "warm", "cold", "deactivated"]
ChangeType = Literal[
    "registered",
    "transformers",
    "tagged",
    "untagged",
    "deactivated",
    "reactivated",
    "kept",
    "reclassified",
    "deprecated",
    "dropped",
    "restored",
]
_Token = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a handler's change log."""

    n: int
    """Counts the changes of its timeline from 1."""
    at_ms: int
    """Unix time."""
    type: ChangeType
    actor: str
    """`user:ann`, `worker:<id>`, `sweep`, …"""
    tsv: str
    """Empty where it changed the whole timeline."""
    reason: str = ""
    payload: dict[str, Any] = {}
    """What it needs beside the version: a tag's label, the status before, …"""


class ChangeFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines of the change log somebody wants to see; all of them unless it says otherwise."""

    since_s: float = 0.0
    """Unix time; changes of that time count."""
    until_s: float = float("inf")
    """Unix time; changes of that time do not."""
    types: frozenset[ChangeType] = frozenset()
    actor: str = ""
    """Who did it, or the beginning of that: `user:` is all people."""

    def takes(self, change: Change) -> bool:
        """Whether it is one of them."""
        return (
            self.since_s * 1000 <= change.at_ms < self.until_s * 1000
            and (not self.types or change.type in self.types)
            and change.actor.startswith(self.actor)
        )


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a handler."""

    tsv: str
    fingerprint: str
    """Of behaviour and types: what tells one version from another."""
    methods: list[str]
    path: str
    hash: str = ""
    """Of its manifest."""
    package: str = ""
    """Version of the package that brought it first."""
    status: Status = "warm"
    registered_ms: int = 0
    """Unix time by the publisher's clock; the TSV's time never goes back, this may."""
    parent: str = ""
    """The version that was newest before it."""
    breaking: bool = False
    """Whether it breaks clients of its parent."""
    breaking_back: bool = False
    """Whether its parent breaks clients of it."""
    transforms: list[str] = []
    """Versions from which its package has a transformer to their successors."""
    override: Literal["", "keep", "deactivate"] = ""
    """What somebody decided by hand; it beats the sweep."""
    deprecated_s: int = 0
    """Unix time since when clients should move on; 0 when they need not."""
    sunset_s: int = 0
    """Unix time at which it may vanish."""
    db_schema: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it may be run, and be the newest."""
        return self.status != "deactivated"

    @property
    def order(self) -> Tsv:
        """What sorts it among the versions of its handler."""
        return parse_tsv(self.tsv)


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """A name for a version of one handler."""

    label: str
    tsv: str
    created_ms: int = 0
    created_by: str = "system"


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Versions in time order, tags, and the last changes."""

    app: _Token
    handler: _Token
    versions: list[VersionRecord] = []
    tags: list[Tag] = []
    """By label."""
    registered: int = 0
    """How many versions there have ever been; the next one's sequence is one more."""
    changes: list[Change] = []
    """The last ones, for the change log to be completed from."""

    def get(self, tsv: str) -> VersionRecord | None:
        """The version of this name."""
        return next((each for each in self.versions if each.tsv == tsv), None)

    def require(self, tsv: str) -> VersionRecord:
        """The version of this name.

        Raises:
            VersionNotFound: there is none; lists those that there are.
        """
        found = self.get(tsv)
        if found is None:
            raise VersionNotFound(
                f"{self.app}:{self.handler} has no version {tsv}", available=[each.tsv for each in self.versions]
            )
        return found

    def with_fingerprint(self, fingerprint: str) -> VersionRecord | None:
        """The newest version of this content."""
        return next((each for each in reversed(self.versions) if each.fingerprint == fingerprint), None)

    @property
    def newest(self) -> VersionRecord | None:
        """The newest version that is active; clients who ask for none get it."""
        return next((each for each in reversed(self.versions) if each.is_active), None)

    def tags_of(self, tsv: str) -> list[str]:
        """The labels of a version."""
        return [tag.label for tag in self.tags if tag.tsv == tsv]

    def is_protected(self, tsv: str) -> bool:
        """Whether one of its tags protects a version."""
        return any(tag.label in PROTECTED_TAGS for tag in self.tags if tag.tsv == tsv)


def with_version(
    timeline: Timeline, version: VersionRecord, *, now_ms: int, actor: str, reason: str = "", anew: bool = False
) -> Timeline:
    """A new version at the end; its TSV is made here. Content that is registered already changes nothing.

    The TSV's time is never before that of the version before it: a publisher whose clock is behind does not
    push its version into the past.

    Args:
        anew: content that is registered becomes a version all the same, unless it is the newest one.
    Raises:
        VersionConflict: there are as many versions as may be, and none that could be dropped.
    """
    known = timeline.newest if anew else timeline.with_fingerprint(version.fingerprint)
    if known is not None and known.fingerprint == version.fingerprint:
        return timeline
    kept, dropped = _with_room(timeline)
    last = kept[-1] if kept else None
    sequence = timeline.registered + 1
    seconds = max(now_ms // 1000, last.order.seconds if last is not None else 0)
    newest = timeline.newest
    added = replace(
        version,
        tsv=str(Tsv(seconds, sequence, timeline.handler)),
        registered_ms=now_ms,
        parent=newest.tsv if newest is not None else "",
    )
    changed = replace(timeline, versions=[*kept, added], registered=sequence)
    if dropped is not None:
        gone = {tag.label for tag in timeline.tags if tag.tsv == dropped.tsv}
        changed = replace(changed, tags=[tag for tag in timeline.tags if tag.label not in gone])
        changed = _noted(changed, "dropped", dropped.tsv, now_ms, actor, f"more than {MAX_VERSIONS} versions")
    return _noted(changed, "registered", added.tsv, now_ms, actor, reason, breaking=added.breaking)


def _with_room(timeline: Timeline) -> tuple[list[VersionRecord], VersionRecord | None]:
    if len(timeline.versions) < MAX_VERSIONS:
        return timeline.versions, None
    tagged = {tag.tsv for tag in timeline.tags}
    for each in timeline.versions:
        if not each.is_active and each.tsv not in tagged and each.override != "keep":
            return [other for other in timeline.versions if other is not each], each
    raise VersionConflict(
        f"{timeline.app}:{timeline.handler} has {MAX_VERSIONS} versions, as many as may be: deactivate some"
        " (gati versions deactivate), and the oldest of those makes room"
    )


def with_transforms(timeline: Timeline, tsv: str, transforms: list[str], *, now_ms: int, actor: str) -> Timeline:
    """Other transformers for a version whose package was never published.

    Raises:
        VersionNotFound: there is no such version.
    """
    version = timeline.require(tsv)
    if version.transforms == transforms:
        return timeline
    changed = _with(timeline, replace(version, transforms=transforms))
    return _noted(changed, "transformers", tsv, now_ms, actor, transforms=transforms)


def with_tag(timeline: Timeline, tsv: str, label: str, *, now_ms: int, actor: str) -> Timeline:
    """A label for a version. Given again to the same version, it changes nothing.

    Raises:
        VersionNotFound: there is no such version.
        InvalidVersion: it cannot be a label.
        VersionConflict: another version has it; it moves only after `without_tag`.
    """
    timeline.require(tsv)
    check_label(label)
    known = next((tag for tag in timeline.tags if tag.label == label), None)
    if known is not None:
        if known.tsv == tsv:
            return timeline
        raise VersionConflict(
            f"{timeline.app}:{timeline.handler} has the tag {label!r} on {known.tsv}; take it off first"
            f" (gati versions untag {label})"
        )
    if len(timeline.tags) >= _MAX_TAGS:
        raise VersionConflict(f"{timeline.app}:{timeline.handler} has {_MAX_TAGS} tags, as many as may be")
    tags = [*timeline.tags, Tag(label=label, tsv=tsv, created_ms=now_ms, created_by=actor)]
    changed = replace(timeline, tags=sorted(tags, key=lambda tag: tag.label))
    return _noted(changed, "tagged", tsv, now_ms, actor, label=label)


def without_tag(timeline: Timeline, label: str, *, now_ms: int, actor: str) -> Timeline:
    """Take a label off its version.

    Raises:
        VersionNotFound: no version has it; lists the labels that there are.
    """
    known = next((tag for tag in timeline.tags if tag.label == label), None)
    if known is None:
        raise VersionNotFound(
            f"{timeline.app}:{timeline.handler} has no tag {label!r}", available=[tag.label for tag in timeline.tags]
        )
    changed = replace(timeline, tags=[tag for tag in timeline.tags if tag is not known])
    return _noted(changed, "untagged", known.tsv, now_ms, actor, label=label)


def with_status(
    timeline: Timeline,
    tsv: str,
    status: Status,
    *,
    now_ms: int,
    actor: str,
    reason: str = "",
    force: bool = False,
    by_hand: bool = False,
) -> Timeline:
    """Another status for a version.

    Args:
        force: also one that a tag protects, or the newest active one.
        by_hand: it stays so, whatever a sweep finds.
    Raises:
        VersionNotFound: there is no such version.
        VersionConflict: it is protected.
    """
    version = timeline.require(tsv)
    override: Literal["", "keep", "deactivate"] = version.override
    if status == "deactivated":
        newest = timeline.newest
        if not force and timeline.is_protected(tsv):
            labels = ", ".join(sorted(PROTECTED_TAGS & set(timeline.tags_of(tsv))))
            raise VersionConflict(f"{tsv} is protected by its tag {labels}: untag it, or use --force")
        if not force and newest is not None and newest.tsv == tsv:
            raise VersionConflict(f"{tsv} is the newest version of {timeline.app}:{timeline.handler}: use --force")
        override = "deactivate" if by_hand else override
    elif by_hand or version.override == "deactivate":
        override = ""
    if version.status == status and version.override == override:
        return timeline
    kind: ChangeType = "reclassified"
    if status == "deactivated":
        kind = "deactivated"
    elif not version.is_active:
        kind = "reactivated"
    changed = _with(timeline, replace(version, status=status, override=override))
    return _noted(changed, kind, tsv, now_ms, actor, reason, before=version.status, status=status)


def with_keep(timeline: Timeline, tsv: str, *, keep: bool = True, now_ms: int, actor: str) -> Timeline:
    """Keep a version whatever a sweep finds, or leave it to the sweep again.

    Raises:
        VersionNotFound: there is no such version.
    """
    version = timeline.require(tsv)
    override: Literal["", "keep"] = "keep" if keep else ""
    if version.override == override:
        return timeline
    changed = _with(timeline, replace(version, override=override))
    return _noted(changed, "kept", tsv, now_ms, actor, keep=keep)


def with_deprecation(
    timeline: Timeline, tsv: str, *, since_s: int, sunset_s: int = 0, now_ms: int, actor: str, reason: str = ""
) -> Timeline:
    """Tell a version's clients to move on; `since_s` 0 takes it back.

    Raises:
        VersionNotFound: there is no such version.
        VersionConflict: it would vanish before it is deprecated.
    """
    version = timeline.require(tsv)
    if sunset_s and sunset_s < since_s:
        raise VersionConflict("the sunset lies before the deprecation")
    if (version.deprecated_s, version.sunset_s) == (since_s, sunset_s):
        return timeline
    changed = _with(timeline, replace(version, deprecated_s=since_s, sunset_s=sunset_s))
    return _noted(changed, "deprecated", tsv, now_ms, actor, reason, since_s=since_s, sunset_s=sunset_s)


def with_restored(
    timeline: Timeline, wanted: Timeline, *, last_change: int, now_ms: int, actor: str, reason: str = ""
) -> Timeline:
    """The versions and tags of `wanted`, which was there once, in the place of those of today.

    The numbers of versions and of changes go on from wherever they have come to: none is given twice, so that no
    new version gets the name of a lost one, and the change log takes what happens next.

    Args:
        last_change: the number of the last line of the change log; a bucket that was emptied does not know it.
    """
    registered = max(timeline.registered, wanted.registered)
    before = (timeline.versions, timeline.tags, timeline.registered)
    if before == (wanted.versions, wanted.tags, registered):
        return timeline
    lost = lost_versions(timeline, wanted)
    restored = replace(wanted, registered=registered, changes=timeline.changes or wanted.changes)
    numbers = [last_change, *(each.n for each in timeline.changes), *(each.n for each in wanted.changes)]
    change = Change(
        n=max(numbers) + 1,
        at_ms=now_ms,
        type="restored",
        actor=actor,
        tsv="",
        reason=reason,
        payload={"versions": len(wanted.versions), "lost": len(lost)},
    )
    return replace(restored, changes=[*restored.changes, change][-_KEPT_CHANGES:])


def lost_versions(timeline: Timeline, wanted: Timeline) -> list[str]:
    """The versions that are there and would not be any more with `wanted` in their place, in their order."""
    kept = {each.tsv for each in wanted.versions}
    return [each.tsv for each in timeline.versions if each.tsv not in kept]


def _with(timeline: Timeline, version: VersionRecord) -> Timeline:
    return replace(timeline, versions=[version if each.tsv == version.tsv else each for each in timeline.versions])


def _noted(
    timeline: Timeline, kind: ChangeType, tsv: str, now_ms: int, actor: str, reason: str = "", **payload: Any
) -> Timeline:
    n = timeline.changes[-1].n + 1 if timeline.changes else 1
    change = Change(n=n, at_ms=now_ms, type=kind, actor=actor, tsv=tsv, reason=reason, payload=payload)
    return replace(timeline, changes=[*timeline.changes, change][-_KEPT_CHANGES:])
