"""The windowed publisher: many publishes on their way, each confirmed or failed by a deadline.

JetStream answers every publish on the reply subject it carried. We give each publish a slot of a
small window and the slot's number is the last token of that subject: an ack finds its publish
without a future, a task or a header, and the broker sees few distinct subjects, which it caches.
A slot whose ack never came is retired, not reused: its late ack must not confirm another publish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from gati_core.errors import Backpressure, BrokerUnavailable, GatiError, PublishRefused, PublishUnconfirmed
from gati_core.fabric._client import format_headers, parse_headers
from gati_core.fabric.connection import Connection
from gati_core.fabric.ports import PublishResult

_FULL = frozenset({10077, 10054, 10047, 10023, 10028})
"""Refusals by a full stream or account: 10077 covers max_msgs, max_bytes and max_msgs_per_subject."""
_MAYBE_LATER = frozenset({10008, 10076, 10167, 10202})
"""JetStream is not ready: temporarily unavailable, not enabled for the account yet, no quorum, …"""


class _AckError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _AckError | None = None


_decode_ack = msgspec.json.Decoder(_PubAck).decode


class PublisherStats(msgspec.Struct):
    """Plain counters, read by the metrics exporter."""

    published: int = 0
    confirmed: int = 0
    refused_full: int = 0
    refused: int = 0
    unconfirmed: int = 0
    late_acks: int = 0


class WindowedPublisher:
    """See the module. Use `open` to make one; one per connection is enough."""

    def __init__(self, connection: Connection, *, window: int, ack_timeout_s: float) -> None:
        self._connection = connection
        self._ack_timeout_s = ack_timeout_s
        self._inbox = f"{connection.inbox}.p."
        self._prefix = len(self._inbox)
        self._replies = {slot: f"{self._inbox}{slot}".encode() for slot in range(window)}
        # Last in, first out: few slots are used at low load, so their subjects stay cached.
        self._free = list(range(window - 1, -1, -1))
        self._next_slot = window
        self._waiting: dict[int, tuple[PublishResult, Any, float]] = {}
        self._loop = asyncio.get_running_loop()
        self.stats = PublisherStats()

    @classmethod
    async def open(cls, connection: Connection) -> WindowedPublisher:
        """A publisher with the window and ack deadline of the connection's settings."""
        settings = connection.settings
        publisher = cls(connection, window=settings.publish_window, ack_timeout_s=settings.publish_ack_timeout_s)
        await connection.subscribe(f"{publisher._inbox}*", publisher._on_ack)
        connection.on_tick(publisher._expire)
        return publisher

    @property
    def in_flight(self) -> int:
        """Publishes not yet confirmed, refused or given up."""
        return len(self._waiting)

    def publish(
        self,
        subject: bytes,
        payload: bytes,
        done: PublishResult,
        context: Any = None,
        *,
        message_id: str = "",
        headers: bytes = b"",
    ) -> None:
        """Publish without waiting.

        Args:
            done: called once as `done(context, None)` when stored, or with the error. Must not raise.
            message_id: lets the stream drop a repeat inside its duplicate window.
            headers: a raw `NATS/1.0` block instead, when more than the id must travel.
        Raises:
            Backpressure: the window is full; nothing was sent.
            BrokerUnavailable: not connected or stalled; nothing was sent.
            MessageTooLarge: more than the broker takes; nothing was sent.
        """
        if not self._free:
            raise Backpressure(f"{len(self._waiting)} publishes are not yet confirmed by the broker")
        if message_id and not headers:
            headers = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % message_id.encode()
        slot = self._free[-1]
        self._connection.publish_now(subject, payload, self._replies[slot], headers)
        self._free.pop()
        self._waiting[slot] = (done, context, self._loop.time())
        self.stats.published += 1

    async def send(
        self, subject: str, payload: bytes, *, message_id: str = "", headers: Mapping[str, str] | None = None
    ) -> int:
        """Publish and wait for the broker's ack. Safe to cancel: the window slot frees itself.

        Returns:
            The sequence in the stream (that of the first publish, for a duplicate).
        Raises:
            Backpressure, BrokerUnavailable, MessageTooLarge, PublishRefused, PublishUnconfirmed.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        all_headers = dict(headers or {})
        if message_id:
            all_headers["Nats-Msg-Id"] = message_id
        raw = format_headers(all_headers) if all_headers else b""
        self.publish(subject.encode(), payload, _settle, future, headers=raw)
        return await future

    def _on_ack(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        slot = int(subject[self._prefix :])
        entry = self._waiting.pop(slot, None)
        if entry is None:
            self.stats.late_acks += 1
            return
        self._free.append(slot)
        done, context, _ = entry
        if headers is None and b'"error"' not in data:
            sequence = 0
            if done is _settle:
                try:
                    sequence = _decode_ack(data).seq
                except (msgspec.DecodeError, UnicodeDecodeError):
                    done(context, self._unreadable(data))
                    return
            self.stats.confirmed += 1
            if done is _settle:
                _settle(context, None, sequence)
            else:
                done(context, None)
            return
        done(context, self._refusal(data, headers))

    def _unreadable(self, data: bytes) -> PublishUnconfirmed:
        self.stats.unconfirmed += 1
        return PublishUnconfirmed(f"the publish ack of {len(data)} bytes cannot be read")

    def _refusal(self, data: bytes, headers: bytes | None) -> GatiError:
        if headers is not None and parse_headers(headers)[0] == 503:
            self.stats.refused += 1
            return BrokerUnavailable("no stream takes this subject: JetStream is not ready, or the topology is missing")
        try:
            error = _decode_ack(data).error or _AckError()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._unreadable(data)
        facts = {"err_code": error.err_code}
        if error.err_code in _FULL:
            self.stats.refused_full += 1
            return Backpressure(f"the stream is full: {error.description}", **facts)
        self.stats.refused += 1
        if error.err_code in _MAYBE_LATER or error.code == 503:
            return BrokerUnavailable(f"JetStream is not ready: {error.description}", **facts)
        return PublishRefused(f"the broker refused the message: {error.description}", **facts)

    def _expire(self, now: float) -> None:
        oldest_allowed = now - self._ack_timeout_s
        while self._waiting:
            slot = next(iter(self._waiting))  # insertion order is time order
            done, context, sent_at = self._waiting[slot]
            if sent_at > oldest_allowed:
                return
            del self._waiting[slot], self._replies[slot]
            self._replies[self._next_slot] = f"{self._inbox}{self._next_slot}".encode()
            self._free.insert(0, self._next_slot)
            self._next_slot += 1
            self.stats.unconfirmed += 1
            done(context, PublishUnconfirmed(f"no publish ack within {self._ack_timeout_s:g} s"))


def _settle(future: asyncio.Future[int], error: GatiError | None, sequence: int = 0) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(sequence)
    else:
        future.set_exception(error)
