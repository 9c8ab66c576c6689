"""The router's wiring: pull requests, decide, hand over, and only then acknowledge.

Everything for one request happens in callbacks on the read loop (ADR-0004); tasks exist only for
what is rare: dead letters and waiting for a worker.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine
from typing import Any

import anyio
import msgspec
import structlog

from gati_core.errors import (
    Backpressure,
    BrokerRestarted,
    BrokerUnavailable,
    GatiError,
    MalformedDescriptor,
    MessageTooLarge,
    NoLiveWorker,
    PoisonMessage,
    PublishRefused,
    RequestError,
    TransientError,
)
from gati_core.fabric import DeliveryPort, Fabric, KvBucket, KvView, PublisherPort, PullConsumer
from gati_core.fabric.topology import MAX_ATTEMPTS, REQ_ACK_WAIT_S
from gati_core.manifests import RouterBeat
from gati_core.timescape import SnapshotPolicy, SweepPolicy, UsageCounter, fabric_usage, usage_names
from gati_core.wire import LANES, PROTOCOL, RoutingView, WorkItem, decode_cancel, decode_routing, encode, problem_reply
from gati_router.advisories import AdvisoryMover
from gati_router.canaries import Canaries
from gati_router.catalogue import Catalogue
from gati_router.metrics import VersionsByStatus, count_versions
from gati_router.settings import RouterSettings
from gati_router.snapshotting import RouterSnapshots
from gati_router.stats import Decisions, RouterStats
from gati_router.sweeping import RouterSweep

log = structlog.get_logger(__name__)

_LANE_SHARE = {"high": 0.5, "normal": 0.375, "low": 0.125}
"""Of the router's slots. A saturated router serves urgent lanes first and still serves the others."""
_REMEMBER_CANCELS = 10_000
_GOODBYE_S = 1.0
_WAKE_AGAIN_S = 0.25
_REMEMBER_WAKES = 1000
_LOOK_AT_CANARIES_S = 1.0
_GAUGE_CHANGES_S = 5.0


class _Parked:
    __slots__ = ("delivery", "leased_at", "until", "view")

    def __init__(self, delivery: DeliveryPort, view: RoutingView, until: float, leased_at: float) -> None:
        self.delivery = delivery
        self.view = view
        self.until = until
        self.leased_at = leased_at


