"""uvicorn's WebSocket protocol, bounded: in what it keeps, in how long a close may take, and in what it logs.

uvicorn reads until the application has a message to take, and then stops reading. That leaves three
things without a bound: the many small messages of one read, answers to pings that the client does
not read, and a closed connection whose client does not take the rest.

It leans on names that uvicorn does not promise, so the dependency is pinned below its next minor version.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from gati_ingress.handshake import offered, passed_on

_SLICE = 16 * 1024
"""Bytes parsed before we look whether the application has something to take."""
_EARLY_BYTES = 64 * 1024
"""Kept of a client that sends before its handshake is answered."""
_CLOSE_S = 3.0
"""What a client has to take the rest, once the connection is to be closed."""


class _BoundedClose:
    """A transport whose `close` becomes an `abort` when the client does not take what is left."""

    __slots__ = (
        "_loop",
        "_timer",
        "_transport",
        "abort",
        "get_extra_info",
        "get_write_buffer_size",
        "is_closing",
        "pause_reading",
        "resume_reading",
        "write",
        "write_eof",
    )

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: TimerHandle | None = None
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write = transport.write
        self.write_eof = transport.write_eof

    def close(self) -> None:
        self._transport.close()
        if self._timer is None and self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(_CLOSE_S, self._transport.abort)

    def lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class GuardedSocket(WebSocketsSansIOProtocol):
    """One client socket, from its checked handshake on: see `begin`. Also the `flow` that `drained` asks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_gone: Callable[[], None] | None = None
        """Set by the application; called once when the connection is lost."""
        self.close_timeout = _CLOSE_S
        self._rest = b""
        self._is_failed = False
        self._is_clogged = False
        self._linger_timer: TimerHandle | None = None

    # -- the handshake --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(Any, _BoundedClose(cast(asyncio.Transport, transport), self.loop)))

    def begin(self, key: bytes, raw_path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Start the application on a handshake whose head was parsed, limited and checked already."""
        super().data_received(
            b"GET / HTTP/1.1\r\nhost: -\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: " + key + b"\r\n\r\n"
        )
        # The task that `super` has started runs later.
        self.scope["raw_path"] = raw_path
        self.scope["path"] = raw_path.decode("ascii")
        self.scope["query_string"] = query
        self.scope["subprotocols"] = offered(headers)
        self.scope["headers"] = passed_on(headers)
        self.scope["gati.connection"] = self  # type: ignore[typeddict-unknown-key]

    async def send(self, message: Any) -> None:
        """As uvicorn's; what the client sent meanwhile is looked at after the handshake, or after our close."""
        await super().send(message)
        if message["type"] in ("websocket.accept", "websocket.close"):
            self._feed()
        elif message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # uvicorn would report every refusal as a mistake of the application

    # -- from the client ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_failed:
            return
        self._rest = self._rest + data if self._rest else data
        if self.handshake_complete:
            self._feed()
        elif len(self._rest) > _EARLY_BYTES:
            self.transport.pause_reading()

    def _feed(self) -> None:
        """Parse what is here, until there is a message to take, or the client leaves our pongs unread."""
        while self._rest and not (self.read_paused or self._is_failed or self.transport.is_closing()):
            data = self._rest
            self._rest = data[_SLICE:]
            self.conn.receive_data(data[:_SLICE])
            self.handle_events()  # before the mistake that may have followed: what came in order is passed on
            if self.conn.parser_exc is not None and not self._is_failed:
                self.handle_parser_exception()
            if not self.writable.is_set():
                self._is_clogged = True
                self.transport.pause_reading()
                return
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            if not self._is_clogged:
                self._feed()
        return message

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._is_clogged:
            self._is_clogged = False
            self._feed()

    def handle_cont(self, event: Frame) -> None:
        # Appended to one buffer: a list of fragments would cost a client nothing per entry.
        parts = cast(list[Any], self.frames)
        if not isinstance(parts[0], bytearray):
            parts[0] = bytearray(parts[0])
        parts[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        data = bytes(self.frames[0])
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "text":
            try:
                data.decode()
            except UnicodeDecodeError:
                self.conn.fail(1007, "text that is not UTF-8")
                self.handle_parser_exception()
                return
            self.queue.put_nowait({"type": "websocket.receive", "text": data})  # type: ignore[typeddict-item]
        else:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_parser_exception(self) -> None:
        """The client broke the protocol: say so, and let it read that before the connection goes."""
        self._is_failed = True
        self._rest = b""
        sent = self.conn.close_sent
        code, reason = (sent.code, sent.reason) if sent is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.linger()

    # -- the end --------------------------------------------------------------------------------

    def linger(self) -> None:
        """Close our half, drop what still comes, and close the rest soon: a reset would eat our last words."""
        if self._linger_timer is None and not self.transport.is_closing():
            self._is_failed = True
            self._linger_timer = self.loop.call_later(_CLOSE_S, self.transport.abort)
            self.close_timer = self._linger_timer  # with one, uvicorn leaves the closing to it
            self.transport.write_eof()
            self.transport.resume_reading()

    def keepalive_timeout(self) -> None:
        if self.read_paused or self._is_clogged:
            # The pong may be here, unread: it is the handler that takes its time, not the client.
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest = b""
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        cast(_BoundedClose, self.transport).lost()
        super().connection_lost(exc)
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()

    def shutdown(self) -> None:
        """The server leaves: the application closes its sockets itself, within the grace."""

    # -- what `drained` asks ----------------------------------------------------------------------

    @property
    def flow(self) -> GuardedSocket:
        return self

    @property
    def write_paused(self) -> bool:
        """Whether the client has left more unread than is kept for it."""
        return not self.writable.is_set()

    async def drain(self) -> None:
        """Wait until it has read enough."""
        await self.writable.wait()
