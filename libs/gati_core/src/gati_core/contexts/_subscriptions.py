"""Subscriptions: what an event is, what topics need of a broker, and the queue of one subscriber.

Delivery to subscriptions is at most once, in the order of each publisher.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

import anyio
import msgspec
import structlog

from gati_core.contexts._tasks import ENDS_PROGRAMS
from gati_core.errors import EventTimeout, GatiError, TopicError
from gati_core.wire import Subjects, decode_topic

log = structlog.get_logger(__name__)

QUEUE_LIMIT = 256
"""Events that a subscription keeps for a slow reader, unless it asks for another number."""
_CLOSE_WITHIN_S = 2.0

Callback = Callable[["Event"], Any]
"""Called with each event; a coroutine function is awaited, a plain one must be quick."""
DurableCallback = Callable[[bytes, int], Awaitable[None]]
"""Called with an encoded `TopicMessage` and its attempt. Returning acks; raising asks for another attempt."""


class Closable(Protocol):
    """What `subscribe` of a port returns."""

    async def aclose(self) -> None:
        """Leave; what was already on its way may still be handled."""


class TopicPort(Protocol):
    """What topics need of a broker."""

    @property
    def subjects(self) -> Subjects:
        """The names of the namespace."""

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have, headers included."""

    def publish(self, subject: str, payload: bytes) -> None:
        """Send without confirmation; `BrokerUnavailable` when the broker is away."""

    async def send(self, subject: str, payload: bytes, message_id: str) -> None:
        """Store, and wait for the confirmation. A non-empty id is stored once."""

    async def subscribe(self, subject: str, callback: Callable[[bytes], None]) -> Closable:
        """Call `callback` with each payload, in the event loop. It is quick and does not raise."""

    async def flush(self) -> None:
        """Return when the broker knows of every subscription so far."""

    async def subscribe_durable(
        self, app: str, group: str, topic: str, callback: DurableCallback, *, concurrency: int = 1
    ) -> Closable:
        """Take a share of what is published durably on a topic, as a member of an app's group."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event, as a subscriber gets it."""

    topic: str
    payload: Any
    """As published; of the subscription's `type` when it has one, else plain values."""
    published_ms: int
    """Unix milliseconds, by the publisher's clock."""
    publisher: str
    """Instance id of the publishing process."""
    request_id: str = ""
    """Whose event it is; empty on a global topic."""
    attempt: int = 1
    """2 and later when a durable group has tried before."""


