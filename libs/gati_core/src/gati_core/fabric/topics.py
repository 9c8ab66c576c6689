"""Topics on the broker: live ones over plain messages, durable ones over the topic stream.

What they mean to a handler is `gati_core.contexts`' business; this is the port below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from gati_core.errors import GatiError, PermanentError, PoisonMessage, TransientError
from gati_core.fabric._fabric import Fabric
from gati_core.fabric.connection import Subscription
from gati_core.fabric.pull import Delivery, PullConsumer
from gati_core.fabric.topology import MAX_ATTEMPTS, TOPIC_ACK_WAIT_S
from gati_core.wire import Subjects

log = structlog.get_logger(__name__)

_RENEW_EVERY_S = TOPIC_ACK_WAIT_S / 4
_FINISH_WITHIN_S = 5.0
_BURY_AGAIN_S = 1.0


def retry_delay_s(error: Exception, attempt: int) -> float | None:
    """Seconds until a failed event is tried again, or None when it is a dead letter."""
    if isinstance(error, PermanentError) or attempt >= MAX_ATTEMPTS:
        return None
    return 0.5 * attempt


class FabricTopics:
    """What `gati_core.contexts.Topics` needs of the broker; see `TopicPort` there."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._connection = fabric.connection

    @property
    def subjects(self) -> Subjects:
        """The names of the namespace."""
        return self._fabric.subjects

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have, headers included."""
        return self._connection.max_payload

    def publish(self, subject: str, payload: bytes) -> None:
        """Send without confirmation.

        Raises:
            BrokerUnavailable: the broker is away; nothing was sent.
            MessageTooLarge: more than the broker takes.
        """
        self._connection.publish_now(subject.encode(), payload)

    async def send(self, subject: str, payload: bytes, message_id: str) -> None:
        """Store in the topic stream; a non-empty id is stored once within the duplicate window.

        Raises:
            Backpressure: the stream is full.
            BrokerUnavailable, PublishUnconfirmed, PublishRefused, MessageTooLarge: as the publisher says.
        """
        await self._fabric.publisher.send(subject, payload, message_id=message_id)

    async def subscribe(self, subject: str, callback: Callable[[bytes], None]) -> Subscription:
        """Call `callback` with each payload, across reconnects.

        Raises:
            BrokerUnavailable: the broker is away; nothing was subscribed.
        """
        self._connection.require_up(f"subscribing to {subject}")
        return await self._connection.subscribe(subject, lambda _subject, _reply, data, _headers: callback(data))

    async def flush(self) -> None:
        """Return when the broker knows of every subscription so far.

        Raises:
            BrokerUnavailable: it did not answer.
        """
        await self._connection.flush()

    async def subscribe_durable(
        self,
        app: str,
        group: str,
        topic: str,
        callback: Callable[[bytes, int], Awaitable[None]],
        *,
        concurrency: int = 1,
    ) -> DurableSubscription:
        """Take a share of a topic's durable events, `concurrency` at once.

        Raises:
            TopologyError, BrokerUnavailable: the group's consumer cannot be made, or is missing in `bind` mode.
        """
        durable = await self._fabric.topology.ensure_topic_group(app, group, topic)
        subscription = DurableSubscription(
            self._fabric,
            durable=durable,
            pool=self.subjects.group_name(app, group),
            callback=callback,
            concurrency=concurrency,
        )
        await subscription.start()
        return subscription


class DurableSubscription:
    """One process's membership in a durable group. Made by `FabricTopics.subscribe_durable`."""

    def __init__(
        self,
        fabric: Fabric,
        *,
        durable: str,
        pool: str,
        callback: Callable[[bytes, int], Awaitable[None]],
        concurrency: int,
    ) -> None:
        self._fabric = fabric
        self._pool = pool
        self._callback = callback
        self._running: dict[Delivery, asyncio.Task[None]] = {}
        self._renewed_at = 0.0
        self._consumer = PullConsumer(
            fabric.connection,
            stream=fabric.subjects.topic_stream,
            durable=durable,
            capacity=concurrency,
            on_delivery=self._on_delivery,
        )

    async def start(self) -> None:
        """Begin to pull."""
        await self._consumer.start()
        self._fabric.connection.on_tick(self._renew)

    async def aclose(self) -> None:
        """Take nothing new, let what runs finish within 5 s, and give back the rest."""
        try:
            await self._consumer.stop_pulling()
            if self._running:
                _, late = await asyncio.wait(list(self._running.values()), timeout=_FINISH_WITHIN_S)
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late, timeout=_FINISH_WITHIN_S)
        finally:
            self._fabric.connection.off(self._renew)

    def _on_delivery(self, delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(delivery))
        self._running[delivery] = task
        task.add_done_callback(lambda _task: self._running.pop(delivery, None))

    def _renew(self, now: float) -> None:
        if now - self._renewed_at >= _RENEW_EVERY_S:
            self._renewed_at = now
            for delivery in self._running:
                delivery.in_progress()

    async def _settle(self, delivery: Delivery) -> None:
        """Run, then ack, nak or bury: exactly one of the three."""
        attempt = delivery.attempt
        try:
            if attempt > MAX_ATTEMPTS:  # the members before us died of it
                raise PoisonMessage(f"delivered {attempt} times and never finished")
            await self._callback(delivery.data, attempt)
        except asyncio.CancelledError:
            delivery.nak()
            raise
        except Exception as exc:
            delay_s = retry_delay_s(exc, attempt)
            if delay_s is None:
                await self._bury(delivery, exc)
            else:
                log.warning("topic_event_naked", group=self._pool, attempt=attempt, delay_s=delay_s, error=repr(exc))
                delivery.nak(delay_s)
        else:
            delivery.ack()

    async def _bury(self, delivery: Delivery, cause: Exception) -> None:
        """Dead letter, and only then term."""
        error = cause if isinstance(cause, GatiError) else GatiError(f"{type(cause).__name__}: {cause}")
        try:
            await self._fabric.dead_letters.bury(
                stage="topic",
                pool=self._pool,
                subject=delivery.subject.decode(errors="replace"),
                data=delivery.data,
                error=error,
                attempts=delivery.attempt,
                headers=delivery.header_fields(),
            )
        except asyncio.CancelledError:
            delivery.nak()
            raise
        except TransientError as exc:
            log.warning("dead_letter_delayed", error=str(exc))
            delivery.nak(_BURY_AGAIN_S)
            return
        delivery.term()
        log.error("topic_event_dead_lettered", group=self._pool, attempt=delivery.attempt, exc_info=cause)
