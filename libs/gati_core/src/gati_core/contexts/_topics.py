"""Publish and subscribe: the topics of a fabric, and those of one request.

An event on a *global* topic reaches whoever listens to it now, in every process. Published durably,
it is kept as well, and each durable group works through it (`_topic_host`). An event of a *request*
reaches only who listens to that request's topic, in whichever process.

All of it stands on a `TopicPort`: the broker's is `gati_core.fabric.FabricTopics`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Awaitable, Generator
from typing import Any

import msgspec

from gati_core.contexts._subscriptions import QUEUE_LIMIT, Callback, Subscription, SubscriptionOwner, TopicPort
from gati_core.errors import BrokerUnavailable, EventTimeout, GatiError, MessageTooLarge, TopicError
from gati_core.wire import PROTOCOL, TopicMessage, encode
from gati_core.wire.subjects import TOKEN

HEAD_ROOM_BYTES = 16 * 1024
"""Bytes of the broker's largest message that an event leaves free: a dead letter adds its cause in headers."""
MAX_SUBSCRIPTIONS = 10_000
"""Open subscriptions of one process; of one request, `MAX_REQUEST_SUBSCRIPTIONS`."""
MAX_REQUEST_SUBSCRIPTIONS = 256
_LOOP_WITHIN_S = 5.0
_ID_BYTES = 200


class Topics:
    """The topics of one process; what `gctx` stands on. Made in the event loop that it is used from.

    Args:
        publisher: this process's instance id.
    """

    __slots__ = ("_loop", "_owner", "_port", "publisher")

    def __init__(self, port: TopicPort, *, publisher: str) -> None:
        self._port = port
        self.publisher = publisher
        self._owner = SubscriptionOwner("this process", MAX_SUBSCRIPTIONS)
        self._loop = asyncio.get_running_loop()

    def publish(self, topic: str, payload: Any, *, request_id: str = "") -> None:
        """Send an event to whoever listens now. May be called from a handler's thread.

        Args:
            topic: a name without dots: letters, digits, `_` and `-`.
            payload: anything that msgspec encodes.
            request_id: publish it on that request's topic instead of the global one.
        Raises:
            BrokerUnavailable: the broker is away; nothing was sent.
            MessageTooLarge: the event is larger than the broker takes.
            TopicError: the name or the payload cannot be used.
        """
        subject = self._subject(topic, request_id)
        self._send_now(subject, self._encoded(topic, payload, request_id))

    async def publish_durable(self, topic: str, payload: Any, message_id: str = "") -> None:
        """Send an event that is kept for a day, for the durable groups; returns when it is stored.

        Those who listen now get it as well. They get it even when it is then refused, and again when
        it is published again: only groups are sure of each event once per id.

        Args:
            message_id: the same id within 30 seconds is stored once.
        Raises:
            Backpressure: the topic stream is full.
            BrokerUnavailable, PublishUnconfirmed: the broker is away, or did not confirm.
            MessageTooLarge, TopicError: as `publish`.
        """
        if len(message_id.encode(errors="replace")) > _ID_BYTES or not (message_id.isprintable()):
            raise TopicError(f"a message id is printable text of at most {_ID_BYTES} bytes, not {message_id[:80]!r}")
        subject = self._port.subjects.topic_durable(topic_name(topic))
        await self._port.send(subject, self._encoded(topic, payload, ""), message_id)

    def subscribe(
        self,
        topic: str,
        callback: Callback | None = None,
        *,
        type: Any = None,
        limit: int = QUEUE_LIMIT,
        request_id: str = "",
    ) -> Subscription:
        """Listen to a topic, or to a request's, once the result is opened.

        Args:
            callback: called with one event after another instead of iterating; what it raises is logged.
            type: what payloads are read as; an event that does not fit is dropped and counted.
            limit: events kept while nobody takes them.
        Raises:
            TopicError: the name, the type or the limit cannot be used, or too many are open.
        """
        subjects: tuple[str, ...] = (self._subject(topic, request_id),)
        if not request_id:
            subjects += (self._port.subjects.topic_durable(topic),)
        return Subscription(self._port, topic, subjects, callback, type, limit, self._owner)

    def local(self, request_id: str) -> LocalTopics:
        """The topics of one request; close them when the request ends."""
        return LocalTopics(self, request_id)

    async def aclose(self) -> None:
        """Close every subscription that is still open; none can be opened any more."""
        await self._owner.aclose()

    # -- what LocalTopics and RequestEvents share ----------------------------------------------

    def _subject(self, topic: str, request_id: str) -> str:
        subjects = self._port.subjects
        name = topic_name(topic)
        return subjects.local(_request_token(request_id), name) if request_id else subjects.topic(name)

    def _send_now(self, subject: str, data: bytes) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._port.publish(subject, data)
            return
        # A plain handler runs in a thread, and the connection belongs to the loop's.
        outcome: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(_publish_for, outcome, self._port, subject, data)
        try:
            outcome.result(_LOOP_WITHIN_S)
        except concurrent.futures.TimeoutError:
            outcome.cancel()
            raise BrokerUnavailable(f"the event loop did not take an event within {_LOOP_WITHIN_S:g} s") from None

    def _encoded(self, topic: str, payload: Any, request_id: str) -> bytes:
        try:
            value = encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise TopicError(f"the payload of an event on {topic!r} cannot be encoded: {exc}") from exc
        now_ms = time.time_ns() // 1_000_000
        data = encode(TopicMessage(PROTOCOL, topic, now_ms, self.publisher, request_id, value))
        most = self._port.max_payload - HEAD_ROOM_BYTES
        if len(data) > most:
            raise MessageTooLarge(f"an event of {len(data)} bytes on {topic!r} exceeds the {most} that a topic takes")
        return data


