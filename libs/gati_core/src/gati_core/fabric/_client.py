"""The client port: nats-py for connecting, our own hot path for messages (ADR-0001).

nats-py gives us the handshake, TLS, authentication, reconnects and the JetStream management API.
Its message path costs a queue, a task switch and a coroutine per message; a request crosses eight
of them. So this subclass replaces the parser, and adds two calls:

- `subscribe_direct`: a plain function is called from the read loop for every message;
- `publish_now`: a plain call that buffers, with one write to the socket per turn of the loop.

It leans on names that nats-py does not promise. They are listed in `_LEANS_ON`, checked at import,
and the dependency is pinned below the next minor version.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from gati_core.errors import BrokerUnavailable, MessageTooLarge

log = structlog.get_logger(__name__)

DirectCallback = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Called with subject, reply, payload and raw headers (or None). Must be quick and must not raise."""

_LEANS_ON = (
    *("_process_msg", "_process_pong", "_remove_sub", "_send_unsubscribe"),
    *("_max_payload", "_pending", "_pending_data_size", "_pings_outstanding", "_pongs", "_pongs_received"),
    *("_ps", "_server_info", "_sid", "_status", "_transport"),
)
_missing = [name for name in _LEANS_ON if not hasattr(Client(), name)]
if _missing:  # pragma: no cover - only with another nats-py
    raise ImportError(f"nats-py has no Client.{_missing[0]}: gati_core.fabric._client must be adapted to this version")

_NOT_IN_A_NAME = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_MSG = ord("M")
_HMSG = ord("H")


