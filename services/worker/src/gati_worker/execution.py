"""One package's work in a child: take it, run it within its deadline, reply, settle.

At least once: reply, then ack; a crash in between means another run. At most once: ack when the
handler starts; the server never delivers such a message twice (its consumer has `max_deliver=1`),
and what a crash leaves unanswered the supervisor answers from the crash ledger.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog

from gati_core import App
from gati_core.app.versioning import PackageVersions
from gati_core.errors import (
    BrokerRestarted,
    DeadlineExceeded,
    GatiError,
    MalformedMessage,
    MalformedWorkItem,
    MessageTooLarge,
    PermanentError,
    PoisonMessage,
    ShuttingDown,
    TooManyChannels,
    TransformFailed,
    TransientError,
)
from gati_core.fabric import Channel, DeliveryPort, Fabric
from gati_core.fabric.topology import MAX_ATTEMPTS, WORK_ACK_WAIT_S
from gati_core.lifecycle import HandlerRun, HopCounts, Lifecycle, Plan
from gati_core.manifests import HandlerCounts
from gati_core.wire import (
    Reply,
    WorkItem,
    decode_cancel,
    decode_descriptor,
    decode_work,
    encode,
    problem_reply,
)
from gati_worker.counting import VersionCounts
from gati_worker.ledger import CrashLedger, LedgerEntry
from gati_worker.running import ExecutionStats, Running

log = structlog.get_logger(__name__)

_REMEMBER_CANCELS = 10_000
_UNKNOWN_HANDLER_DELAY_S = 0.5
_EAGER = sys.version_info >= (3, 12)
_CANCEL_AGAIN_S = 0.25
_ABANDON_AFTER_S = 2.0
"""A handler that has not reacted to being cancelled for this long is answered for and left alone."""
_SETTLE_WITHIN_S = 2.0
_SOCKET_GRACE_S = 5.0
"""What a WebSocket handler has left after its client has gone, if it does not notice by itself."""


class Executor:
    """Runs what the pull consumers deliver. See the module."""

    def __init__(
        self,
        *,
        app: App,
        pool: str,
        fabric: Fabric,
        lifecycle: Lifecycle,
        ledger: CrashLedger,
        versions: PackageVersions,
        max_channels: int = 4096,
    ) -> None:
        self._plans: dict[str, Plan] = {name: handler.plan() for name, handler in app.handlers.items()}
        self._pool = pool
        self._fabric = fabric
        self._connection = fabric.connection
        self._is_reply = fabric.subjects.is_reply
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._versions = versions
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, Running] = {}
        self._max_channels = max_channels
        self._channels = 0
        """Requests whose answer has begun as a stream or socket."""
        self._cancelled: dict[str, None] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._deaf: set[asyncio.Task[None]] = set()
        self._done_slots: list[int] = []
        self.stats = ExecutionStats()
        self.by_handler = {name: HandlerCounts() for name in self._plans}
        self.by_version: dict[tuple[str, str], VersionCounts] = {}
        """By handler and version."""

    @property
    def transforms(self) -> dict[tuple[str, str], HopCounts]:
        """What transformers have done here, by the versions from and to which they lead."""
        return self._lifecycle.transforms

    @property
    def abandoned(self) -> int:
        """Handlers that run on although nobody waits for them: deaf tasks and abandoned threads."""
        return len(self._deaf) + len(self._lifecycle.deaf) + self._lifecycle.threads.abandoned

    @property
    def in_flight(self) -> int:
        """Requests whose handler has started and not begun to answer."""
        return len(self._running) - self._channels

    # -- taking work ----------------------------------------------------------------------------

    def on_delivery(self, delivery: DeliveryPort) -> None:
        """Called by the pull consumers for every message: decide, and start the handler."""
        self.stats.received += 1
        self._connection.quicken()
        try:
            item = decode_work(delivery.data, subject="the work stream")
            if not self._is_reply(item.reply_to):
                raise MalformedWorkItem(f"{item.reply_to[:80]!r} is no reply subject of this fabric")
        except MalformedMessage as exc:
            self._chore(self._give_up(delivery, exc, "", ""))
            return
        now_ms = time.time() * 1000
        if item.deadline_ms <= now_ms:
            self.stats.expired += 1
            delivery.ack()
            return
        if item.request_id in self._cancelled:
            self.stats.cancelled += 1
            delivery.ack()
            return
        if item.mode == "at_most_once" and item.routed_ms <= self._connection.server_changed_ms:
            delivery.ack()
            if item.request_id not in self._running:
                lost = BrokerRestarted("the broker restarted; this request may have run already")
                self._connection.publish_or_hold(item.reply_to.encode(), encode(problem_reply(lost, item.request_id)))
            return
        attempt = delivery.attempt
        if item.request_id in self._running:
            if attempt > 1:  # our own lease lapsed while the handler runs on: its reply settles both
                delivery.nak(delay_s=WORK_ACK_WAIT_S / 2)
            else:  # a router's repeat, stored a second time: the run under way answers for it
                delivery.ack()
            return
        if attempt > 1:
            self.stats.redelivered += 1
            if attempt > MAX_ATTEMPTS:
                error = PoisonMessage(f"started {attempt - 1} times and never finished")
                self._chore(self._give_up(delivery, error, item.request_id, item.reply_to))
                return
        plan = self._plans.get(item.handler)
        if plan is None:
            delivery.nak(delay_s=_UNKNOWN_HANDLER_DELAY_S)
            log.error("handler_unknown", handler=item.handler, pool=self._pool)
            return
        self._begin(delivery, item, plan, attempt, now_ms)

    def _begin(self, delivery: DeliveryPort, item: WorkItem, plan: Plan, attempt: int, now_ms: float) -> None:
        slot = self._note(item, delivery, attempt, is_once=item.mode == "at_most_once")
        running = Running(self, delivery, item, now_ms + plan.call.timeout_s * 1000, self._loop.time(), slot)
        self._running[item.request_id] = running
        if running.is_once:
            delivery.ack_keeping_slot()
        work = self._run(running, plan, attempt)
        # Not through the loop's factory, which is there for the tasks of handlers.
        if _EAGER:
            # One turn of the loop less for a handler that never waits. Python 3.11 has no eager tasks.
            running.task = asyncio.Task(work, loop=self._loop, eager_start=True)  # type: ignore[call-arg,unused-ignore]
        else:
            running.task = asyncio.Task(work, loop=self._loop)

    def _note(self, item: WorkItem, delivery: DeliveryPort, attempt: int, *, is_once: bool) -> int:
        return self._ledger.open_entry(
            LedgerEntry(
                item.request_id,
                item.reply_to,
                item.handler,
                is_once,
                delivery.ack_subject,
                attempt,
                item.deadline_ms,
            )
        )

    # -- running it -----------------------------------------------------------------------------

    async def _run(self, running: Running, plan: Plan, attempt: int) -> None:
        running.has_begun = True
        if running.cancel_reason:
            self._settle_cancelled(running)
            return
        item = running.item
        run: HandlerRun | None = None
        try:
            descriptor = decode_descriptor(item.descriptor, subject="a work item")
            body, ticket = descriptor.body, descriptor.body_ticket
            if ticket:
                body = await self._fabric.bodies.take(ticket, keep=True)
            params, chain = item.params, None
            if item.hops:
                chain = await self._versions.chain(item.handler, item.hops)
                descriptor, params, body = await chain.inbound(self._lifecycle, descriptor, params, body)
            run = running.run = HandlerRun(
                self._lifecycle,
                plan,
                descriptor,
                params,
                body,
                attempt=attempt,
                routed_ms=item.routed_ms,
                control=running,
                deadline_ms=int(running.deadline_ms),
                tsv=item.tsv,
                source=item.source,
                chain=chain,
            )
            reply = await run.execute()
            if run.is_abandoned or running.is_forgotten:
                return  # somebody else answers, or has answered
            if reply is not None and len(reply.body) > self._fabric.settings.claim_check_bytes:
                await self._check_in(reply)
            failure = run.failure
            if item.fallback and isinstance(failure, TransformFailed) and not (running.is_once and failure.has_run):
                await self._fall_back(running, failure)
                return
            if ticket:
                self._chore(self._fabric.bodies.drop(ticket))
            self._conclude(running, reply)
        except asyncio.CancelledError:
            if not running.is_forgotten and not (run is not None and run.is_abandoned):
                self._settle_cancelled(running)
        except TransformFailed as exc:  # of the request: the handler has not begun
            if item.fallback:
                await self._fall_back(running, exc)
            else:
                log.error("transform_failed", request_id=item.request_id, handler=item.handler, error=str(exc))
                self._finish(running, problem_reply(exc.for_clients(), item.request_id))
        except MalformedMessage as exc:
            self._forget(running)
            self._chore(self._give_up(running.delivery, exc, item.request_id, item.reply_to))
        except TransientError as exc:
            if not running.is_once:
                self._forget(running)
                running.delivery.nak(delay_s=0.5 * attempt)
            else:
                self._finish(running, problem_reply(exc, item.request_id))
        except PermanentError as exc:
            self._finish(running, problem_reply(exc, item.request_id))
        except Exception:  # a bug of ours: the client gets its answer all the same
            log.exception("execution_failed", request_id=item.request_id, handler=item.handler)
            self._finish(running, problem_reply(GatiError("The worker failed."), item.request_id))
        finally:
            if run is not None and run.needs_cleanup and not run.is_abandoned:
                task = asyncio.current_task()
                if task is not None:  # the request is answered and forgotten; a drain still waits for this
                    self._chores.add(task)
                    task.add_done_callback(self._chores.discard)
                await run.cleanup()

    async def _fall_back(self, running: Running, error: TransformFailed) -> None:
        """The client's own version runs, with the request as it came: no transformer is in the way there.

        Not when an answer could not be translated and the handler may run only once: it has run.
        """
        item = running.item
        log.error(
            "transform_failed",
            request_id=item.request_id,
            handler=item.handler,
            error=str(error),
            hint=f"version {item.hops[0]} runs instead",
        )
        self.stats.fallbacks += 1
        headers = [pair for pair in item.version_headers if pair[0] != "x-gati-handler-version"]
        again = msgspec.structs.replace(item, tsv=item.hops[0], hops=[], fallback="", version_headers=headers)
        try:
            await self._fabric.publisher.send(item.fallback, encode(again), message_id=f"{item.request_id}-fallback")
        except GatiError as exc:
            log.error("fallback_failed", request_id=item.request_id, error=str(exc))
            self._finish(running, problem_reply(error.for_clients(), item.request_id))
            return
        subjects = self._fabric.subjects
        self._fabric.connection.publish_or_hold(subjects.wake(subjects.pool_of(item.fallback)).encode(), b"")
        self._drop(running)

    def _conclude(self, running: Running, reply: Reply | None) -> None:
        """Settle what a run came to."""
        if running.cancel_reason:
            self.stats.cancelled += 1
        if running.channel is not None:
            self.stats.replied += 1
            self._forget(running)
        elif reply is None:
            self._drop(running)
        elif (
            running.cancel_reason == "leaving"
            and not running.is_once
            and reply.error is not None
            and reply.error.code == ShuttingDown.code
        ):
            running.delivery.nak()  # what was cut off here runs again elsewhere
            self._forget(running)
        else:
            self._finish(running, reply)

    def begin_answer(self, running: Running, reply: Reply, channel: Channel) -> None:
        """The head of a stream or the acceptance of a socket leaves: nobody else may run this now.

        Raises:
            TooManyChannels: as many are open as may be.
            BrokerUnavailable: the head could not be sent.
        """
        if self._channels >= self._max_channels:
            raise TooManyChannels(f"{self._channels} streams and sockets are open, as many as this worker holds")
        reply.headers += running.item.version_headers
        self._connection.publish_now(running.item.reply_to.encode(), encode(reply))
        running.channel = channel
        self._count_version(running.item, reply.status, time.perf_counter() - running.began_at)
        self._channels += 1
        # Over once the client has gone: a stream at once, a socket's handler may see it and finish.
        channel.on_lost = lambda _reason: self._client_lost(running)
        running.deadline_ms = running.own_deadline_ms
        running.is_own_limit = True
        if not running.is_once:
            running.delivery.ack_keeping_slot()
            running.is_once = True
            self._ledger.clear(running.slot)
            running.slot = self._note(running.item, running.delivery, running.delivery.attempt, is_once=True)
        # It may be open for hours: the place is for the next request.
        running.delivery.release()

    def _count_version(self, item: WorkItem, status: int, seconds: float) -> None:
        key = (item.handler, item.tsv)
        counts = self.by_version.get(key)
        if counts is None:
            counts = self.by_version[key] = VersionCounts(handler=item.handler, version=item.tsv)
        counts.add(status, seconds)

    def _client_lost(self, running: Running) -> None:
        if running.run is not None and running.run.plan.call.is_websocket:
            running.lost_at = self._loop.time()
        else:
            self._cancel(running, "client_gone")

    async def _check_in(self, reply: Reply) -> None:
        reply.body_ticket = await self._fabric.bodies.put(f"{reply.request_id}-reply", reply.body)
        reply.body = b""

    def _finish(self, running: Running, reply: Reply) -> None:
        stats = self.stats
        stats.replied += 1
        counts = self.by_handler[running.item.handler]
        seconds = time.perf_counter() - running.began_at
        counts.answers += 1
        counts.seconds += seconds
        self._count_version(running.item, reply.status, seconds)
        if reply.status >= 500:
            stats.failed += 1
            counts.errors += 1
        reply_to = running.item.reply_to.encode()
        reply.headers += running.item.version_headers
        try:
            self._connection.publish_or_hold(reply_to, encode(reply))
        except MessageTooLarge as exc:  # large bodies go through the object store: these are headers
            log.error("reply_too_large", request_id=reply.request_id, handler=running.item.handler, error=str(exc))
            refusal = GatiError("The handler's answer is too large to be sent.")
            self._connection.publish_or_hold(reply_to, encode(problem_reply(refusal, reply.request_id, reply.timing)))
        self._settle_delivery(running)
        self._forget(running)

    @staticmethod
    def _settle_delivery(running: Running) -> None:
        if not running.is_once:
            running.delivery.ack()
        elif running.channel is None:  # else it was released when the answer began
            running.delivery.release()

    def _settle_cancelled(self, running: Running) -> None:
        """Cancelled before the handler had begun, or while its answer was being stored."""
        reason = running.cancel_reason
        self.stats.cancelled += 1
        if reason == "deadline":
            error: GatiError = DeadlineExceeded("the handler did not finish before the deadline")
            self._finish(running, problem_reply(error, running.item.request_id))
        elif not reason:  # a cancellation of the handler's own that struck only now: nobody has left
            log.error("handler_cancelled_itself", request_id=running.item.request_id, handler=running.item.handler)
            self._finish(running, problem_reply(GatiError("The handler failed."), running.item.request_id))
        elif reason != "leaving":
            self._drop(running)
        elif running.is_once:
            error = ShuttingDown("the worker had to leave before the handler finished")
            self._finish(running, problem_reply(error, running.item.request_id))
        else:
            running.delivery.nak()
            self._forget(running)

    def _drop(self, running: Running) -> None:
        """Nobody waits for an answer."""
        self._settle_delivery(running)
        self._forget(running)

    def _forget(self, running: Running) -> None:
        if running.is_forgotten:
            return
        if running.channel is not None:
            self._channels -= 1
        running.is_forgotten = True
        running.run = None  # which refers back: without this, only the garbage collector would free them
        self._running.pop(running.item.request_id, None)
        # Cleared only after this turn's flush: the reply is in the kernel's hands by then.
        if not self._done_slots:
            self._loop.call_soon(self._clear_slots)
        self._done_slots.append(running.slot)

    def _clear_slots(self) -> None:
        for slot in self._done_slots:
            self._ledger.clear(slot)
        self._done_slots.clear()

    async def _give_up(self, delivery: DeliveryPort, error: GatiError, request_id: str, reply_to: str) -> None:
        """Dead letter, answer, and only then term."""
        self.stats.dead += 1
        try:
            await self._fabric.dead_letters.bury(
                stage="work",
                pool=self._pool,
                subject=delivery.subject.decode(errors="replace"),
                data=delivery.data,
                error=error,
                attempts=delivery.attempt,
                request_id=request_id,
                headers=delivery.header_fields(),
            )
        except TransientError as exc:
            log.warning("dead_letter_delayed", error=str(exc))
            delivery.nak(delay_s=1.0)
            return
        if reply_to:
            self._connection.publish_or_hold(reply_to.encode(), encode(problem_reply(error, request_id)))
        delivery.term()
        log.error("work_dead_lettered", request_id=request_id, pool=self._pool, error=str(error))

    # -- around it ------------------------------------------------------------------------------

    def on_cancel(self, _subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        """Somebody gave up waiting: stop the handler, or do not start it."""
        try:
            cancel = decode_cancel(data)
        except GatiError as exc:
            log.warning("cancel_refused", error=str(exc))
            return
        running = self._running.get(cancel.request_id)
        if running is not None:
            self._cancel(running, cancel.reason or "cancelled")
            return
        if len(self._cancelled) >= _REMEMBER_CANCELS:
            del self._cancelled[next(iter(self._cancelled))]
        self._cancelled[cancel.request_id] = None

    def tick(self, now: float) -> None:
        """Deadlines and leases, looked at every 50 ms instead of one timer per request."""
        now_ms = time.time() * 1000
        for running in list(self._running.values()):
            if running.cancel_reason:
                if not running.is_settling and now - running.cancelled_at > _CANCEL_AGAIN_S:
                    self._insist(running, now)
            elif running.deadline_ms <= now_ms:
                self._cancel(running, "deadline")
            elif running.lost_at and now - running.lost_at > _SOCKET_GRACE_S:
                self._cancel(running, "client_gone")
            if not running.is_once and now - running.leased_at > WORK_ACK_WAIT_S / 3:
                running.leased_at = now
                running.delivery.in_progress()

    def _cancel(self, running: Running, reason: str) -> None:
        if running.cancel_reason:
            return
        running.cancel_reason = reason
        running.cancelled_at = self._loop.time()
        # A task cancelled before its first step never runs any of its code, not even the settling.
        if running.has_begun and running.task is not None and not running.is_settling:
            running.task.cancel()

    def _insist(self, running: Running, now: float) -> None:
        """The handler has swallowed its cancellation: cancel again, and at last go on without it."""
        task, run = running.task, running.run
        if task is None or not running.has_begun:
            return
        if now - running.cancelled_at < _ABANDON_AFTER_S or run is None:
            task.cancel()
            return
        run.abandon()
        self.stats.abandoned += 1
        self._deaf.add(task)
        task.add_done_callback(self._deaf.discard)
        running.is_settling = True
        self._chore(self._settle_abandoned(running, run))

    async def _settle_abandoned(self, running: Running, run: HandlerRun) -> None:
        try:
            self._conclude(running, await run.give_up())
        finally:
            await run.cleanup()

    async def drain(self, *, grace_s: float) -> None:
        """Let running handlers finish, then cancel the rest; returns when nothing runs."""
        give_up_at = self._loop.time() + grace_s
        spawned = self._lifecycle.gctx.spawned
        while self._running or self._chores or self._lifecycle.detached or spawned:
            tasks: list[asyncio.Task[Any]] = [running.task for running in self._running.values() if running.task]
            tasks += [*self._chores, *self._lifecycle.detached, *spawned]
            left_s = give_up_at - self._loop.time()
            if left_s <= 0:
                break
            await asyncio.wait(tasks, timeout=left_s)
        leftover = [running.task for running in self._running.values() if running.task]
        if leftover:
            log.warning("handlers_cut_off", count=len(leftover), grace_s=grace_s)
            for running in list(self._running.values()):
                if running.is_settling and running.task is not None:
                    running.task.cancel()
                self._cancel(running, "leaving")
            await asyncio.wait(leftover, timeout=_SETTLE_WITHIN_S)
        loose = [*self._lifecycle.detached, *spawned]
        for task in loose:
            task.cancel()
        if loose:
            log.warning("tasks_cut_off", tasks=sorted(task.get_name() for task in loose)[:10], grace_s=grace_s)
            await asyncio.wait(loose, timeout=_SETTLE_WITHIN_S)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.Task(work, loop=self._loop)  # not the loop's factory: it is no task of a handler's
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
