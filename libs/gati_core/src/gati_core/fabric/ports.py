"""What services ask of the fabric, as Protocols: they are typed by these and never by nats-py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gati_core.errors import GatiError

PublishResult = Callable[[Any, GatiError | None], None]
"""Called once per publish with the caller's context and None, or the error. Must not raise."""

RawCallback = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with subject, reply, payload and raw headers. Runs in the read loop: quick, never raises."""


class MessagePort(Protocol):
    """Plain messages: at most once, no acknowledgement."""

    @property
    def is_up(self) -> bool:
        """Connected, and the broker has shown progress lately."""

    def publish_now(self, subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> None:
        """Send now or raise `BrokerUnavailable`."""

    def publish_or_hold(self, subject: bytes, payload: bytes) -> None:
        """Send now, or as soon as the broker is back; bounded, for acks and replies."""


class PublisherPort(Protocol):
    """Publishing to streams: each publish is confirmed by the broker, or failed by a deadline."""

    def publish(
        self, subject: bytes, payload: bytes, done: PublishResult, context: Any = None, *, message_id: str = ""
    ) -> None:
        """Publish without waiting; `done(context, error)` follows."""

    async def send(
        self, subject: str, payload: bytes, *, message_id: str = "", headers: Mapping[str, str] | None = None
    ) -> int:
        """Publish and wait for the ack; returns the stream sequence."""


class DeliveryPort(Protocol):
    """One handing-over of a message, settled exactly once by `ack`, `nak` or `term`."""

    subject: bytes
    data: bytes
    ack_subject: bytes
    context: Any

    @property
    def attempt(self) -> int:
        """1 for the first delivery, 2 and later for redeliveries."""

    def ack(self) -> None:
        """Done: never deliver again."""

    def nak(self, delay_s: float = 0.0) -> None:
        """Deliver again, after `delay_s`."""

    def term(self) -> None:
        """Never deliver again, without having been done; after the dead letter."""

    def in_progress(self) -> None:
        """Still working: renew the lease."""

    def ack_keeping_slot(self) -> None:
        """Done as far as the queue is concerned; the receiver's slot stays taken until `release`."""

    def release(self) -> None:
        """Free the slot of a message that was acked at its start."""

    def header_fields(self) -> dict[str, str]:
        """The message's headers."""
