"""The backstop for messages that the server gave up on.

A message delivered `max_deliver` times stays in its stream for ever, invisible; the server only
says so once, in an advisory (F3). A stream keeps those advisories, and every router helps to act on
them: copy the message to the dead letters, answer its client, delete it.

For at-most-once handlers this is an ordinary path, not an accident: their messages are delivered
once, and one that its worker did not acknowledge in time ends here, with a 502 to the client.
"""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from gati_core.errors import GatiError, MalformedMessage, PoisonMessage, TransientError, WorkerCrashed
from gati_core.fabric import DeliveryPort, Fabric, PullConsumer
from gati_core.fabric.stored import StoredMessage, delete_stored, read_stored
from gati_core.wire import decode_routing, decode_work, encode, problem_reply

log = structlog.get_logger(__name__)


class _Advisory(msgspec.Struct):
    stream: str
    consumer: str
    stream_seq: int
    deliveries: int = 0


class AdvisoryMover:
    """Moves what the server gave up on to the dead letters. One per router; they share the work."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._tasks: set[asyncio.Task[None]] = set()
        self._consumer = PullConsumer(
            fabric.connection,
            stream=fabric.subjects.advisory_stream,
            durable=fabric.subjects.advisory_consumer,
            capacity=16,
            on_delivery=self._on_delivery,
        )
        self.moved = 0

    async def start(self) -> None:
        """Begin to take advisories."""
        await self._consumer.start()

    async def stop(self) -> None:
        """Take no more, and finish those begun (at most two seconds)."""
        await self._consumer.stop_pulling()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=2.0)

    def _on_delivery(self, delivery: DeliveryPort) -> None:
        task = asyncio.get_running_loop().create_task(self._move(delivery))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _move(self, delivery: DeliveryPort) -> None:
        try:
            advisory = msgspec.json.decode(delivery.data, type=_Advisory)
        except msgspec.DecodeError as exc:
            log.error("advisory_unreadable", error=str(exc))
            delivery.term()
            return
        try:
            message = await read_stored(self._fabric.connection, advisory.stream, advisory.stream_seq)
            if message is not None:
                await self._bury(advisory, message)
                await delete_stored(self._fabric.connection, advisory.stream, advisory.stream_seq)
                self.moved += 1
        except TransientError as exc:
            log.warning("dead_letter_delayed", stream=advisory.stream, error=str(exc))
            delivery.nak(delay_s=1.0)
            return
        delivery.ack()

    async def _bury(self, advisory: _Advisory, message: StoredMessage) -> None:
        is_work = advisory.stream == self._fabric.subjects.work_stream
        error: GatiError
        if is_work and advisory.deliveries <= 1:
            error = WorkerCrashed("the worker that took this request did not finish it; it is not run again")
        else:
            error = PoisonMessage(f"delivered {advisory.deliveries} times and never finished")
        request_id = reply_to = ""
        try:
            head = (
                decode_work(message.data, subject=message.subject)
                if is_work
                else decode_routing(message.data, subject=message.subject)
            )
            request_id, reply_to = head.request_id, head.reply_to
        except MalformedMessage:
            pass  # it goes to the dead letters as it is; there is nobody to answer
        tokens = message.subject.split(".")
        await self._fabric.dead_letters.bury(
            stage="work" if is_work else "req",
            pool=tokens[2] if is_work and len(tokens) > 2 else "-",
            subject=message.subject,
            data=message.data,
            error=error,
            attempts=advisory.deliveries,
            request_id=request_id,
            headers=message.headers,
        )
        if self._fabric.subjects.is_reply(reply_to):
            reply = problem_reply(error, request_id)
            self._fabric.connection.publish_or_hold(reply_to.encode(), encode(reply))
        log.error("request_dead_lettered", request_id=request_id, subject=message.subject, error=str(error))