class LocalTopics:
    """The topics of one request: `lctx.publish` and `lctx.subscribe`."""

    __slots__ = ("_events", "_owner", "_topics", "request_id")

    def __init__(self, topics: Topics, request_id: str) -> None:
        self._topics = topics
        self.request_id = _request_token(request_id)
        self._owner = SubscriptionOwner(f"request {request_id}", MAX_REQUEST_SUBSCRIPTIONS)
        self._events: RequestEvents | None = None

    @property
    def events(self) -> RequestEvents:
        """Waiting for events of this request, and answering such waits: `lctx.websocket`."""
        if self._events is None:
            self._events = RequestEvents(self)
        return self._events

    def publish(self, event: str, payload: Any) -> None:
        """Send an event to who listens to this request's topic, wherever; see `Topics.publish`."""
        self._topics.publish(event, payload, request_id=self.request_id)

    def subscribe(
        self, event: str, callback: Callback | None = None, *, type: Any = None, limit: int = QUEUE_LIMIT
    ) -> Subscription:
        """Listen to a topic of this request, until its end at the latest; see `Topics.subscribe`."""
        return self._listen(event, self._topics._subject(event, self.request_id), callback, type, limit)

    async def aclose(self) -> None:
        """Close what is still open; afterwards nothing can be subscribed to."""
        await self._owner.aclose()

    def _listen(self, name: str, subject: str, callback: Callback | None, type: Any, limit: int) -> Subscription:
        return Subscription(self._topics._port, name, (subject,), callback, type, limit, self._owner)


class RequestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What `wait_for_event` resolves with."""

    type: str
    request_id: str
    data: Any
    timestamp: int
    """Unix milliseconds at which it was emitted."""


class _Done:
    """Awaited, it is over at once."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()


class RequestEvents:
    """Waiting for an event of the same request, and emitting one, in whichever process."""

    __slots__ = ("_local",)

    def __init__(self, local: LocalTopics) -> None:
        self._local = local

    async def wait_for_event(self, type: str, timeout_s: float = 30.0) -> RequestEvent:
        """The next event of this type; an earlier one does not count.

        Args:
            type: a name without dots: letters, digits, `_` and `-`.
        Raises:
            EventTimeout: it did not come within `timeout_s`.
            BrokerUnavailable: the broker is away.
            TopicError: the type cannot be used, or the request has ended.
        """
        request_id = self._local.request_id
        subscription = self._local._listen(type, self._subject(type, request_id), None, None, 1)
        try:
            async with asyncio.timeout(timeout_s):
                await subscription
                event = await subscription._next()
        except TimeoutError:
            raise EventTimeout(f"request {request_id} waited {timeout_s:g} s for event {type!r} in vain") from None
        finally:
            await subscription.aclose()
        if event is None:
            raise TopicError(f"request {request_id} ended while it waited for event {type!r}")
        return RequestEvent(type=type, request_id=request_id, data=event.payload, timestamp=event.published_ms)

    def emit_event(self, type: str, data: Any = None, *, request_id: str = "") -> Awaitable[None]:
        """Resolve those who wait for this type now. It is done when this returns; it may be awaited as well, as
        that of a socket must be.

        Args:
            request_id: address another request's waiters.
        Raises:
            BrokerUnavailable, MessageTooLarge, TopicError: as `Topics.publish`.
        """
        topics, request_id = self._local._topics, request_id or self._local.request_id
        topics._send_now(self._subject(type, request_id), topics._encoded(type, data, request_id))
        return _DONE

    def _subject(self, type: str, request_id: str) -> str:
        subjects = self._local._topics._port.subjects
        return subjects.local_event(_request_token(request_id), topic_name(type, "event type"))


def topic_name(name: str, what: str = "topic") -> str:
    """`name` if it can name a topic.

    >>> topic_name("order.placed")
    Traceback (most recent call last):
    gati_core.errors.TopicError: topic 'order.placed' must be 1 to 64 letters, digits, '_' or '-', and start with \
a letter or digit: name it like 'order-placed' or 'order_placed', without dots, spaces or wildcards
    """
    if TOKEN.fullmatch(name) is None:
        raise TopicError(
            f"{what} {name!r} must be 1 to 64 letters, digits, '_' or '-', and start with a letter or digit:"
            " name it like 'order-placed' or 'order_placed', without dots, spaces or wildcards"
        )
    return name


def _request_token(request_id: str) -> str:
    if TOKEN.fullmatch(request_id) is None:
        raise TopicError(f"{request_id!r} is no request id")
    return request_id


def _publish_for(outcome: concurrent.futures.Future[None], port: TopicPort, subject: str, data: bytes) -> None:
    if not outcome.set_running_or_notify_cancel():
        return  # the thread gave up waiting
    try:
        port.publish(subject, data)
    except GatiError as exc:
        outcome.set_exception(exc)
    else:
        outcome.set_result(None)