class EventReader:
    """Turns messages into events whose payload is of one type."""

    __slots__ = ("_decode",)

    def __init__(self, type: Any = None) -> None:
        try:
            self._decode = msgspec.msgpack.Decoder(Any if type is None else type).decode
        except TypeError as exc:
            raise TopicError(f"events cannot be read as {type!r}: {exc}") from exc

    def read(self, data: bytes, *, attempt: int = 1) -> Event:
        """The event in a message.

        Raises:
            MalformedMessage: not a message of ours.
            TopicError: the payload is not of the wanted type.
        """
        message = decode_topic(data)
        try:
            payload = self._decode(message.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise TopicError(f"the payload of an event on {message.topic!r} cannot be read: {exc}") from exc
        return Event(
            topic=message.topic,
            payload=payload,
            published_ms=message.published_ms,
            publisher=message.publisher,
            request_id=message.request_id,
            attempt=attempt,
        )


class Subscription:
    """What `subscribe` returns: open it with `async with` (or `await`), then take events from it.

    From then on everything is received that is published anywhere; in a cluster of brokers, other
    servers learn of it within their round trip. When `limit` events wait, the newest are dropped.
    """

    __slots__ = (
        *("_arrived", "_callback", "_is_open", "_listeners", "_owner", "_port", "_queue", "_reader", "_subjects"),
        *("_task", "dropped", "limit", "malformed", "topic"),
    )

    def __init__(
        self,
        port: TopicPort,
        topic: str,
        subjects: tuple[str, ...],
        callback: Callback | None,
        type: Any,
        limit: int,
        owner: SubscriptionOwner,
    ) -> None:
        if limit < 1:
            raise TopicError(f"the limit of a subscription must be at least 1, not {limit}")
        self._port = port
        self.topic = topic
        self._subjects = subjects
        self._callback = callback
        self._reader = EventReader(type)
        self.limit = limit
        self._owner = owner
        self._queue: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._listeners: list[Closable] = []
        self._is_open = False
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0
        """Events that found the queue full."""
        self.malformed = 0
        """Events that could not be read, or not as the wanted type."""

    async def __aenter__(self) -> Subscription:
        if self._is_open:
            raise TopicError(f"the subscription to {self.topic!r} is already open")
        self._owner.admit(self)
        self._is_open = True
        try:
            for subject in self._subjects:
                self._listeners.append(await self._port.subscribe(subject, self._take_in))
            await self._port.flush()
            if not self._is_open:  # its owner ended meanwhile
                raise self._closed()
        except BaseException:
            await self.aclose()
            raise
        if self._callback is not None:
            self._task = asyncio.create_task(self._keep_calling(self._callback), name=f"topic {self.topic}")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, Subscription]:
        """Open it; its owner (the request, or the process) closes it."""
        return self.__aenter__().__await__()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        event = await self._next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self, timeout_s: float = 30.0) -> Event:
        """The next event.

        Raises:
            EventTimeout: none came within `timeout_s`.
            TopicError: the subscription is closed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                event = await self._next()
        except TimeoutError:
            raise EventTimeout(f"no event on {self.topic!r} within {timeout_s:g} s") from None
        if event is None:
            raise self._closed()
        return event

    async def aclose(self) -> None:
        """Leave the topic. Readers that wait see the end; events not yet taken are gone."""
        self._owner.open.discard(self)
        self._is_open = False
        self._queue.clear()
        self._arrived.set()
        task, self._task = self._task, None
        listeners, self._listeners = self._listeners, []
        # Also when our own task is being cancelled: the broker would go on sending.
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await asyncio.gather(*(listener.aclose() for listener in listeners))
            if task is not None and task is not asyncio.current_task():  # a callback may close its own
                task.cancel()
                await asyncio.wait([task])

    def _closed(self) -> TopicError:
        return TopicError(f"the subscription to {self.topic!r} is closed")

    def _take_in(self, data: bytes) -> None:
        if not self._is_open:
            return
        if len(self._queue) >= self.limit:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("topic_events_dropped", topic=self.topic, limit=self.limit)
            return
        self._queue.append(data)
        self._arrived.set()

    async def _next(self) -> Event | None:
        while True:
            while not self._queue:
                if not self._is_open:
                    return None
                self._arrived.clear()
                await self._arrived.wait()
            try:
                return self._reader.read(self._queue.popleft())
            except GatiError as exc:
                # Somebody else's mistake must not end the loop of whoever reads the topic.
                self.malformed += 1
                if self.malformed == 1:
                    log.warning("topic_event_malformed", topic=self.topic, error=str(exc))

    async def _keep_calling(self, callback: Callback) -> None:
        while (event := await self._next()) is not None:
            try:
                result = callback(event)
                if inspect.isawaitable(result):
                    await result
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Nobody cancelled us: the callback let a cancellation of its own escape.
                log.warning("topic_callback_cancelled", topic=self.topic, request_id=event.request_id)
            except (Exception, *ENDS_PROGRAMS):
                log.exception("topic_callback_failed", topic=self.topic, request_id=event.request_id)


class SubscriptionOwner:
    """Whose subscriptions they are: the process or a request. Bounds them, and closes them at its end."""

    __slots__ = ("is_closed", "most", "name", "open")

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = most
        self.open: set[Subscription] = set()
        self.is_closed = False

    def admit(self, subscription: Subscription) -> None:
        """Count it in, or raise `TopicError`."""
        if self.is_closed:
            raise TopicError(f"{self.name} has ended: {subscription.topic!r} cannot be listened to")
        if len(self.open) >= self.most:
            raise TopicError(f"{self.name} has {self.most} open subscriptions: close what is no longer read")
        self.open.add(subscription)

    async def aclose(self) -> None:
        """Close all, and admit no more."""
        self.is_closed = True
        closing = [each.aclose() for each in list(self.open)]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("topic_close_failed", error=repr(outcome))