class Router:
    """One router process. `start`, then `drain`."""

    def __init__(
        self,
        *,
        settings: RouterSettings,
        fabric: Fabric,
        router_id: str,
        sweep: SweepPolicy | None = None,
        snapshots: SnapshotPolicy | None = None,
    ) -> None:
        self._settings = settings
        self._fabric = fabric
        self._connection = fabric.connection
        self._publisher: PublisherPort = fabric.publisher
        self._is_reply = fabric.subjects.is_reply
        self.id = router_id
        self.stats = RouterStats()
        self.decisions = Decisions()
        self.versions: VersionsByStatus = {}
        """How many versions there are of each status, as last looked at."""
        self._loop = asyncio.get_running_loop()
        self.catalogue = Catalogue(
            fabric.subjects, worker_ttl_s=settings.worker_ttl_s, now=self._loop.time, later=self._loop.call_soon
        )
        self._consumers: list[PullConsumer] = []
        self._views: list[KvView] = []
        self._timescape: KvView | None = None
        self._parked: dict[str, _Parked] = {}
        self._cancelled: dict[str, None] = {}
        self._woken: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._members = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
        self._mover = AdvisoryMover(fabric)
        self._usage = UsageCounter(fabric_usage(fabric))
        self._policy = sweep or SweepPolicy()
        self._sweep = RouterSweep(
            fabric,
            self._policy,
            router_id=router_id,
            every_s=settings.sweep_every_s,
            rollout_of=self.catalogue.rollout_of,
        )
        self._snapshots = RouterSnapshots(fabric, snapshots or SnapshotPolicy(), router_id=router_id)
        config = KvBucket(fabric.connection, fabric.subjects.config_bucket)
        self._canaries = Canaries(self.catalogue, config)
        self._is_draining = False
        self._beat_at = 0.0
        self._counted_at = self._swept_at = self._looked_at = self._loop.time()
        self._gauged_at = float("-inf")
        self._gauged = -1

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the catalogue, then begin to pull.

        Raises:
            BrokerUnavailable: the buckets could not be read.
        """
        subjects = self._fabric.subjects
        timescape = KvView(self._connection, subjects.timescape_bucket, on_change=self.catalogue.timeline_changed)
        self._timescape = timescape
        self._views = [
            KvView(self._connection, subjects.manifests_bucket, on_change=self.catalogue.manifest_changed),
            timescape,
            KvView(self._connection, subjects.config_bucket, on_change=self.catalogue.config_changed),
            KvView(self._connection, subjects.pools_bucket, on_change=self.catalogue.pool_changed),
        ]
        for view in self._views:
            await view.start()
        self.catalogue.on_change(self._retry_parked)
        self._cancel_subscription = await self._connection.subscribe(subjects.cancel_any, self._on_cancel)
        for lane in LANES:
            consumer = PullConsumer(
                self._connection,
                stream=subjects.req_stream,
                durable=subjects.lane_consumer(lane),
                capacity=max(1, int(self._settings.max_in_flight * _LANE_SHARE[lane])),
                on_delivery=self._on_delivery,
            )
            self._consumers.append(consumer)
        for consumer in self._consumers:
            await consumer.start()
        await self._mover.start()
        self._connection.on_tick(self._tick)
        self._connection.on_up(self.catalogue.reprieve)
        await self._beat()

    async def drain(self, *, grace_s: float) -> None:
        """Ask for nothing more, finish what is in flight, give back the rest, say goodbye."""
        self._is_draining = True
        self._connection.off(self._tick)
        for consumer in self._consumers:
            await consumer.stop_pulling()
        await self._mover.stop()
        for parked in list(self._parked.values()):
            parked.delivery.nak()
        self._parked.clear()
        try:
            async with asyncio.timeout(grace_s):
                for consumer in self._consumers:
                    await consumer.wait_idle()
                while self._tasks:
                    await asyncio.wait(list(self._tasks))
        except TimeoutError:
            log.warning("drain_incomplete", in_flight=sum(consumer.busy for consumer in self._consumers))
        for task in list(self._tasks):
            task.cancel()
        with anyio.move_on_after(_GOODBYE_S):
            await self._usage.flush()
        for view in self._views:
            await view.aclose()
        try:
            await self._members.delete(self._fabric.subjects.member_key("router", self.id))
        except TransientError as exc:
            log.debug("goodbye_failed", error=str(exc))

    # -- one request --------------------------------------------------------------------------

    def _on_delivery(self, delivery: DeliveryPort) -> None:
        stats = self.stats
        stats.received += 1
        try:
            view = decode_routing(delivery.data, subject=delivery.subject.decode())
            if not self._is_reply(view.reply_to):
                raise MalformedDescriptor(f"{view.reply_to[:80]!r} is no reply subject of this fabric")
        except MalformedDescriptor as exc:
            self._give_up(delivery, exc, None)
            return
        if view.deadline_ms <= time.time() * 1000:
            stats.expired += 1
            delivery.ack()  # the client has had its 504; running it now would surprise everybody
            return
        if view.request_id in self._cancelled:
            stats.cancelled += 1
            delivery.ack()
            return
        if delivery.attempt > MAX_ATTEMPTS:
            self._give_up(delivery, PoisonMessage(f"routed {delivery.attempt - 1} times without success"), view)
            return
        self._route(delivery, view)

    def _route(self, delivery: DeliveryPort, view: RoutingView) -> None:
        try:
            choice, params = self.catalogue.find(view.method, view.path, view.version, view.principal, view.request_id)
        except RequestError as exc:
            self._refuse(delivery, view, exc)
            return
        target = choice.target
        if target is None:
            self._park(delivery, view)
            return
        if target.is_once and view.received_ms <= self._connection.server_changed_ms:
            self._refuse(delivery, view, BrokerRestarted("the broker restarted; this request may have run already"))
            return
        work = WorkItem(
            PROTOCOL,
            view.request_id,
            view.reply_to,
            view.deadline_ms,
            target.handler,
            target.mode,
            msgspec.Raw(delivery.data),
            params,
            time.time_ns() // 1_000_000,
            choice.tsv,
            choice.manifest_hash,
            choice.version_headers,
            choice.source,
        )
        resolved = choice.resolved.tsv
        if resolved:
            self._usage.count(target.app, target.handler, resolved)
            self.decisions.add(target.app, target.handler, resolved, choice.source)
        if choice.hops:
            work.hops = list(choice.hops)
            work.fallback = choice.fallback.subject.decode() if choice.fallback is not None else ""
        if target.is_asleep:
            self._wake(target.pool)
        delivery.context = view
        # A router that dies between this publish and the ack of the request leaves a redelivery
        # behind; for handlers that must not run twice the stream drops it by the request's id.
        message_id = view.request_id if target.is_once else ""
        try:
            self._publisher.publish(target.subject, encode(work), self._on_published, delivery, message_id=message_id)
        except GatiError as exc:
            self._on_published(delivery, exc)

    def _wake(self, pool: str) -> None:
        """Have a worker of the pool started. Its supervisor also looks for itself, in case this gets lost."""
        now = self._loop.time()
        if now - self._woken.get(pool, float("-inf")) > _WAKE_AGAIN_S:
            self._woken[pool] = now
            self._connection.publish_or_hold(self._fabric.subjects.wake(pool).encode(), b"")

    def _on_published(self, delivery: DeliveryPort, error: GatiError | None) -> None:
        if error is None:
            self.stats.routed += 1
            delivery.ack()
        elif isinstance(error, (BrokerUnavailable, MessageTooLarge, PublishRefused)):
            self._settle_failure(delivery, error)
        elif isinstance(error, Backpressure):
            self._refuse(delivery, delivery.context, Backpressure("the handler's queue is full", cause=str(error)))
        else:
            self._settle_failure(delivery, error)

    def _settle_failure(self, delivery: DeliveryPort, error: GatiError) -> None:
        if isinstance(error, TransientError):
            # Unconfirmed or away: try again soon; the deadline decides how often.
            self.stats.naked += 1
            delivery.nak(delay_s=0.1 * delivery.attempt)
        else:
            self._give_up(delivery, error, delivery.context)

    def _refuse(self, delivery: DeliveryPort, view: RoutingView, error: GatiError) -> None:
        """Answer the client ourselves; the request ends here."""
        self.stats.refused += 1
        self._connection.publish_or_hold(view.reply_to.encode(), encode(problem_reply(error, view.request_id)))
        delivery.ack()

    # -- nobody there -------------------------------------------------------------------------

    def _park(self, delivery: DeliveryPort, view: RoutingView) -> None:
        now = self._loop.time()
        left_s = view.deadline_ms / 1000 - time.time()
        wait_s = min(self._settings.no_worker_wait_s, left_s - 0.2)
        if self._is_draining:
            delivery.nak()
        elif wait_s <= 0 or len(self._parked) >= self._settings.max_parked:
            self._refuse(delivery, view, NoLiveWorker(f"no live worker serves {view.path[:200]}"))
        else:
            self.stats.parked += 1
            self._parked[view.request_id] = _Parked(delivery, view, now + wait_s, now)

    def _retry_parked(self) -> None:
        waiting, self._parked = self._parked, {}
        for request_id, parked in waiting.items():
            try:
                choice, _ = self.catalogue.find(
                    parked.view.method, parked.view.path, parked.view.version, parked.view.principal, request_id
                )
            except RequestError as exc:
                self._refuse(parked.delivery, parked.view, exc)
                continue
            if choice.target is not None:
                self._route(parked.delivery, parked.view)
            else:
                self._parked[request_id] = parked

    # -- giving up ----------------------------------------------------------------------------

    def _give_up(self, delivery: DeliveryPort, error: GatiError, view: RoutingView | None) -> None:
        """Dead letter, answer, and only then term: a crash in between repeats, never loses."""
        self.stats.dead += 1
        self._spawn(self._bury(delivery, error, view))

    async def _bury(self, delivery: DeliveryPort, error: GatiError, view: RoutingView | None) -> None:
        try:
            await self._fabric.dead_letters.bury(
                stage="req",
                pool="-",
                subject=delivery.subject.decode(errors="replace"),
                data=delivery.data,
                error=error,
                attempts=delivery.attempt,
                request_id=view.request_id if view else "",
                headers=delivery.header_fields(),
            )
        except TransientError as exc:
            log.warning("dead_letter_delayed", error=str(exc))
            delivery.nak(delay_s=1.0)
            return
        if view is not None:
            self._connection.publish_or_hold(view.reply_to.encode(), encode(problem_reply(error, view.request_id)))
        delivery.term()
        log.error("request_dead_lettered", subject=delivery.subject.decode(errors="replace"), error=str(error))

    # -- around it ----------------------------------------------------------------------------

    def _on_cancel(self, _subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        try:
            cancel = decode_cancel(data)
        except GatiError as exc:
            log.warning("cancel_refused", error=str(exc))
            return
        parked = self._parked.pop(cancel.request_id, None)
        if parked is not None:
            self.stats.cancelled += 1
            parked.delivery.ack()
            return
        # Remembered only while the request may still be waiting in the stream.
        if len(self._cancelled) >= _REMEMBER_CANCELS:
            del self._cancelled[next(iter(self._cancelled))]
        self._cancelled[cancel.request_id] = None

    def _tick(self, now: float) -> None:
        if self._parked:
            for request_id, parked in list(self._parked.items()):
                if parked.until <= now:
                    del self._parked[request_id]
                    self._refuse(
                        parked.delivery, parked.view, NoLiveWorker(f"no live worker serves {parked.view.path[:200]}")
                    )
                elif now - parked.leased_at > REQ_ACK_WAIT_S / 3:
                    parked.leased_at = now
                    parked.delivery.in_progress()
        if self._connection.is_up:
            self.catalogue.expire()
        else:
            self.catalogue.reprieve()
        if len(self._woken) > _REMEMBER_WAKES:
            self._woken.clear()
        if now - self._counted_at > self._settings.usage_every_s:
            self._counted_at = now
            self._spawn(self._count())
        if now - self._swept_at > self._sweep.looks_every_s and self._connection.is_up:
            self._swept_at = now
            self._spawn(self._look_for_old_versions())
        if now - self._looked_at > _LOOK_AT_CANARIES_S and self._connection.is_up:
            self._looked_at = now
            self._spawn(self._canaries.look())
        if self._settings.metrics_port and self._is_gauge_due(now):
            self._gauged_at, self._gauged = now, self.catalogue.rebuilds
            self._spawn(self._count_versions())
        if now - self._beat_at > self._settings.heartbeat_s:
            self._beat_at = now
            self._spawn(self._beat())

    def _is_gauge_due(self, now: float) -> bool:
        """Sooner than usual where something has changed."""
        every_s = self._settings.version_gauges_every_s
        has_changed = self._gauged != self.catalogue.rebuilds
        return now - self._gauged_at > (min(every_s, _GAUGE_CHANGES_S) if has_changed else every_s)

    async def _count_versions(self) -> None:
        entries = list(self._timescape.entries()) if self._timescape is not None else []
        usage = {names: entry for entry in entries if (names := usage_names(entry.key)) is not None}
        # In a thread: of a hundred thousand versions it takes longer than requests should wait.
        self.versions = await asyncio.to_thread(
            count_versions, self.catalogue.timelines(), usage, self._policy, now_s=time.time()
        )

    async def _count(self) -> None:
        await self._usage.flush()

    async def _look_for_old_versions(self) -> None:
        if await self._sweep.run_if_due():
            await self._snapshots.run()

    async def _beat(self) -> None:
        self._beat_at = self._loop.time()
        beat = RouterBeat(router=self.id, host=socket.gethostname(), pid=os.getpid(), routed=self.stats.routed)
        ttl_s = max(2, int(self._settings.heartbeat_s * 4))
        try:
            key = self._fabric.subjects.member_key("router", self.id)
            await self._members.put(key, msgspec.json.encode(beat), ttl_s=ttl_s)
        except TransientError as exc:
            log.warning("heartbeat_failed", error=str(exc))
            return
        if self._settings.health_file:
            await anyio.Path(self._settings.health_file).touch()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
