"""What restoring a snapshot does to each document of the registry: pure decisions, no I/O.

Nothing is ever deleted: what came after the snapshot stays, unless it is a version of a handler that the snapshot
knows, which only force gives up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from gati_core.errors import MalformedManifest
from gati_core.timescape._registry import read_timeline, timeline_names
from gati_core.timescape._snapshot_format import Area, Snapshot, equal_documents, is_part
from gati_core.timescape._timeline import Timeline, lost_versions
from gati_core.timescape._usage import merged_usage, usage_names

ORDER = ("manifests", "timescape.package", "timescape", "timescape.timeline", "config")
"""What versions need before them, what names them after them: routers follow each document as it is written."""

Action = Literal["create", "replace", "merge", "keep"]


class RestoreStep(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one document."""

    area: Area
    key: str
    action: Action
    """`keep`: it says something else than the snapshot, and stays."""
    note: str = ""


class Restoration(msgspec.Struct, frozen=True, kw_only=True):
    """What restoring a snapshot changes, or would change."""

    id: str
    is_dry_run: bool = False
    steps: list[RestoreStep]
    same: int
    """Documents that are as the snapshot has them."""
    lost: dict[str, list[str]]
    """Versions that only force gives up, by `app:handler`."""
    newer: list[str]
    """Documents that the snapshot does not have: they stay as they are."""
    missing_packages: list[str]
    """Wheels that its package records refer to and that are not in the fabric: nobody can run their versions."""

    @property
    def changes(self) -> list[RestoreStep]:
        """The steps that write."""
        return [each for each in self.steps if each.action != "keep"]


def plan_restore(
    snapshot: Snapshot, stored: Mapping[Area, Mapping[str, bytes]], *, missing_packages: list[str]
) -> Restoration:
    """Compare a snapshot with what is stored.

    Args:
        stored: by area, the areas that the snapshot has.
    """
    steps: list[RestoreStep] = []
    lost: dict[str, list[str]] = {}
    newer: list[str] = []
    same = 0
    for area, found in stored.items():
        documents = snapshot.documents(area)
        newer += sorted(f"{area}: {key}" for key in found if key not in documents and is_part(area, key))
        for key in sorted(documents):
            step = plan_document(area, key, found.get(key), documents[key])
            if step is None:
                same += 1
                continue
            steps.append(step)
            gone = _gone(key, found.get(key), documents[key]) if area == "timescape" else []
            if gone:
                lost[":".join(timeline_names(key) or ())] = gone
    return Restoration(
        id=snapshot.id,
        is_dry_run=True,
        steps=sorted(steps, key=lambda each: (ORDER.index(_rank(each.area, each.key)), each.key)),
        same=same,
        lost=lost,
        newer=newer,
        missing_packages=missing_packages,
    )


def plan_document(area: Area, key: str, stored: bytes | None, wanted: bytes) -> RestoreStep | None:
    """What becomes of one document; None where it is as the snapshot has it.

    Args:
        stored: what is there now; None where nothing is.
    """
    if stored is None:
        return RestoreStep(area=area, key=key, action="create")
    if equal_documents(stored, wanted):
        return None
    if area == "config":
        return RestoreStep(area=area, key=key, action="replace")
    if area == "manifests":
        # What is published under a name is never changed, and what a package offers now its workers know best.
        return RestoreStep(area=area, key=key, action="keep", note="other content is stored, and stays")
    if timeline_names(key) is not None:
        return _plan_timeline(key, stored, wanted)
    if usage_names(key) is not None or key.startswith("schemas."):
        if equal_documents(merged_document(key, stored, wanted), stored):
            return None  # all of it is counted already
        return RestoreStep(area=area, key=key, action="merge", note="the higher counts" if usage_names(key) else "")
    # Records of packages and of schemas tell of processes and databases, which a snapshot does not turn back.
    return RestoreStep(area=area, key=key, action="keep", note="it tells of what is so now, and stays")


def merged_document(key: str, stored: bytes, wanted: bytes) -> bytes:
    """Both documents as one, for those where neither may be lost."""
    try:
        if usage_names(key) is not None:
            return merged_usage(key, stored, wanted)
        names = {*msgspec.json.decode(stored, type=list[str]), *msgspec.json.decode(wanted, type=list[str])}
    except (MalformedManifest, msgspec.DecodeError):
        return wanted  # what is stored is of no use to anybody
    return msgspec.json.encode(sorted(names))


def _plan_timeline(key: str, stored: bytes, wanted: bytes) -> RestoreStep | None:
    after = read_timeline(key, wanted)
    try:
        before = read_timeline(key, stored)
    except MalformedManifest:
        return RestoreStep(area="timescape", key=key, action="replace", note="what is stored cannot be read")
    if (before.versions, before.tags) == (after.versions, after.tags) and before.registered >= after.registered:
        return None  # only what happened since differs, and that stays
    return RestoreStep(area="timescape", key=key, action="replace", note=_difference(before, after))


def _difference(before: Timeline, after: Timeline) -> str:
    known = {each.tsv: each for each in before.versions}
    back = sum(each.tsv not in known for each in after.versions)
    changed = sum(each.tsv in known and known[each.tsv] != each for each in after.versions)
    gone = len(lost_versions(before, after))
    tags = {(each.label, each.tsv) for each in before.tags} ^ {(each.label, each.tsv) for each in after.tags}
    parts = (("come back", back), ("changed", changed), ("lost", gone))
    told = [f"{what}: {number} of its versions" for what, number in parts if number]
    if tags:
        told.append(f"tags: {', '.join(sorted({label for label, _ in tags})[:10])}")
    return "; ".join(told)


def _gone(key: str, stored: bytes | None, wanted: bytes) -> list[str]:
    if stored is None or timeline_names(key) is None:
        return []
    try:
        return lost_versions(read_timeline(key, stored), read_timeline(key, wanted))
    except MalformedManifest:
        return []


def _rank(area: Area, key: str) -> str:
    kind = f"{area}.{key.partition('.')[0]}"
    return kind if kind in ORDER else area
