"""A topic port that keeps what goes through it, for one execution of a harness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gati_core.contexts import Closable, Event, EventReader, TopicPort
from gati_core.wire import Subjects

_read = EventReader().read


class RecordedTopics:
    """A `TopicPort` in front of another one; events that were published through it are in `published`."""

    def __init__(self, port: TopicPort, published: list[Event]) -> None:
        self._port = port
        self._published = published

    @property
    def subjects(self) -> Subjects:
        """See `TopicPort`."""
        return self._port.subjects

    @property
    def max_payload(self) -> int:
        """See `TopicPort`."""
        return self._port.max_payload

    def publish(self, subject: str, payload: bytes) -> None:
        """See `TopicPort`."""
        self._port.publish(subject, payload)
        event = _read(payload)
        if subject != self.subjects.local_event(event.request_id or "none", event.topic):  # no event of a socket's
            self._published.append(event)

    async def send(self, subject: str, payload: bytes, message_id: str) -> None:
        """See `TopicPort`."""
        await self._port.send(subject, payload, message_id)
        self._published.append(_read(payload))

    async def subscribe(self, subject: str, callback: Callable[[bytes], None]) -> Closable:
        """See `TopicPort`."""
        return await self._port.subscribe(subject, callback)

    async def flush(self) -> None:
        """See `TopicPort`."""
        await self._port.flush()

    async def subscribe_durable(
        self,
        app: str,
        group: str,
        topic: str,
        callback: Callable[[bytes, int], Awaitable[None]],
        *,
        concurrency: int = 1,
    ) -> Closable:
        """See `TopicPort`."""
        return await self._port.subscribe_durable(app, group, topic, callback, concurrency=concurrency)
