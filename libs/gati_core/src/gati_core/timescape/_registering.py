"""Registering what a package offers: each handler whose content is new becomes a version, compared with the one
before it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from gati_core.errors import KeyConflict
from gati_core.gtype import Document
from gati_core.gtype.diff import Change as TypeChange
from gati_core.gtype.diff import Diff, HandlerTypes, diff_handlers, summary_of
from gati_core.manifests import HandlerManifest
from gati_core.timescape._registry import Registry
from gati_core.timescape._timeline import Timeline, VersionRecord, with_tag, with_transforms, with_version

_ATTEMPTS = 50
_PARAMETER = re.compile(r"\{[^}]*\}")


class TypeSource(Protocol):
    """Where the types of earlier versions are found; a manifest store is one."""

    async def load_manifest(self, app: str, handler_id: str, version: str) -> HandlerManifest | None:
        """The manifest of a handler, by its fingerprint."""

    async def load_gtype(self, name: str) -> Document | None:
        """A type, by its fingerprint."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one handler."""

    handler: str
    tsv: str
    is_new: bool
    """Whether this call made the version."""
    parent: str = ""
    """The version that it was compared with; empty for the first."""
    diff: Diff | None = None


async def types_of(source: TypeSource, manifest: HandlerManifest) -> HandlerTypes:
    """The types that a handler declares, as documents."""
    refs = manifest.gtypes

    async def named(name: str) -> Document | None:
        return await source.load_gtype(name) if name else None

    return HandlerTypes(
        params=await named(refs.params),
        query=await named(refs.query),
        headers=await named(refs.headers),
        request=await named(refs.request),
        response=await named(refs.response),
    )


async def compare(source: TypeSource, app: str, old_fingerprint: str, new: HandlerManifest) -> tuple[Diff, Diff] | None:
    """What differs between a registered version and another, and the other way round.

    Returns:
        From the old one to the new one, and back; None when the old one's manifest is gone.
    """
    old = await source.load_manifest(app, new.id, old_fingerprint)
    if old is None:
        return None
    before, after = await types_of(source, old), await types_of(source, new)
    return compare_manifests(old, before, new, after), compare_manifests(new, after, old, before)


def compare_manifests(old: HandlerManifest, before: HandlerTypes, new: HandlerManifest, after: HandlerTypes) -> Diff:
    """All that clients of one version may notice of another: its types, and where it listens."""
    diff = diff_handlers(before, after)
    changes = _route_changes(old, new)
    if not changes:
        return diff
    breaking = (*(each for each in changes if each.type == "breaking"), *diff.breaking)
    rest = (*(each for each in changes if each.type == "non-breaking"), *diff.non_breaking)
    return Diff(
        breaking=breaking,
        non_breaking=rest,
        summary=summary_of(len(breaking), len(rest)),
        requires_transformer=bool(breaking),
        hash=diff.hash,
    )


def _route_changes(old: HandlerManifest, new: HandlerManifest) -> list[TypeChange]:
    changes: list[TypeChange] = []
    gone = [method for method in old.methods if method not in new.methods]
    if gone:
        changes.append(
            TypeChange(
                type="breaking",
                operation="remove",
                path="/route/methods",
                description=f"no longer answers to {', '.join(gone)}",
                old=list(old.methods),
                new=list(new.methods),
            )
        )
    if old.path != new.path:
        names = [_PARAMETER.findall(each.path) for each in (old, new)]
        changes.append(
            TypeChange(
                # The old path goes on leading to the handler; what it reads from it must be there.
                type="breaking" if set(names[1]) - set(names[0]) else "non-breaking",
                operation="modify",
                path="/route/path",
                description=f"listens on {new.path}, was {old.path}",
                old=old.path,
                new=new.path,
            )
        )
    return changes


async def register_handlers(
    registry: Registry,
    source: TypeSource,
    app: str,
    manifests: Sequence[HandlerManifest],
    *,
    package: str = "",
    actor: str,
    reason: str = "",
    transforms: Mapping[str, list[str]] | None = None,
    tags: Sequence[str] = (),
    anew: bool = False,
) -> list[Registered]:
    """Make each handler of a package a version, unless its content is registered already.

    The manifests and types must be stored already: whoever sees a version may read them.

    Args:
        package: the package's version.
        transforms: by handler, the versions from which the package has a transformer to their successors.
        tags: labels for all versions of the package, new or not; one that another version has is left there.
        anew: content that is registered, but is not the newest, becomes the newest again, as a new version.
    Raises:
        VersionConflict: a handler has as many versions as may be.
        KeyConflict, BrokerUnavailable: the registry could not be changed.
    """
    origin = _Origin(app, package, actor, reason, transforms or {}, tags, anew)
    return [await _Registering(registry, source, origin, manifest).run() for manifest in manifests]


