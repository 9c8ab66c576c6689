"""Canaries: routers watch what the workers of both versions answer, step up, or take back.

Every router sees every worker's counts, and judges for itself; the one that is first writes the next step by
compare-and-set, and the others begin to count anew with it. A router that has just started has seen nothing, and
waits until it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import structlog

from gati_core.errors import GatiError, KeyConflict
from gati_core.fabric import KvBucket
from gati_core.manifests import HandlerCounts, WorkerAnnouncement
from gati_core.timescape import Observed, Rollout, Timeline, VersionRecord, next_step, read_rollout, rollout_key
from gati_router.catalogue import Catalogue

log = structlog.get_logger(__name__)

_Names = tuple[str, str]


class Canaries:
    """See the module.

    Args:
        bucket: `{ns}_config`.
        now_ms: Unix milliseconds.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        bucket: KvBucket,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._catalogue = catalogue
        self._bucket = bucket
        self._now_ms = now_ms
        self._watched: dict[_Names, tuple[Rollout, dict[str, Observed]]] = {}
        """Canaries, and what was seen of each version since their last step, by fingerprint."""
        self._is_looking = False
        catalogue.on_counts(self._counted)

    def _counted(self, before: WorkerAnnouncement, now: WorkerAnnouncement) -> None:
        """A worker has announced itself again."""
        if not self._watched or before.started_ms != now.started_ms:
            return
        app = now.manifest.app
        for handler in now.manifest.handlers:
            watched = self._watched.get((app, handler.id))
            counts = now.counts.get(handler.id)
            if watched is None or counts is None:
                continue
            known = before.counts.get(handler.id, HandlerCounts())
            seen = watched[1].setdefault(handler.fingerprint, Observed())
            seen.answers += counts.answers - known.answers
            seen.errors += counts.errors - known.errors
            seen.seconds += counts.seconds - known.seconds

    async def look(self) -> None:
        """Decide on all canaries. Call this now and then."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            await self._look()
        finally:
            self._is_looking = False

    async def _look(self) -> None:
        canaries = {names: each for names, each in self._catalogue.rollouts().items() if each.strategy == "canary"}
        self._watched = {
            names: known if (known := self._watched.get(names)) is not None and known[0] == rollout else (rollout, {})
            for names, rollout in canaries.items()
        }
        for names, (rollout, seen) in list(self._watched.items()):
            timeline = self._catalogue.timeline_of(*names)
            canary = _named(timeline, rollout.version)
            if timeline is None or canary is None:
                continue
            baseline = _named(timeline, rollout.baseline)
            newest = timeline.newest
            after = next_step(
                rollout,
                seen.get(canary.fingerprint) or Observed(),
                (seen.get(baseline.fingerprint) if baseline is not None else None) or Observed(),
                now_ms=self._now_ms(),
                is_newest=newest is not None and newest.tsv == canary.tsv,
            )
            if after is not None:
                await self._write(names, rollout, after)

    async def _write(self, names: _Names, before: Rollout, after: Rollout) -> None:
        key = rollout_key(*names)
        try:
            entry = await self._bucket.get(key)
            if entry is None or read_rollout(key, entry.value) != before:
                return  # somebody has changed it meanwhile
            await self._bucket.update(key, msgspec.json.encode(after), revision=entry.revision)
        except KeyConflict:
            return
        except GatiError as exc:
            log.warning("rollout_not_changed", app=names[0], handler=names[1], error=str(exc))
            return
        if after.strategy == "pin" and after.version == before.baseline:
            log.error("canary_taken_back", app=names[0], handler=names[1], note=after.note)
        else:
            log.info("canary_stepped_up", app=names[0], handler=names[1], percent=after.percent, note=after.note)


def _named(timeline: Timeline | None, name: str) -> VersionRecord | None:
    """The version of a tag or TSV."""
    if timeline is None:
        return None
    tag = next((each for each in timeline.tags if each.label == name), None)
    return timeline.get(tag.tsv if tag is not None else name)
