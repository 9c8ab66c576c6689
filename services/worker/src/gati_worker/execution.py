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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import structlog

from gati_core import App
from gati_core.contexts import GlobalContext
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
    TransientError,
)
from gati_core.fabric import DeliveryPort, Fabric
from gati_core.fabric.topology import MAX_ATTEMPTS, WORK_ACK_WAIT_S
from gati_core.lifecycle import HandlerCall, error_reply, run_handler
from gati_core.wire import (
    Reply,
    WorkItem,
    decode_cancel,
    decode_descriptor,
    decode_work,
    encode,
    problem_reply,
)
from gati_worker.ledger import CrashLedger, LedgerEntry

log = structlog.get_logger(__name__)

_REMEMBER_CANCELS = 10_000
_UNKNOWN_HANDLER_DELAY_S = 0.5
_EAGER = sys.version_info >= (3, 12)


class ExecutionStats(msgspec.Struct):
    """Plain counters, read by the announcements."""

    received: int = 0
    replied: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    redelivered: int = 0
    dead: int = 0


class _Running:
    __slots__ = (
        "cancel_reason",
        "deadline_ms",
        "delivery",
        "has_begun",
        "is_once",
        "item",
        "leased_at",
        "slot",
        "task",
    )

    def __init__(self, delivery: DeliveryPort, item: WorkItem, deadline_ms: float, leased_at: float, slot: int) -> None:
        self.delivery = delivery
        self.item = item
        self.deadline_ms = deadline_ms
        self.leased_at = leased_at
        self.slot = slot
        self.is_once = item.mode == "at_most_once"
        self.cancel_reason = ""
        self.has_begun = False
        self.task: asyncio.Task[None] | None = None


