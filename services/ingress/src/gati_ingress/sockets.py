"""WebSockets: a handshake that a handler decides, then messages both ways until one side closes (ADR-0010).

Two loops per socket, each with its own window. Where one cannot go on it stops reading, from the
client's connection or from the worker's frames, and so the other side's sender stalls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from uvicorn.protocols.utils import ClientDisconnected

from gati_core.errors import (
    BrokerUnavailable,
    ChannelBroken,
    ClientGone,
    ClientStalled,
    GatiError,
    MalformedReply,
    MessageTooLarge,
    Overloaded,
    ShuttingDown,
)
from gati_core.ids import new_request_id
from gati_core.wire import WEBSOCKET, HeaderPairs, Reply
from gati_ingress.channels import Channel, Channels
from gati_ingress.handshake import chosen, close_to_client
from gati_ingress.head import Head, read_head
from gati_ingress.settings import IngressSettings
from gati_ingress.socket_protocol import GuardedSocket
from gati_ingress.stats import Recorder
from gati_ingress.streaming import drained, raw_headers

log = structlog.get_logger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Ask = Callable[[Scope, Head, str, float, int], Awaitable[Reply]]
Refuse = Callable[[GatiError, str], tuple[int, HeaderPairs, bytes]]

_FINISH_S = 5.0
"""What a worker has to take the last messages of a client that is gone."""
_CLOSE_S = 3.0
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "trailer", "content-length", "x-request-id"})
_NOT_IN_ACCEPT = _HOP_BY_HOP | {
    *("upgrade", "content-type", "date"),
    *("sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-protocol", "sec-websocket-version"),
}


class Sockets:
    """The WebSockets of one process.

    Args:
        ask: publishes the handshake and waits for the reply that decides it.
        refuse: counts an error; returns status, headers and body of the answer that it means.
        take_body: fetches the body of a refusal that was too large for its reply.
    """

    def __init__(
        self,
        *,
        settings: IngressSettings,
        recorder: Recorder,
        channels: Channels,
        ask: Ask,
        refuse: Refuse,
        take_body: Callable[[str], Awaitable[bytes]],
    ) -> None:
        self._settings = settings
        self._recorder = recorder
        self._stats = recorder.stats
        self._channels = channels
        self._loop = channels.loop
        self._ask = ask
        self._refuse = refuse
        self._take_body = take_body
        self._held = 0
        """Sockets that are open or being opened: what the limit is about."""
        self._is_draining = False

    def begin_drain(self) -> None:
        """Close every socket with 1001, and those that are being opened as soon as they are."""
        self._is_draining = True
        for channel in self._channels:
            if channel.is_socket:
                channel.fail(_leaving())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry of one handshake, and of the socket that it may become."""
        self._held += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._held -= 1

    # -- the handshake --------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = self._loop.time()
        received_ms = time.time_ns() // 1_000_000
        request_id = new_request_id(received_ms)
        socket: GuardedSocket = scope["gati.connection"]
        route = ""
        channel: Channel | None = None
        accept: dict[str, Any] | None = None
        try:
            await receive()  # `websocket.connect`, which says nothing new
            if self._held > self._settings.max_websockets:
                raise Overloaded(f"{self._held - 1} sockets are open, as many as this ingress takes")
            if socket.disconnected:
                raise ClientGone("the client closed the connection")
            reply = await self._ask(scope, read_head(scope["headers"]), request_id, started, received_ms)
            route = reply.route
            status, headers, body = reply.status, reply.headers, reply.body
            if reply.more:
                channel = self._channels.get(request_id)
            if channel is not None and status == 101:
                accept = _accept(reply, scope["subprotocols"], request_id)
            elif not 200 <= status <= 599:
                raise MalformedReply(f"a handler answered a WebSocket handshake with status {status}")
            elif reply.body_ticket:
                body = await self._take_body(reply.body_ticket)
            if reply.error is not None:
                self._recorder.error(reply.error.code)
            rejection = None if accept is not None else _rejection(status, headers, body, request_id)
        except ClientGone as exc:
            self._recorder.error(exc.code)
            self._recorder.request(WEBSOCKET, "", exc.status, self._loop.time() - started, 0)
            return
        except GatiError as exc:
            status, headers, body = self._refuse(exc, request_id)
            accept, rejection = None, _rejection(status, headers, body, request_id)
        except Exception:
            log.exception("handshake_failed", request_id=request_id)
            status, headers, body = self._refuse(GatiError("The ingress failed."), request_id)
            accept, rejection = None, _rejection(status, headers, body, request_id)
        self._recorder.request(WEBSOCKET, route, status, self._loop.time() - started, 0)
        try:
            if accept is not None and channel is not None:
                await send(accept)
                await self._converse(receive, send, socket, channel)
            elif rejection is not None:
                for event in rejection:
                    await send(event)
        except ClientDisconnected:
            pass
        finally:
            if channel is not None:
                channel.close(1006 if accept is not None else 1011, "" if accept is not None else "handshake refused")
                self._channels.forget(channel)

    # -- an open socket -------------------------------------------------------------------------

    async def _converse(self, receive: Receive, send: Send, socket: GuardedSocket, channel: Channel) -> None:
        """Both loops, until one side closes; then the other side is told why."""
        if self._is_draining:
            channel.fail(_leaving())
        timers: list[asyncio.TimerHandle] = []

        def on_gone() -> None:
            error = ClientGone("the client closed the connection")
            timers.append(self._loop.call_later(_FINISH_S, lambda: channel.fail(error, at_once=True)))

        socket.on_gone = on_gone
        channel.on_cut = socket.transport.abort
        self._stats.websockets += 1
        inbound = self._loop.create_task(self._pump_in(receive, channel))
        try:
            farewell = await self._pump_out(send, socket, channel, inbound)
            if farewell is not None:
                await _say_goodbye(send, socket, farewell)
        finally:
            self._stats.websockets -= 1
            socket.on_gone = None
            for timer in timers:
                timer.cancel()
            inbound.cancel()
            await asyncio.wait([inbound])

    async def _pump_in(self, receive: Receive, channel: Channel) -> None:
        """From the client to the worker."""
        stats = self._stats
        try:
            while True:
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    # uvicorn gives no reason where the connection ended without a close.
                    code = message["code"] if "reason" in message else 1006
                    channel.close(code, message.get("reason") or "")
                    channel.fail(ClientGone("the client closed the socket"), at_once=True)
                    return
                stats.ws_messages_in += 1
                if "text" in message:
                    await channel.send("text", message["text"])  # as UTF-8 already: see `GuardedSocket`
                else:
                    await channel.send("binary", message["bytes"])
        except GatiError as exc:
            channel.fail(exc)

    async def _pump_out(
        self, send: Send, socket: GuardedSocket, channel: Channel, inbound: asyncio.Task[None]
    ) -> dict[str, Any] | None:
        """From the worker to the client; returns the close to send, or None when there is nobody to send it to."""
        try:
            return await self._deliver(send, socket, channel)
        except ClientStalled as exc:
            self._recorder.error(exc.code)
            socket.transport.abort()
            return None
        except (ClientGone, ClientDisconnected):
            # What the client sent before it left is still passed on, and how it left.
            await asyncio.wait([inbound], timeout=_FINISH_S)
            return None
        except GatiError as exc:
            self._recorder.error(exc.code)
            code, reason = _why(exc)
            if not isinstance(exc, ChannelBroken) or exc.is_mutual:
                channel.close(code, reason)
            if isinstance(exc, ChannelBroken):
                log.warning("socket_broken", request_id=channel.request_id, error=str(exc))
            return close_to_client(code, reason)

    async def _deliver(self, send: Send, socket: GuardedSocket, channel: Channel) -> dict[str, Any]:
        stats = self._stats
        while True:
            frame = await channel.next()
            kind = frame.kind
            event: dict[str, Any]
            if kind == "text":
                try:
                    event = {"type": "websocket.send", "text": frame.data.decode()}
                except UnicodeDecodeError:
                    raise ChannelBroken("a text frame is not UTF-8", is_mutual=True) from None
            elif kind == "binary":
                event = {"type": "websocket.send", "bytes": frame.data}
            elif kind == "close":
                return close_to_client(frame.code, frame.text)
            elif kind == "abort":
                raise ChannelBroken(frame.text or "the handler failed")
            else:
                raise ChannelBroken(f"a frame of kind {kind} on a socket", is_mutual=True)
            if socket.write_paused:
                await drained(socket, self._settings.stream_stall_s)
            if socket.close_sent or socket.disconnected:
                raise ClientGone("the client's socket is closed")
            await send(event)
            stats.ws_messages_out += 1
            if socket.write_paused:
                await drained(socket, self._settings.stream_stall_s)
            channel.consumed(frame)


