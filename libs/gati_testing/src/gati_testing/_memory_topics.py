"""Topics without a broker, for a simulated fabric; held to the same contracts as the broker's.

One object stands for the broker: give it to the `Topics` of every simulated process. What it does
not imitate is latency, and leases: a member that hangs keeps its event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec

from gati_core.errors import Backpressure, BrokerUnavailable, MessageTooLarge
from gati_core.fabric.topics import retry_delay_s
from gati_core.fabric.topology import DUPLICATE_WINDOW_S
from gati_core.wire import Subjects, for_namespace

_FINISH_WITHIN_S = 5.0


class DeadEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that a durable group gave up on."""

    app: str
    group: str
    topic: str
    data: bytes
    error: Exception
    attempts: int


class MemoryTopics:
    """A `TopicPort` for any number of simulated processes of one event loop.

    Args:
        max_payload: bytes that one message may have.
        max_messages: durable events kept; one more is refused.
    """

    def __init__(
        self, *, namespace: str = "memory", max_payload: int = 1024 * 1024, max_messages: int = 100_000
    ) -> None:
        self._subjects = for_namespace(namespace)
        self._max_payload = max_payload
        self._max_messages = max_messages
        self._listeners: dict[str, list[_Listener]] = {}
        self._groups: dict[str, dict[tuple[str, str, str], _Group]] = {}
        self._stored = 0
        self._ids: dict[str, float] = {}
        self.is_up = True
        self.dead: list[DeadEvent] = []
        """What durable groups gave up on, oldest first."""

    @property
    def subjects(self) -> Subjects:
        """The names of the namespace."""
        return self._subjects

    @property
    def max_payload(self) -> int:
        """Bytes that one message may have, headers included."""
        return self._max_payload

    def go_away(self) -> None:
        """From now on everything is refused and nothing is delivered, as without a broker."""
        self.is_up = False

    def come_back(self) -> None:
        """Undo `go_away`: subscriptions live on, and groups go on with what they had."""
        self.is_up = True
        for groups in self._groups.values():
            for group in groups.values():
                group.hand_out()

    def publish(self, subject: str, payload: bytes) -> None:
        """Deliver to who listens, in the next turn of the loop."""
        self._check(payload)
        loop = asyncio.get_running_loop()
        for listener in self._listeners.get(subject, ()):
            loop.call_soon(listener.receive, payload)

    async def send(self, subject: str, payload: bytes, message_id: str) -> None:
        """Keep for the groups, and deliver to who listens."""
        self.publish(subject, payload)
        await asyncio.sleep(0)  # as with a broker, others run before the confirmation is here
        now = asyncio.get_running_loop().time()
        while self._ids and next(iter(self._ids.values())) < now - DUPLICATE_WINDOW_S:
            del self._ids[next(iter(self._ids))]
        if message_id and message_id in self._ids:
            return
        if self._stored >= self._max_messages:
            raise Backpressure(f"the stream is full: it holds {self._stored} messages")
        self._stored += 1
        if message_id:
            self._ids[message_id] = now
        for group in self._groups.get(subject, {}).values():
            group.waiting.append((payload, 1))
            group.hand_out()

    async def subscribe(self, subject: str, callback: Callable[[bytes], None]) -> _Listener:
        """Call `callback` with each payload."""
        self._require_up()
        listener = _Listener(self._listeners.setdefault(subject, []), callback)
        return listener

    async def flush(self) -> None:
        """Subscriptions are known at once; refused when away."""
        self._require_up()

    async def subscribe_durable(
        self,
        app: str,
        group: str,
        topic: str,
        callback: Callable[[bytes, int], Awaitable[None]],
        *,
        concurrency: int = 1,
    ) -> _Member:
        """Join a group; it begins with what is published after its first member joined."""
        self._require_up()
        groups = self._groups.setdefault(self._subjects.topic_durable(topic), {})
        key = (app, group, topic)
        if key not in groups:
            groups[key] = _Group(self, key)
        member = _Member(groups[key], callback, concurrency)
        groups[key].members.append(member)
        groups[key].hand_out()
        return member

    def _require_up(self) -> None:
        if not self.is_up:
            raise BrokerUnavailable("the broker is away")

    def _check(self, payload: bytes) -> None:
        self._require_up()
        if len(payload) > self._max_payload:
            raise MessageTooLarge(f"payload of {len(payload)} bytes exceeds max_payload of {self._max_payload}")


class _Listener:
    def __init__(self, listeners: list[_Listener], callback: Callable[[bytes], None]) -> None:
        self._listeners = listeners
        self._callback: Callable[[bytes], None] | None = callback
        listeners.append(self)

    def receive(self, payload: bytes) -> None:
        if self._callback is not None:
            self._callback(payload)

    async def aclose(self) -> None:
        """Leave the subject."""
        if self._callback is not None:
            self._callback = None
            self._listeners.remove(self)


class _Group:
    """A durable group: what waits for it, and who belongs to it."""

    def __init__(self, topics: MemoryTopics, key: tuple[str, str, str]) -> None:
        self.topics = topics
        self.key = key
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.members: list[_Member] = []

    def hand_out(self) -> None:
        """Give what waits to members with room, the least busy first."""
        while self.waiting and self.topics.is_up:
            free = [member for member in self.members if len(member.running) < member.concurrency]
            if not free:
                return
            min(free, key=lambda member: len(member.running)).take(*self.waiting.popleft())

    def give_back(self, data: bytes, attempt: int) -> None:
        self.waiting.appendleft((data, attempt))
        self.hand_out()


class _Member:
    """One process's membership in a durable group."""

    def __init__(self, group: _Group, callback: Callable[[bytes, int], Awaitable[None]], concurrency: int) -> None:
        self._group = group
        self._callback = callback
        self.concurrency = concurrency
        self.running: set[asyncio.Task[None]] = set()

    def take(self, data: bytes, attempt: int) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(data, attempt))
        self.running.add(task)
        task.add_done_callback(self._finished)

    async def aclose(self) -> None:
        """Take nothing new, let what runs finish within 5 s, and give back the rest."""
        if self in self._group.members:
            self._group.members.remove(self)
        if self.running:
            _, late = await asyncio.wait(list(self.running), timeout=_FINISH_WITHIN_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_FINISH_WITHIN_S)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        self._group.hand_out()

    async def _settle(self, data: bytes, attempt: int) -> None:
        group = self._group
        try:
            await self._callback(data, attempt)
        except asyncio.CancelledError:
            group.give_back(data, attempt + 1)
            raise
        except Exception as exc:
            delay_s = retry_delay_s(exc, attempt)
            if delay_s is not None:
                asyncio.get_running_loop().call_later(delay_s, group.give_back, data, attempt + 1)
                return
            app, name, topic = group.key
            group.topics.dead.append(
                DeadEvent(app=app, group=name, topic=topic, data=data, error=exc, attempts=attempt)
            )