class Executor:
    """Runs what the pull consumers deliver. See the module."""

    def __init__(
        self, *, app: App, pool: str, fabric: Fabric, gctx: GlobalContext, ledger: CrashLedger, threads: int
    ) -> None:
        self._calls: dict[str, HandlerCall] = {name: handler.call for name, handler in app.handlers.items()}
        self._pool = pool
        self._fabric = fabric
        self._connection = fabric.connection
        self._is_reply = fabric.subjects.is_reply
        self._gctx = gctx
        self._ledger = ledger
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="handler")
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, _Running] = {}
        self._cancelled: dict[str, None] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._done_slots: list[int] = []
        self.stats = ExecutionStats()

    @property
    def in_flight(self) -> int:
        """Requests whose handler has started and not been answered."""
        return len(self._running)

    # -- taking work ----------------------------------------------------------------------------

    def on_delivery(self, delivery: DeliveryPort) -> None:
        """Called by the pull consumers for every message: decide, and start the handler."""
        self.stats.received += 1
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
        call = self._calls.get(item.handler)
        if call is None:
            delivery.nak(delay_s=_UNKNOWN_HANDLER_DELAY_S)
            log.error("handler_unknown", handler=item.handler, pool=self._pool)
            return
        self._begin(delivery, item, call, attempt, now_ms)

    def _begin(self, delivery: DeliveryPort, item: WorkItem, call: HandlerCall, attempt: int, now_ms: float) -> None:
        deadline_ms = min(float(item.deadline_ms), now_ms + call.timeout_s * 1000)
        is_once = item.mode == "at_most_once"
        slot = self._ledger.open_entry(
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
        running = _Running(delivery, item, deadline_ms, self._loop.time(), slot)
        self._running[item.request_id] = running
        if is_once:
            delivery.ack_keeping_slot()
        work = self._run(running, call, attempt)
        if _EAGER:
            # One turn of the loop less for a handler that never waits. Python 3.11 has no eager tasks.
            running.task = asyncio.Task(work, loop=self._loop, eager_start=True)  # type: ignore[call-arg,unused-ignore]
        else:
            running.task = self._loop.create_task(work)

    # -- running it -----------------------------------------------------------------------------

    async def _run(self, running: _Running, call: HandlerCall, attempt: int) -> None:
        running.has_begun = True
        if running.cancel_reason:
            self._settle_cancelled(running)
            return
        item = running.item
        try:
            descriptor = decode_descriptor(item.descriptor, subject="a work item")
            body = descriptor.body
            if descriptor.body_ticket:
                body = await self._fabric.bodies.take(descriptor.body_ticket, keep=True)
            reply = await run_handler(
                call,
                descriptor,
                item.params,
                body,
                self._gctx,
                attempt=attempt,
                routed_ms=item.routed_ms,
                threads=self._threads,
            )
            if len(reply.body) > self._fabric.settings.claim_check_bytes:
                await self._check_in(reply)
            if descriptor.body_ticket:
                self._chore(self._fabric.bodies.drop(descriptor.body_ticket))
        except asyncio.CancelledError:
            self._settle_cancelled(running)
            return
        except MalformedMessage as exc:
            self._forget(running)
            self._chore(self._give_up(running.delivery, exc, item.request_id, item.reply_to))
            return
        except TransientError as exc:
            if not running.is_once:
                self._forget(running)
                running.delivery.nak(delay_s=0.5 * attempt)
                return
            reply = problem_reply(exc, item.request_id)
        except PermanentError as exc:
            reply = problem_reply(exc, item.request_id)
        except Exception as exc:  # a bug of ours: the client gets its answer all the same
            reply = error_reply(exc, item.request_id, handler=item.handler)
        self._finish(running, reply)

    async def _check_in(self, reply: Reply) -> None:
        reply.body_ticket = await self._fabric.bodies.put(f"{reply.request_id}-reply", reply.body)
        reply.body = b""

    def _finish(self, running: _Running, reply: Reply) -> None:
        stats = self.stats
        stats.replied += 1
        if reply.status >= 500:
            stats.failed += 1
        reply_to = running.item.reply_to.encode()
        try:
            self._connection.publish_or_hold(reply_to, encode(reply))
        except MessageTooLarge as exc:  # large bodies go through the object store: these are headers
            log.error("reply_too_large", request_id=reply.request_id, handler=running.item.handler, error=str(exc))
            refusal = GatiError("The handler's answer is too large to be sent.")
            self._connection.publish_or_hold(reply_to, encode(problem_reply(refusal, reply.request_id, reply.timing)))
        if running.is_once:
            running.delivery.release()
        else:
            running.delivery.ack()
        self._forget(running)

    def _settle_cancelled(self, running: _Running) -> None:
        """The deadline passed, the client left, or this process must go."""
        reason = running.cancel_reason
        if reason == "deadline":
            self.stats.cancelled += 1
            error: GatiError = DeadlineExceeded("the handler did not finish before the deadline")
            self._finish(running, problem_reply(error, running.item.request_id))
        elif not reason:
            # Nobody cancelled this request: the handler let a cancellation of its own escape.
            bug = RuntimeError("the handler raised CancelledError")
            self._finish(running, error_reply(bug, running.item.request_id, handler=running.item.handler))
        elif reason != "leaving":
            self.stats.cancelled += 1
            if running.is_once:
                running.delivery.release()
            else:
                running.delivery.ack()
            self._forget(running)
        elif running.is_once:
            error = ShuttingDown("the worker had to leave before the handler finished")
            self._finish(running, problem_reply(error, running.item.request_id))
        else:
            running.delivery.nak()
            self._forget(running)

    def _forget(self, running: _Running) -> None:
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
            if running.deadline_ms <= now_ms:
                self._cancel(running, "deadline")
            elif not running.is_once and now - running.leased_at > WORK_ACK_WAIT_S / 3:
                running.leased_at = now
                running.delivery.in_progress()

    @staticmethod
    def _cancel(running: _Running, reason: str) -> None:
        if running.cancel_reason:
            return
        running.cancel_reason = reason
        # A task cancelled before its first step never runs any of its code, not even the settling.
        if running.has_begun and running.task is not None:
            running.task.cancel()

    async def drain(self, *, grace_s: float) -> None:
        """Let running handlers finish, then cancel the rest; returns when nothing runs."""
        give_up_at = self._loop.time() + grace_s
        while self._running or self._chores:
            tasks = [running.task for running in self._running.values() if running.task] + list(self._chores)
            left_s = give_up_at - self._loop.time()
            if left_s <= 0:
                break
            await asyncio.wait(tasks, timeout=left_s)
        leftover = [running.task for running in self._running.values() if running.task]
        if leftover:
            log.warning("handlers_cut_off", count=len(leftover), grace_s=grace_s)
            for running in list(self._running.values()):
                self._cancel(running, "leaving")
            await asyncio.wait(leftover, timeout=2.0)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