class DirectClient(Client):
    """A nats-py client with a direct path in and out."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _DirectParser(self)
        self._direct: dict[int, DirectCallback] = {}
        self._flush_due = False
        self._direct_loop: asyncio.AbstractEventLoop | None = None
        self.received = 0
        """Messages and control lines received; it growing is what "the broker makes progress" means."""

    async def subscribe_direct(self, subject: str, callback: DirectCallback, *, queue: str = "") -> Subscription:
        """Call `callback` for every message on `subject`, from the read loop, in order."""
        # Registered before the SUB is sent: `subscribe` takes the next sid without yielding first.
        sid = self._sid + 1
        self._direct[sid] = callback
        subscription = await self.subscribe(subject, queue=queue)
        if subscription._id != sid:  # pragma: no cover - a guard on nats-py's behaviour
            del self._direct[sid]
            self._direct[subscription._id] = callback
        return subscription

    async def unsubscribe_direct(self, subscription: Subscription, *, flush_timeout_s: float = 1.0) -> None:
        """Leave the subject, handling what was already on its way (F18)."""
        sid = subscription._id
        try:
            if self.is_connected:
                await self._send_unsubscribe(sid)
                await self.flush(timeout=flush_timeout_s)
        finally:
            self._direct.pop(sid, None)
            self._remove_sub(sid)

    def publish_now(self, subject: bytes, payload: bytes, reply: bytes = b"", headers: bytes = b"") -> None:
        """Buffer one message; it leaves with everything else published in this turn of the loop.

        Args:
            headers: a complete `NATS/1.0` header block, or nothing.
        Raises:
            BrokerUnavailable: not connected. Nothing was buffered, so nothing can surface later (F11).
            MessageTooLarge: payload and headers exceed the server's limit. Sending it would make the
                server cut the connection for good (F7).
        """
        if self._status != Client.CONNECTED:
            raise BrokerUnavailable("not connected to the broker", subject=subject.decode())
        size = len(payload) + len(headers)
        if size > self._max_payload:
            raise MessageTooLarge(f"payload and headers of {size} bytes exceed max_payload of {self._max_payload}")
        if headers:
            command = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(headers), size, headers, payload)
        elif reply:
            command = b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, size, payload)
        else:
            command = b"PUB %b %d\r\n%b\r\n" % (subject, size, payload)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._flush_due:
            self._flush_due = True
            if self._direct_loop is None:
                self._direct_loop = asyncio.get_running_loop()
            self._direct_loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_due = False
        if self._status == Client.CONNECTED and self._transport is not None and self._pending:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            try:
                self._transport.write(b"".join(pending) if len(pending) > 1 else pending[0])
            except (OSError, RuntimeError, AttributeError) as exc:
                # The read loop sees the same broken connection and reconnects; what was lost here is
                # noticed by the deadline of its ack.
                log.warning("broker_write_failed", error=repr(exc))

    def discard_buffered(self) -> None:
        """Forget what was published and not yet written."""
        self._pending = []
        self._pending_data_size = 0

    async def flush(self, timeout: float = 10) -> None:  # noqa: ASYNC109 - nats-py's signature
        """Wait until the server has read everything sent so far."""
        # nats-py writes the ping at once but leaves what is buffered to its flusher: the pong could
        # come before the server has seen the UNSUB that this flush is meant to wait for.
        self._flush_now()
        await super().flush(timeout)  # type: ignore[arg-type]

    async def _process_pong(self) -> None:
        # A pong may come after its ping was given up. nats-py would then raise from the read loop, which
        # ends it: connected, and deaf. Its place in the order of pongs is still taken by that ping.
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    @property
    def buffered_bytes(self) -> int:
        """Bytes published and not yet written to the socket."""
        return self._pending_data_size


class _DirectParser(Parser):
    """nats-py's parser with the two message verbs handled in place.

    Works on one bytes object with an offset, so a read that holds eighty messages is not moved
    eighty times; every other verb goes through the original.
    """

    def __init__(self, client: DirectClient) -> None:
        self._client = client
        self._rest = b""
        self._resets = 0
        super().__init__(client)

    def reset(self) -> None:
        self._rest = b""
        self._resets += 1
        super().reset()

    async def parse(self, data: bytes = b"") -> None:
        client = self._client
        direct = client._direct
        resets = self._resets
        client.received += 1
        buffer = self._rest + data if self._rest else data
        size = len(buffer)
        at = 0
        while at < size:
            end_of_line = buffer.find(b"\r\n", at)
            if end_of_line < 0:
                break
            verb = buffer[at]
            if verb == _MSG:
                fields = buffer[at + 4 : end_of_line].split(b" ")
                start = end_of_line + 2
                end = start + int(fields[-1])
                if end + 2 > size:
                    break
                at = end + 2
                reply = fields[2] if len(fields) == 4 else b""
                callback = direct.get(int(fields[1]))
                if callback is not None:
                    try:
                        callback(fields[0], reply, buffer[start:end], None)
                    except Exception:
                        log.exception("direct_callback_failed", subject=fields[0].decode(errors="replace"))
                else:
                    await client._process_msg(int(fields[1]), fields[0], reply, buffer[start:end], b"")
            elif verb == _HMSG:
                fields = buffer[at + 5 : end_of_line].split(b" ")
                start = end_of_line + 2
                body = start + int(fields[-2])
                end = start + int(fields[-1])
                if end + 2 > size:
                    break
                at = end + 2
                reply = fields[2] if len(fields) == 5 else b""
                callback = direct.get(int(fields[1]))
                if callback is not None:
                    try:
                        callback(fields[0], reply, buffer[body:end], buffer[start:body])
                    except Exception:
                        log.exception("direct_callback_failed", subject=fields[0].decode(errors="replace"))
                else:
                    await client._process_msg(int(fields[1]), fields[0], reply, buffer[body:end], buffer[start:body])
            else:
                line = buffer[at : end_of_line + 2]
                at = end_of_line + 2
                await super().parse(line)
            if self._resets != resets:
                return  # reconnecting: the rest belonged to a connection that is gone
        self._rest = buffer[at:] if at < size else b""


def ack_fields(ack_subject: bytes) -> list[bytes]:
    """Delivered count, stream sequence, consumer sequence, time and pending count of a delivery.

    The subject is `$JS.ACK.[domain.account.]stream.consumer.` and then these, maybe one token more.
    """
    fields = ack_subject.split(b".")
    return fields[4:] if len(fields) == 9 else fields[6:]


def parse_headers(raw: bytes) -> tuple[int, dict[str, str]]:
    """Inline status (0 when there is none) and headers of a raw `NATS/1.0` block; last value wins."""
    first, _, rest = raw.partition(b"\r\n")
    status_text = first[8:].strip()[:3]
    headers: dict[str, str] = {}
    for line in rest.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return (int(status_text) if status_text.isdigit() else 0), headers


def format_headers(headers: dict[str, str]) -> bytes:
    """A `NATS/1.0` header block in UTF-8.

    Line breaks become spaces, so that none can inject another header; what UTF-8 cannot carry becomes "?".
    """
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        clean = value.replace("\r", " ").replace("\n", " ")
        lines.append(f"{_NOT_IN_A_NAME.sub('-', name)}: {clean}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "replace")
