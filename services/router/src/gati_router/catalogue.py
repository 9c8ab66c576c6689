"""What can be routed right now: who lives, what they serve, and which version of it a request gets.

Fed by four bucket views. `{ns}_pools` says who lives (announcements with a time to live); `{ns}_timescape` which
versions of each handler there are; `{ns}_config` how their traffic is shared; `{ns}_manifests` remembers the newest
manifest of every app, so that a route whose workers are all gone is "503, nobody there" and not "404, never heard
of it". A lookup never leaves the process.

A live worker's handler is known by its fingerprint. One that is in no timeline yet gets no traffic: its package has
not been activated. One without a fingerprint has no versions, and is simply there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from gati_core.errors import MalformedManifest, RouteNotFound
from gati_core.manifests import (
    PoolManifest,
    WorkerAnnouncement,
    parse_announcement,
    parse_pool_manifest,
    pools_in_order,
)
from gati_core.timescape import Choice, Rollout, Timeline, read_rollout, read_timeline, rollout_names, timeline_names
from gati_core.wire import Principal, Subjects
from gati_router.matching import RouteTable
from gati_router.routes import Handler, Route, Target

log = structlog.get_logger(__name__)

_Names = tuple[str, str]


class _Worker:
    __slots__ = ("announcement", "seen_at")

    def __init__(self, announcement: WorkerAnnouncement, seen_at: float) -> None:
        self.announcement = announcement
        self.seen_at = seen_at

    def serves_as(self, other: WorkerAnnouncement) -> bool:
        """Whether nothing that routing depends on has changed."""
        mine = self.announcement
        return (
            mine.state == other.state
            and mine.health == other.health
            and mine.is_last_resort == other.is_last_resort
            and mine.manifest == other.manifest
        )

    @property
    def is_shaky(self) -> bool:
        """Whether it is to be used only where nothing better is there."""
        return self.announcement.health == "unhealthy"


class Catalogue:
    """See the module.

    Args:
        worker_ttl_s: a worker not heard of for this long is gone, even if its key is still there.
        now: monotonic seconds.
        later: runs a function soon. What changes until then is worked out together; by default at once.
    """

    def __init__(
        self,
        subjects: Subjects,
        *,
        worker_ttl_s: float,
        now: Callable[[], float] = time.monotonic,
        later: Callable[[Callable[[], None]], object] = lambda function: function(),
    ) -> None:
        self._subjects = subjects
        self._worker_ttl_s = worker_ttl_s
        self._now = now
        self._later = later
        self._stale: dict[_Names, None] = {}
        """Handlers that something has changed for since they were worked out."""
        self._workers: dict[str, _Worker] = {}
        self._current: dict[str, PoolManifest] = {}
        self._timelines: dict[_Names, Timeline] = {}
        self._rollouts: dict[_Names, Rollout] = {}
        self._handlers: dict[_Names, Handler] = {}
        self._offers: dict[_Names, list[Target]] = {}
        self._fallen: dict[_Names, Target] = {}
        self._shaky: frozenset[str] = frozenset()
        self._asleep: frozenset[str] = frozenset()
        self._live: tuple[PoolManifest, ...] = ()
        self._remembered: tuple[PoolManifest, ...] = ()
        self._routes: tuple[Route, ...] = ()
        self._on_change: list[Callable[[], None]] = []
        self._on_counts: list[Callable[[WorkerAnnouncement, WorkerAnnouncement], None]] = []
        self.table: RouteTable[Route] = RouteTable()
        self.malformed = 0
        self.rebuilds = 0

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever routes, versions or live pools changed."""
        self._on_change.append(listener)

    def on_counts(self, listener: Callable[[WorkerAnnouncement, WorkerAnnouncement], None]) -> None:
        """Call `listener(before, now)` whenever a worker announces itself again."""
        self._on_counts.append(listener)

    # -- one request --------------------------------------------------------------------------

    def find(
        self, method: str, path: str, preference: str = "", principal: Principal | None = None, request_id: str = ""
    ) -> tuple[Choice[Target], dict[str, str]]:
        """What runs for a request, and its decoded path parameters.

        Args:
            path: as received: percent-encoded, without the query.
            preference: the version asked for, as in a descriptor.
            principal, request_id: who calls; whoever is known gets the same version each time while traffic is shared.
        Raises:
            RouteNotFound, MethodNotAllowed, UpgradeRequired, InvalidPath: see `RouteTable.match`.
            InvalidVersion, VersionNotFound: see `Versions.choose`.
            Unauthenticated, Forbidden: the caller has none of the roles that what runs asks for.
        """
        route, params = self.table.match(method, path)
        if preference:
            choice = route.handler.choose(preference)
            if not route.knows(choice.resolved):
                raise RouteNotFound(
                    f"version {choice.resolved.tsv} of handler {route.handler.id} does not listen on {path[:200]}, but"
                    f" on {choice.resolved.path}"
                )
        else:
            choice = route.latest or route.latest_for(principal.subject if principal is not None else request_id)
        target = choice.target
        if target is not None:
            if target.roles:
                target.admit(principal)
            if params:
                params = route.named(params, choice)
        return choice, params

    # -- fed by the views ---------------------------------------------------------------------

    def pool_changed(self, key: str, value: bytes | None) -> None:
        """One key of `{ns}_pools` changed."""
        if not key.startswith("worker."):
            return
        if value is None:
            if self._workers.pop(key, None) is not None:
                self._pools_changed()
            return
        try:
            announcement = parse_announcement(value, key=key)
        except MalformedManifest as exc:
            # Its neighbours keep serving; the document stays where `gati doctor` can show it.
            self.malformed += 1
            log.warning("announcement_refused", key=key, error=str(exc))
            if self._workers.pop(key, None) is not None:
                self._pools_changed()
            return
        known = self._workers.get(key)
        self._workers[key] = _Worker(announcement, self._now())
        if known is not None:
            for listener in self._on_counts:
                listener(known.announcement, announcement)
        if known is None or not known.serves_as(announcement):
            self._pools_changed()

    def manifest_changed(self, key: str, value: bytes | None) -> None:
        """One key of `{ns}_manifests` changed."""
        if not key.startswith("current."):
            return
        if value is None:
            self._current.pop(key, None)
        else:
            try:
                self._current[key] = parse_pool_manifest(value, key=key)
            except MalformedManifest as exc:
                self.malformed += 1
                self._current.pop(key, None)
                log.warning("manifest_refused", key=key, error=str(exc))
        self._pools_changed()

    def timeline_changed(self, key: str, value: bytes | None) -> None:
        """One key of `{ns}_timescape` changed."""
        names = timeline_names(key)
        if names is None:
            return
        if value is None:
            self._timelines.pop(names, None)
        else:
            try:
                self._timelines[names] = read_timeline(key, value)
            except MalformedManifest as exc:  # what was known of it goes on
                self.malformed += 1
                log.warning("timeline_refused", key=key, error=str(exc))
                return
        self._refresh([names])

    def config_changed(self, key: str, value: bytes | None) -> None:
        """One key of `{ns}_config` changed."""
        names = rollout_names(key)
        if names is None:
            return
        if value is None:
            self._rollouts.pop(names, None)
        else:
            try:
                self._rollouts[names] = read_rollout(key, value)
            except MalformedManifest as exc:
                self.malformed += 1
                log.warning("rollout_refused", key=key, error=str(exc))
                return
        self._refresh([names])

    def rollout_of(self, app: str, handler: str) -> Rollout | None:
        """How the traffic of a handler is shared now; None where nobody has said."""
        return self._rollouts.get((app, handler))

    def rollouts(self) -> dict[tuple[str, str], Rollout]:
        """All rollouts, by app and handler."""
        return dict(self._rollouts)

    def timeline_of(self, app: str, handler: str) -> Timeline | None:
        """The versions of a handler, as last seen."""
        return self._timelines.get((app, handler))

    def timelines(self) -> list[Timeline]:
        """The versions of all handlers, as last seen."""
        return list(self._timelines.values())

    def healthy_workers(self) -> dict[str, int]:
        """How many workers of each app are ready and healthy; 0 for one that is known and has none."""
        workers = [each.announcement for each in list(self._workers.values()) if not each.is_shaky]
        ready = Counter(each.manifest.app for each in workers if each.state == "ready")
        return {**{app: 0 for app, _ in list(self._handlers)}, **ready}

    def expire(self) -> None:
        """Forget workers that have been silent too long. Call this now and then."""
        oldest = self._now() - self._worker_ttl_s
        gone = [key for key, worker in self._workers.items() if worker.seen_at < oldest]
        for key in gone:
            log.warning("worker_lost", key=key)
            del self._workers[key]
        if gone:
            self._pools_changed()

    def reprieve(self) -> None:
        """Treat every worker as just heard of: after an outage the silence was the broker's."""
        now = self._now()
        for worker in self._workers.values():
            worker.seen_at = now

    # -- the table ----------------------------------------------------------------------------

    @property
    def live_pools(self) -> tuple[str, ...]:
        """Pools with at least one healthy worker that is ready or can be woken, newest first."""
        return tuple(pool.pool for pool in self._live)

    @property
    def handlers(self) -> dict[_Names, Handler]:
        """Every handler that is known, by app and id."""
        return dict(self._handlers)

    def _pools_changed(self) -> None:
        usable = [
            worker for worker in self._workers.values() if not worker.is_shaky or worker.announcement.is_last_resort
        ]
        ordered, remembered = pools_in_order((worker.announcement for worker in usable), self._current.values())
        live, known = tuple(ordered), tuple(remembered)
        sound = {worker.announcement.manifest.pool for worker in usable if not worker.is_shaky}
        shaky = frozenset(pool.pool for pool in live if pool.pool not in sound)
        awake = {each.announcement.manifest.pool for each in usable if each.announcement.state == "ready"}
        asleep = frozenset(pool.pool for pool in live if pool.pool not in awake)
        before_that = (self._live, self._remembered, self._shaky, self._asleep)
        if (live, known, shaky, asleep) == before_that:
            return
        self._shaky, self._asleep = shaky, asleep
        before = {pool.app for pool in (*self._live, *self._remembered)}
        self._live, self._remembered = live, known
        self._offers, self._fallen = {}, {}
        for rank, pool in enumerate(live):
            for each in pool.handlers:
                offered = self._offers.setdefault((pool.app, each.id), [])
                is_shaky, is_asleep = pool.pool in shaky, pool.pool in asleep
                offered.append(Target(self._subjects, pool, each, rank=rank, is_shaky=is_shaky, is_asleep=is_asleep))
        for rank, pool in enumerate(known, len(live)):
            for each in pool.handlers:
                self._fallen.setdefault((pool.app, each.id), Target(self._subjects, pool, each, rank=rank))
        apps = before | {pool.app for pool in (*live, *known)}
        names = [each for each in {*self._timelines, *self._handlers} if each[0] in apps]
        self._refresh([*names, *self._offers, *self._fallen])

    def _refresh(self, names: Iterable[_Names]) -> None:
        """Have what is known of some handlers worked out anew."""
        is_waiting = bool(self._stale)
        self._stale.update(dict.fromkeys(names))
        if self._stale and not is_waiting:
            self._later(self._work_out)

    def _work_out(self) -> None:
        is_changed = False
        stale, self._stale = self._stale, {}
        for names in stale:
            handler = Handler(
                *names,
                live=self._offers.get(names, ()),
                remembered=self._fallen.get(names),
                timeline=self._timelines.get(names),
                rollout=self._rollouts.get(names),
            )
            known = self._handlers.get(names)
            if known is None:
                if not handler.is_known:
                    continue
                handler.work_out()
                self._handlers[names] = handler
            elif not handler.is_known:
                del self._handlers[names]
            elif not known.take(handler):
                continue
            is_changed = True
        if is_changed:
            self._rebuild()

    def _rebuild(self) -> None:
        ranked = sorted(self._handlers.values(), key=lambda each: each.rank)
        routes = tuple(route for handler in ranked for route in handler.routes)
        for route in routes:
            route.refresh()
        if routes != self._routes:
            self._routes = routes
            self.table = RouteTable((route.method, route.path, route) for route in routes)
        self.rebuilds += 1
        log.info("catalogue_rebuilt", routes=self.table.size, live_pools=list(self.live_pools))
        for listener in self._on_change:
            listener()


__all__ = ["Catalogue", "Target"]