def _leaving() -> ShuttingDown:
    return ShuttingDown("this ingress is shutting down")


def _why(error: GatiError) -> tuple[int, str]:
    """Close code and reason of what ended a socket."""
    if isinstance(error, ShuttingDown):
        return 1001, "going away"
    if isinstance(error, BrokerUnavailable):
        return 1013, "try again later"
    if isinstance(error, MessageTooLarge):
        return 1009, "message too big"
    if isinstance(error, ChannelBroken):
        return error.close_code, "the channel broke" if error.is_mutual else str(error)
    return 1011, "internal error"


async def _say_goodbye(send: Send, socket: GuardedSocket, farewell: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await socket.drain()
        if not (socket.close_sent or socket.disconnected):
            await send(farewell)
    except TimeoutError:
        socket.transport.abort()  # it takes nothing, so it would not take this either


def _accept(reply: Reply, subprotocols: list[str], request_id: str) -> dict[str, Any]:
    headers = raw_headers(reply.headers, drop=_NOT_IN_ACCEPT)
    headers.append((b"x-request-id", request_id.encode()))
    return {
        "type": "websocket.accept",
        "subprotocol": chosen(reply.headers, subprotocols) or None,
        "headers": headers,
    }


def _rejection(status: int, headers: HeaderPairs, body: bytes, request_id: str) -> list[dict[str, Any]]:
    raw = raw_headers(headers, drop=_HOP_BY_HOP)
    raw.append((b"x-request-id", request_id.encode()))
    if status in (204, 304):
        body = b""
    return [
        {"type": "websocket.http.response.start", "status": status, "headers": raw},
        {"type": "websocket.http.response.body", "body": body},
    ]
