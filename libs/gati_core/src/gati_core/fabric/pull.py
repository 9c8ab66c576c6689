"""The pull loop: never more messages than free slots, and no message lost in a dead inbox.

One inbox, several pull requests open on it. We count the messages asked for and not yet received
(`wanted`) and the ones received and not yet settled (`busy`), and keep `wanted + busy <= capacity`.
When a request ends on the server, its status message says how many it still owed
(`Nats-Pending-Messages`), so the count stays exact without waiting for timeouts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from gati_core.errors import GatiError
from gati_core.fabric._client import ack_fields, parse_headers
from gati_core.fabric.connection import Connection, Subscription
from gati_core.ids import new_instance_id

log = structlog.get_logger(__name__)

_EXPIRES_S = 30.0
_SHORT_EXPIRES_S = 0.5
_HEARTBEAT_S = 2.0
_ACK, _TERM, _PROGRESS = b"+ACK", b"+TERM", b"+WPI"


class Delivery:
    """One handing-over of a message. Settle it exactly once: `ack`, `nak` or `term`."""

    __slots__ = ("_consumer", "ack_subject", "context", "data", "headers", "is_released", "is_settled", "subject")

    def __init__(
        self, consumer: PullConsumer, subject: bytes, ack_subject: bytes, data: bytes, headers: bytes | None
    ) -> None:
        self._consumer = consumer
        self.subject = subject
        self.ack_subject = ack_subject
        self.data = data
        self.headers = headers
        self.is_settled = False
        self.is_released = False
        self.context: Any = None
        """For the receiver's own use between delivery and settlement."""

    @property
    def attempt(self) -> int:
        """1 for the first delivery, 2 and later for redeliveries."""
        subject = self.ack_subject
        if subject.count(b".") == 8:  # the usual form, once per message: no more split than needed
            return int(subject.split(b".", 5)[4])
        return int(ack_fields(subject)[0])

    @property
    def stream_sequence(self) -> int:
        """The message's number in its stream."""
        return int(ack_fields(self.ack_subject)[1])

    def header_fields(self) -> dict[str, str]:
        """The message's headers."""
        return parse_headers(self.headers)[1] if self.headers else {}

    def ack(self) -> None:
        """Done: never deliver again. A lost ack is only a redelivery."""
        self._settle(_ACK)

    def nak(self, delay_s: float = 0.0) -> None:
        """Deliver again after `delay_s`; never relies on the consumer's backoff (F4)."""
        self._settle(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    def term(self) -> None:
        """Never deliver again; only after the dead letter is stored and the client answered."""
        self._settle(_TERM)

    def in_progress(self) -> None:
        """Renew the lease for another `ack_wait`."""
        if not self.is_settled:
            self._consumer._connection.publish_or_hold(self.ack_subject, _PROGRESS)

    def release(self) -> None:
        """Free the slot of a message acked at its start: the work goes on, the message is gone. Once is enough."""
        if not self.is_released:
            self.is_released = True
            self._consumer._release()

    def ack_keeping_slot(self) -> None:
        """Ack now but keep the slot until `release`: for work that is acked when it starts."""
        if not self.is_settled:
            self.is_settled = True
            self._consumer._connection.publish_or_hold(self.ack_subject, _ACK)

    def _settle(self, command: bytes) -> None:
        if self.is_settled:
            return
        self.is_settled = True
        self._consumer._connection.publish_or_hold(self.ack_subject, command)
        self._consumer._release()


class PullStats(msgspec.Struct):
    """Plain counters, read by the metrics exporter."""

    delivered: int = 0
    requests: int = 0
    reissued: int = 0
    expired_requests: int = 0


class PullConsumer:
    """A durable consumer, pulled by this process.

    Args:
        capacity: messages this process holds at once, delivered and unsettled.
        batch: most messages in one pull request.
        on_delivery: called from the read loop for every message: bounded work, never raises, and
            must settle the delivery sooner or later.
        delivers_once: the consumer has `max_deliver=1`: a message that the server sends while we
            leave the inbox would be lost for good. Requests are then short, and leaving waits until
            none is open.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        durable: str,
        capacity: int,
        on_delivery: Callable[[Delivery], None],
        batch: int = 256,
        delivers_once: bool = False,
    ) -> None:
        self._connection = connection
        self._on_delivery = on_delivery
        self._ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}".encode()
        self._name = f"{stream}/{durable}"
        self.capacity = capacity
        self._batch = min(batch, capacity)
        self._delivers_once = delivers_once
        self._wanted = 0
        self._busy = 0
        self._inbox = b""
        self._subscription: Subscription | None = None
        self._is_pulling = False
        self._ask_due = False
        self._heard_at = 0.0
        self._pause_until = 0.0
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._idle.set()
        self._request_ended = asyncio.Event()
        self._renewing = False
        self._renew_again = False
        self._renewal: asyncio.Task[None] | None = None
        self.stats = PullStats()

    @property
    def busy(self) -> int:
        """Messages delivered and not yet settled (or released)."""
        return self._busy

    async def start(self) -> None:
        """Begin to pull. The durable must exist: the topology module makes it."""
        await self._open_inbox()
        self._is_pulling = True
        self._connection.on_up(self._came_up)
        self._connection.on_tick(self._check)
        self._top_up()

    async def stop_pulling(self) -> None:
        """Ask for nothing more and leave the inbox, handling what is already on its way (F18)."""
        self._is_pulling = False
        self._connection.off(self._came_up)
        self._connection.off(self._check)
        if self._renewal is not None:
            await asyncio.wait([self._renewal])  # it sees that we stopped, and leaves its inbox
        if self._delivers_once:
            await self._outlive_requests()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.aclose()

    async def _outlive_requests(self) -> None:
        """Wait until no request is open; what arrives meanwhile is handled as ever."""
        give_up_at = self._loop.time() + _SHORT_EXPIRES_S + 0.5
        while self._wanted > 0 and self._connection.is_up and self._loop.time() < give_up_at:
            self._request_ended.clear()
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._request_ended.wait()
            except TimeoutError:
                log.warning("pull_request_left_open", consumer=self._name, wanted=self._wanted)

    async def wait_idle(self) -> None:
        """Return once nothing that was delivered is unsettled."""
        await self._idle.wait()

    async def _open_inbox(self) -> None:
        inbox = f"{self._connection.inbox}.c.{new_instance_id()}"
        self._subscription = await self._connection.subscribe(inbox, self._on_message)
        self._inbox = inbox.encode()
        self._wanted = 0
        self._heard_at = self._loop.time()

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._heard_at = self._loop.time()
        if not reply:  # a message always carries its ack subject; a status never does
            if subject == self._inbox and headers is not None:
                self._on_status(headers)
            return
        if self._wanted > 0:
            self._wanted -= 1
            if self._wanted == 0:
                self._request_ended.set()
        self._busy += 1
        self._idle.clear()
        self.stats.delivered += 1
        self._on_delivery(Delivery(self, subject, reply, data, headers))
        if self._wanted <= self._batch // 2 and not self._ask_due:
            self._ask_due = True
            self._loop.call_soon(self._top_up)

    def _on_status(self, raw: bytes) -> None:
        status, fields = parse_headers(raw)
        if status == 100:
            return  # idle heartbeat
        owed = fields.get("Nats-Pending-Messages", "")
        if status in (408, 404) or (status == 409 and owed):
            self.stats.expired_requests += 1
            self._wanted = max(0, self._wanted - int(owed or 0))
            if not owed:
                self._wanted = 0
        else:
            # 409 without a count (consumer deleted, leadership changed), 503 (no JetStream), 400.
            self._wanted = 0
            self._pause_until = self._loop.time() + 0.25
            log.warning("pull_refused", consumer=self._name, status=status, reason=raw[8:80].decode("latin-1").strip())
        self._request_ended.set()
        if self._pause_until <= self._loop.time():
            self._schedule()

    def _release(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            self._idle.set()
        if not self._ask_due and self._wanted <= self._batch // 2:
            self._schedule()

    def _schedule(self) -> None:
        # One request per turn of the loop, however many slots that turn freed.
        if not self._ask_due:
            self._ask_due = True
            self._loop.call_soon(self._top_up)

    def _top_up(self) -> None:
        self._ask_due = False
        room = min(self._batch, self.capacity - self._busy) - self._wanted
        if room <= 0 or self._wanted > self._batch // 2 or not self._is_pulling or self._inbox == b"":
            return
        if self._renewing or self._loop.time() < self._pause_until:
            return
        if self._delivers_once:  # its end, twice a second, is sign of life enough
            request = b'{"batch":%d,"expires":%d}' % (room, int(_SHORT_EXPIRES_S * 1e9))
        else:
            request = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (
                room,
                int(_EXPIRES_S * 1e9),
                int(_HEARTBEAT_S * 1e9),
            )
        try:
            self._connection.publish_now(self._ask, request, self._inbox)
        except GatiError:
            return  # asked again when the broker is back
        self._wanted += room
        self.stats.requests += 1

    def _came_up(self) -> None:
        # A server that died forgot our requests (F10); one that lived on may still answer them, because
        # their inbox is listened on again. A new inbox and new requests are right in both cases.
        self._pause_until = 0.0
        self._start_renewal()

    def _check(self, now: float) -> None:
        if not self._connection.is_up or not self._is_pulling:
            self._heard_at = now
            return
        if self._wanted == 0:
            if self.capacity > self._busy:
                self._schedule()
            self._heard_at = now
            return
        if now - self._heard_at > 2.5 * _HEARTBEAT_S and not self._renewing:
            # Neither message nor heartbeat: the server does not know our requests any more.
            log.warning("pull_silent", consumer=self._name, silent_s=round(now - self._heard_at, 1))
            self._start_renewal()

    def _start_renewal(self) -> None:
        if self._renewing:
            self._renew_again = True
            return
        self._renewing = True
        self.stats.reissued += 1
        self._renewal = self._loop.create_task(self._renew())

    async def _renew(self) -> None:
        """Move to a new inbox, so that answers to the old requests cannot upset the count."""
        try:
            self._renew_again = True
            while self._renew_again and self._is_pulling:
                self._renew_again = False
                old, self._subscription = self._subscription, None
                if old is not None:
                    await old.aclose()  # first: what still arrives there counts against the old requests
                if self._is_pulling:
                    await self._open_inbox()
            if not self._is_pulling and self._subscription is not None:  # stopped meanwhile
                left, self._subscription = self._subscription, None
                await left.aclose()
        except GatiError as exc:
            log.warning("pull_renewal_failed", consumer=self._name, error=str(exc))
        finally:
            self._renewing = False
            self._schedule()