class _Origin(NamedTuple):
    """What is the same for all handlers of a package."""

    app: str
    package: str
    actor: str
    reason: str
    transforms: Mapping[str, list[str]]
    tags: Sequence[str]
    anew: bool


class _Registering:
    """One handler on its way into the registry."""

    def __init__(self, registry: Registry, source: TypeSource, origin: _Origin, manifest: HandlerManifest) -> None:
        self._registry = registry
        self._source = source
        self._origin = origin
        self._manifest = manifest
        self._compared: dict[str, tuple[Diff, Diff] | None] = {}
        self._parent: VersionRecord | None = None
        self._made = ""
        self._is_stale = False

    async def run(self) -> Registered:
        """Compare with the newest version, and register; again while others register at the same time."""
        origin, manifest = self._origin, self._manifest
        for _ in range(_ATTEMPTS):
            timeline = await self._registry.timeline(origin.app, manifest.id)
            parent = self._parent = timeline.newest
            is_new = _known(timeline, manifest.fingerprint, anew=origin.anew) is None
            if is_new and parent is not None and parent.fingerprint not in self._compared:
                self._compared[parent.fingerprint] = await compare(
                    self._source, origin.app, parent.fingerprint, manifest
                )
            after = await self._registry.change(origin.app, manifest.id, self._edit)
            found = _known(after, manifest.fingerprint, anew=origin.anew)
            if self._is_stale or found is None:
                continue
            diffs = self._diffs if self._made else None
            return Registered(
                handler=manifest.id,
                tsv=found.tsv,
                is_new=bool(self._made),
                parent=found.parent,
                diff=diffs[0] if diffs is not None else None,
            )
        raise KeyConflict(
            f"the versions of {origin.app}:{manifest.id} were changed by others {_ATTEMPTS} times in a row"
        )

    def _edit(self, before: Timeline) -> Timeline:
        origin, fingerprint = self._origin, self._manifest.fingerprint
        self._made, self._is_stale = "", False
        now_ms = self._registry.now_ms()
        after, found = before, _known(before, fingerprint, anew=origin.anew)
        if found is None:
            newest = before.newest
            if (newest.tsv if newest is not None else "") != (self._parent.tsv if self._parent is not None else ""):
                self._is_stale = True  # it was compared with what is no longer the newest
                return before
            after = with_version(
                before, self._record(), now_ms=now_ms, actor=origin.actor, reason=origin.reason, anew=origin.anew
            )
            found = after.versions[-1]
            self._made = found.tsv
        mine = list(origin.transforms.get(self._manifest.id, ()))
        after = with_transforms(after, found.tsv, mine, now_ms=now_ms, actor=origin.actor)
        for label in origin.tags:
            if not any(tag.label == label for tag in after.tags):
                after = with_tag(after, found.tsv, label, now_ms=now_ms, actor=origin.actor)
        return after

    def _record(self) -> VersionRecord:
        manifest, diffs, is_first = self._manifest, self._diffs, self._parent is None
        return VersionRecord(
            tsv="",
            fingerprint=manifest.fingerprint,
            methods=list(manifest.methods),
            path=manifest.path,
            hash=manifest.hash,
            package=self._origin.package,
            # What cannot be compared may break: old clients stay with the old version.
            breaking=not is_first and (diffs is None or bool(diffs[0].breaking)),
            breaking_back=not is_first and (diffs is None or bool(diffs[1].breaking)),
            transforms=list(self._origin.transforms.get(manifest.id, ())),
        )

    @property
    def _diffs(self) -> tuple[Diff, Diff] | None:
        return self._compared.get(self._parent.fingerprint) if self._parent is not None else None


def _known(timeline: Timeline, fingerprint: str, *, anew: bool) -> VersionRecord | None:
    if anew:
        newest = timeline.newest
        return newest if newest is not None and newest.fingerprint == fingerprint else None
    return timeline.with_fingerprint(fingerprint)
