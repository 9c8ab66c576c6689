"""`lctx.websocket` in a WebSocket handler: one client's connection."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from gati_core.contexts._topics import RequestEvent, RequestEvents
from gati_core.errors import ChannelClosed, EventTimeout, GatiError, HandlerError, MessageTooLarge, ShuttingDown
from gati_core.fabric import Channel
from gati_core.wire import Frame, HeaderPairs, header_pair

if TYPE_CHECKING:
    from gati_core.contexts._local import LocalContext

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

MAX_MESSAGE_BYTES = 512 * 1024
"""What one outgoing message may have; it must fit a message of the broker's."""
MAX_SET_ASIDE = 64
"""Messages that `wait_for_event` sets aside for `receive` before it stops reading."""
MAX_REASON_BYTES = 123  # RFC 6455, section 5.5: a control frame holds 125, two of them the code

NORMAL, GOING_AWAY, INTERNAL_ERROR, SERVICE_RESTART = 1000, 1001, 1011, 1012


class WebSocket:
    """The connection of one client.

    The first `receive` or `send` accepts it, unless `accept` did. A handler that raises before that
    refuses the handshake with the error's status; later, the connection closes with 1011. When the
    handler returns, it closes with 1000.

    >>> async def echo(req, res, gctx, lctx) -> None:
    ...     async for message in lctx.websocket:
    ...         await lctx.websocket.send(message)
    """

    __slots__ = (
        "_aside",
        "_begin",
        "_channel",
        "_emitted",
        "_lctx",
        "_pump",
        "_pumped",
        "_reading",
        "_room",
        "_waiters",
    )

    def __init__(self, lctx: LocalContext, begin: Callable[[HeaderPairs], Channel]) -> None:
        self._lctx = lctx
        self._begin = begin
        self._channel: Channel | None = None
        self._reading = False
        self._waiters: dict[str, deque[asyncio.Future[Any]]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._emitted: set[asyncio.Task[RequestEvent]] = set()
        self._aside: deque[str | bytes] = deque()
        self._pumped = asyncio.Event()
        self._room = asyncio.Event()

    # -- the handshake --------------------------------------------------------------------------

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers, in its order of preference."""
        headers = self._lctx._descriptor.headers
        text = ",".join(value for name, value in headers if name == "sec-websocket-protocol")
        return [name.strip() for name in text.split(",") if name.strip()]

    @property
    def is_accepted(self) -> bool:
        """Whether the handshake is complete."""
        return self._channel is not None

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._channel is not None and self._channel.is_open

    @property
    def close_code(self) -> int | None:
        """Why it closed (RFC 6455): what the client sent, 1006 when it vanished; None while it is open."""
        return self._channel.closed.code if self._channel is not None and self._channel.closed is not None else None

    async def accept(self, subprotocol: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Complete the handshake.

        Raises:
            ValueError: the client does not offer that subprotocol, or a header cannot be sent.
            GatiError: it was accepted before.
        """
        if self._channel is not None:
            raise GatiError("the connection was accepted before")
        if subprotocol and subprotocol not in self.subprotocols:
            offered = ", ".join(self.subprotocols) or "none"
            raise ValueError(f"the client does not offer subprotocol {subprotocol!r} (it offers {offered})")
        pairs: HeaderPairs = [header_pair(name, value) for name, value in (headers or {}).items()]
        if subprotocol:
            pairs.append(("sec-websocket-protocol", subprotocol))
        self._channel = self._begin(pairs)

    async def _accepted(self) -> Channel:
        if self._channel is None:
            await self.accept()
        assert self._channel is not None  # noqa: S101 - accept() has set it
        return self._channel

    # -- messages -------------------------------------------------------------------------------

    async def receive(self) -> str | bytes:
        """The next message: text as `str`, binary as `bytes`.

        Not reading is how to slow a client down: at most 64 of its messages wait.

        Raises:
            ChannelClosed: the client has closed or is gone, and every message before was taken.
        """
        channel = await self._accepted()
        if self._pump is None:
            return await self._read(channel)
        while not self._aside:
            if self._pump.done():
                raise ChannelClosed("the connection is closed")
            self._pumped.clear()
            await self._pumped.wait()
        self._room.set()
        return self._aside.popleft()

    async def _read(self, channel: Channel) -> str | bytes:
        if self._reading:
            raise GatiError("another task is receiving from this socket already")
        self._reading = True
        try:
            frame: Frame = await channel.receive()
        finally:
            self._reading = False
        if frame.kind != "text":
            return frame.data
        try:
            return frame.data.decode()
        except UnicodeDecodeError as exc:
            channel.lose("a text message is not UTF-8")
            raise ChannelClosed("a text message is not UTF-8") from exc

    async def receive_json(self, type: Any = Any) -> Any:
        """The next message, read as JSON.

        Raises:
            HandlerError: it is not JSON, or not of that type; uncaught, it closes with 1011.
            ChannelClosed: as `receive`.
        """
        message = await self.receive()
        try:
            return msgspec.json.decode(message, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise HandlerError(f"a message is not what is expected: {exc}", 400, code="websocket.invalid") from exc

    def __aiter__(self) -> WebSocket:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    async def send(self, message: str | bytes) -> None:
        """Send one message; waits while the client has not taken what was sent before.

        Raises:
            ChannelClosed: the connection is closed.
            MessageTooLarge: more than 512 KiB.
        """
        channel = await self._accepted()
        is_text = isinstance(message, str)
        data = message.encode() if isinstance(message, str) else bytes(memoryview(message))
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"a message of {len(data)} bytes exceeds the limit of {MAX_MESSAGE_BYTES}")
        await channel.send("text" if is_text else "binary", data)

    async def send_json(self, value: Any) -> None:
        """Send a value as JSON text. See `send`."""
        await self.send(_encode(value).decode())

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Close the connection; a second time does nothing.

        Raises:
            ValueError: the code is not one that may be sent, or the reason exceeds 123 bytes.
        """
        if code != NORMAL and code not in (1001, 1002, 1003, *range(1007, 1015)) and not 3000 <= code <= 4999:
            raise ValueError(f"close code {code} may not be sent")
        if len(reason.encode()) > MAX_REASON_BYTES:
            raise ValueError(f"a close reason has at most {MAX_REASON_BYTES} bytes, not {len(reason.encode())}")
        (await self._accepted()).end("close", code=code, text=reason)

    # -- events ---------------------------------------------------------------------------------

    @property
    def _events(self) -> RequestEvents:
        return self._lctx._local_topics.events

    async def wait_for_event(self, type: str, timeout_s: float = 30.0) -> RequestEvent:
        """Wait for an event: a text message `{"type": type, "data": …}` of the client's, or `emit_event`
        for this request in any process. Other messages are set aside for `receive`.

        Raises:
            EventTimeout: neither came in time.
            ChannelClosed: the connection closed first.
        """
        channel = await self._accepted()
        events = self._events
        loop = asyncio.get_running_loop()
        if self._pump is None:
            if self._reading:
                raise GatiError("another task is receiving from this socket already")
            self._pump = loop.create_task(self._keep_reading(channel))
        elif self._pump.done():
            raise ChannelClosed("the connection is closed")
        waiter: asyncio.Future[Any] = loop.create_future()
        self._waiters.setdefault(type, deque()).append(waiter)
        # Not through the loop's factory: it may still be leaving its topic when the handler has ended.
        emitted = asyncio.Task(events.wait_for_event(type, timeout_s=timeout_s), loop=loop)
        self._emitted.add(emitted)
        emitted.add_done_callback(self._forget_emitted)
        try:
            await asyncio.wait({waiter, emitted}, timeout=timeout_s + 1, return_when=asyncio.FIRST_COMPLETED)
            if waiter.done():
                data = waiter.result()
                return RequestEvent(type=type, request_id=self._lctx.request_id, data=data, timestamp=_now_ms())
            if emitted.done():
                return emitted.result()
            raise EventTimeout(f"no event {type!r} within {timeout_s:g} s")
        finally:
            waiter.cancel()
            emitted.cancel()
            await asyncio.wait([emitted], timeout=1.0)  # it has a subscription to leave
            queue = self._waiters.get(type)
            if queue is not None and waiter in queue:
                queue.remove(waiter)

    def _forget_emitted(self, task: asyncio.Task[RequestEvent]) -> None:
        self._emitted.discard(task)
        if not task.cancelled():
            task.exception()  # seen by whoever waits; when the client's message came first, by nobody

    async def emit_event(self, type: str, data: Any = None) -> None:
        """Send an event to the client, as `{"type", "request_id", "data", "timestamp"}`, and to whoever
        waits for it on this request, in any process."""
        event = RequestEvent(type=type, request_id=self._lctx.request_id, data=data, timestamp=_now_ms())
        self._events.emit_event(type, data)
        await self.send_json(event)

    async def _keep_reading(self, channel: Channel) -> None:
        try:
            while True:
                message = await self._read(channel)
                waiter = self._waiter_for(message)
                if waiter is not None:
                    waiter[0].set_result(waiter[1])
                    continue
                while len(self._aside) >= MAX_SET_ASIDE:
                    self._room.clear()
                    await self._room.wait()
                self._aside.append(message)
                self._pumped.set()
        except ChannelClosed as exc:
            self._wake_waiters(str(exc))
        finally:
            self._pumped.set()

    def _wake_waiters(self, reason: str) -> None:
        for queue in self._waiters.values():
            for future in queue:
                if not future.done():
                    future.set_exception(ChannelClosed(reason))
                    future.exception()  # whoever waits sees it; whoever has left need not

    def _waiter_for(self, message: str | bytes) -> tuple[asyncio.Future[Any], Any] | None:
        if not isinstance(message, str) or not message.startswith("{"):
            return None
        try:
            event = _decode(message)
        except (msgspec.DecodeError, RecursionError):
            return None
        kind = event.get("type")
        queue = self._waiters.get(kind) if isinstance(kind, str) else None
        while queue:
            future = queue.popleft()
            if not future.done():
                return future, event.get("data")
        return None

    # -- for the lifecycle ----------------------------------------------------------------------

    def finish(self, error: GatiError | None) -> None:
        """The handler has ended: close, unless that happened already."""
        if self._channel is None:
            return
        if error is None:
            self._channel.end("close", code=NORMAL)
        elif isinstance(error, ShuttingDown):
            self._channel.end("close", code=SERVICE_RESTART, text="the worker is leaving")
        elif error.status == 504:
            self._channel.end("close", code=GOING_AWAY, text="the connection was open for as long as it may be")
        else:
            text = str(error) if isinstance(error, HandlerError) else error.title
            self._channel.end(
                "close", code=INTERNAL_ERROR, text=text.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore")
            )

    async def release(self) -> None:
        """Stop reading."""
        if self._pump is not None:
            self._pump.cancel()
        leaving = [task for task in (self._pump, *self._emitted) if task is not None]
        if leaving:
            await asyncio.wait(leaving, timeout=1.0)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
