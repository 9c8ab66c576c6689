"""What can be routed right now: who lives, what they serve, and which pool gets the traffic.

Fed by two bucket views. `{ns}_pools` says who lives (announcements with a time to live);
`{ns}_manifests` remembers the newest manifest of every app, so that a route whose workers are all
gone is "503, nobody there" and not "404, never heard of it". Several pools may serve a route while
a new version replaces an old one: the newest live one gets the traffic.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from gati_core.errors import Forbidden, MalformedManifest, Unauthenticated
from gati_core.manifests import (
    HandlerManifest,
    PoolManifest,
    WorkerAnnouncement,
    parse_announcement,
    parse_pool_manifest,
    pools_in_order,
)
from gati_core.wire import Principal, Subjects
from gati_router.matching import RouteTable

log = structlog.get_logger(__name__)


class Target:
    """A handler of a pool, ready to be published to."""

    __slots__ = ("app", "handler", "is_live", "is_once", "mode", "path", "pool", "roles", "subject")

    def __init__(self, subjects: Subjects, pool: PoolManifest, handler: HandlerManifest, *, is_live: bool) -> None:
        self.app = pool.app
        self.pool = pool.pool
        self.handler = handler.id
        self.path = handler.path
        self.mode = handler.mode
        self.is_once = handler.mode == "at_most_once"
        self.is_live = is_live
        self.roles = frozenset(handler.policies.roles)
        self.subject = subjects.work(pool.pool, handler.id).encode()

    def admit(self, principal: Principal | None) -> None:
        """Let a caller through that has one of the roles, where any are asked for.

        Raises:
            Unauthenticated: nobody said who calls.
            Forbidden: the caller has none of the roles.
        """
        if not self.roles:
            return
        if principal is None:
            raise Unauthenticated("this route needs credentials")
        if self.roles.isdisjoint(principal.roles):
            raise Forbidden(f"this route needs one of the roles {', '.join(sorted(self.roles))}")


class _Worker:
    __slots__ = ("announcement", "seen_at")

    def __init__(self, announcement: WorkerAnnouncement, seen_at: float) -> None:
        self.announcement = announcement
        self.seen_at = seen_at


class Catalogue:
    """See the module.

    Args:
        worker_ttl_s: a worker not heard of for this long is gone, even if its key is still there.
        now: monotonic seconds.
    """

    def __init__(self, subjects: Subjects, *, worker_ttl_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._subjects = subjects
        self._worker_ttl_s = worker_ttl_s
        self._now = now
        self._workers: dict[str, _Worker] = {}
        self._current: dict[str, PoolManifest] = {}
        self._live: tuple[str, ...] = ()
        self._on_change: list[Callable[[], None]] = []
        self.table: RouteTable[Target] = RouteTable()
        self.malformed = 0
        self.rebuilds = 0
        self._shape: object = None

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever routes or live pools changed."""
        self._on_change.append(listener)

    # -- fed by the views ---------------------------------------------------------------------

    def pool_changed(self, key: str, value: bytes | None) -> None:
        """One key of `{ns}_pools` changed."""
        if not key.startswith("worker."):
            return
        if value is None:
            if self._workers.pop(key, None) is not None:
                self._rebuild_if_changed()
            return
        try:
            announcement = parse_announcement(value, key=key)
        except MalformedManifest as exc:
            # Its neighbours keep serving; the document stays where `gati doctor` can show it.
            self.malformed += 1
            log.warning("announcement_refused", key=key, error=str(exc))
            if self._workers.pop(key, None) is not None:
                self._rebuild_if_changed()
            return
        self._workers[key] = _Worker(announcement, self._now())
        self._rebuild_if_changed()

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
        self._rebuild_if_changed()

    def expire(self) -> None:
        """Forget workers that have been silent too long. Call this now and then."""
        oldest = self._now() - self._worker_ttl_s
        gone = [key for key, worker in self._workers.items() if worker.seen_at < oldest]
        for key in gone:
            log.warning("worker_lost", key=key)
            del self._workers[key]
        if gone:
            self._rebuild_if_changed()

    def reprieve(self) -> None:
        """Treat every worker as just heard of: after an outage the silence was the broker's."""
        now = self._now()
        for worker in self._workers.values():
            worker.seen_at = now

    # -- the table ----------------------------------------------------------------------------

    @property
    def live_pools(self) -> tuple[str, ...]:
        """Pools with at least one ready worker, newest first."""
        return self._live

    def _rebuild_if_changed(self) -> None:
        announcements = (worker.announcement for worker in self._workers.values())
        ordered, remembered = pools_in_order(announcements, self._current.values())
        shape = tuple(
            tuple(
                (
                    pool.pool,
                    tuple((h.id, h.path, tuple(h.methods), h.mode, tuple(h.policies.roles)) for h in pool.handlers),
                )
                for pool in pools
            )
            for pools in (ordered, remembered)
        )
        if shape == self._shape:
            return
        self._shape = shape
        self._live = tuple(pool.pool for pool in ordered)
        routes: list[tuple[str, str, Target]] = []
        for pools, is_live in ((ordered, True), (remembered, False)):
            for pool in pools:
                for handler in pool.handlers:
                    target = Target(self._subjects, pool, handler, is_live=is_live)
                    routes.extend((method, handler.path, target) for method in handler.methods)
        self.table = RouteTable(routes)
        self.rebuilds += 1
        log.info("catalogue_rebuilt", routes=self.table.size, live_pools=list(self._live))
        for listener in self._on_change:
            listener()
