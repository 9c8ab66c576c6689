"""Streamed HTTP answers: the head at once, parts as they come, and a cut where the worker broke off.

A client that gets the final chunk, or all of the promised length, has had the whole answer; every
other end closes the connection without it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from gati_core.errors import (
    ChannelBroken,
    ClientGone,
    ClientStalled,
    GatiError,
    MalformedReply,
    Overloaded,
    ShuttingDown,
)
from gati_core.wire import HEAD_ONLY, HeaderPairs, Reply
from gati_ingress.channels import Channel, Channels
from gati_ingress.protocol import GuardedProtocol
from gati_ingress.settings import IngressSettings
from gati_ingress.stats import Recorder

log = structlog.get_logger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NO_BODY = frozenset({204, 205, 304})


class Streams:
    """The streamed answers of one process.

    Args:
        cancel: tells the workers that nobody waits for this request any more, and why.
    """

    def __init__(
        self, *, settings: IngressSettings, recorder: Recorder, channels: Channels, cancel: Callable[[str, str], None]
    ) -> None:
        self._settings = settings
        self._recorder = recorder
        self._channels = channels
        self._cancel = cancel

    async def answer(self, scope: dict[str, Any], send: Send, reply: Reply, request_id: str) -> None:
        """Send the answer whose head is this reply; returns once it is complete, or cut.

        Raises:
            GatiError: nothing was sent yet, and this is to be answered instead.
        """
        channel = self._channels.get(request_id)
        if channel is None:
            raise ChannelBroken("the answer ended before it began")
        stats = self._recorder.stats
        try:
            headers, length = _head(reply, request_id)
            if stats.streams >= self._settings.max_streams:
                raise Overloaded(f"{stats.streams} streamed answers are open, as many as this ingress takes")
        except GatiError:
            self._channels.forget(channel)
            self._cancel(request_id, "refused")
            raise
        connection: GuardedProtocol = scope["gati.connection"]
        channel.on_cut = connection.transport.abort
        connection.on_gone = lambda: channel.fail(ClientGone("the client closed the connection"), at_once=True)
        if connection.transport.is_closing():
            connection.on_gone()
        stats.streams += 1
        try:
            await self._pump(scope, send, channel, connection, reply.status, headers, length)
        except GatiError as exc:
            self._give_up(channel, connection, exc)
        except BaseException as exc:
            self._cancel(request_id, "client_gone")
            connection.cut(at_once=True)
            if not isinstance(exc, Exception):
                raise
            log.exception("stream_failed", request_id=request_id)
        finally:
            stats.streams -= 1
            connection.on_gone = None
            self._channels.forget(channel)

    async def _pump(
        self,
        scope: dict[str, Any],
        send: Send,
        channel: Channel,
        connection: GuardedProtocol,
        status: int,
        headers: RawHeaders,
        length: int,
    ) -> None:
        is_unframed = length < 0 and scope["http_version"] == "1.0"  # its clients know no chunks
        if is_unframed:
            connection.set_unframed(scope, 1 << 62)
        if connection.flow.write_paused:
            await drained(connection, self._settings.stream_stall_s)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if status in _NO_BODY or scope["method"] == "HEAD":
            self._cancel(channel.request_id, HEAD_ONLY)
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        while True:
            frame = await channel.next()
            if frame.kind == "part":
                data = frame.data
                if length >= 0:
                    length -= len(data)
                    if length < 0:
                        raise ChannelBroken("the answer is longer than its content-length", is_mutual=True)
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                if connection.flow.write_paused:
                    await drained(connection, self._settings.stream_stall_s)
                channel.consumed(frame)
            elif frame.kind == "end":
                if length > 0:
                    raise ChannelBroken(f"the answer ended {length} bytes short of its content-length")
                if is_unframed:
                    connection.set_unframed(scope, 0)
                await send({"type": "http.response.body", "body": b""})
                return
            elif frame.kind == "abort":
                raise ChannelBroken(frame.text or "the handler failed in mid-answer")
            else:
                raise ChannelBroken(f"a frame of kind {frame.kind} in an HTTP answer", is_mutual=True)

    def _give_up(self, channel: Channel, connection: GuardedProtocol, error: GatiError) -> None:
        self._recorder.error(error.code)
        if isinstance(error, ChannelBroken):
            log.warning("stream_cut", request_id=channel.request_id, error=str(error))
        if not isinstance(error, ChannelBroken) or error.is_mutual:
            reason = "shutting_down" if isinstance(error, ShuttingDown) else "client_gone"
            self._cancel(channel.request_id, reason)
        connection.cut(at_once=isinstance(error, (ClientStalled, ShuttingDown)))


async def drained(connection: Any, stall_s: float) -> None:
    """Wait until the client has taken enough of what was written.

    Args:
        connection: has the `transport`, and a `flow` that tells whether it wants no more.
    Raises:
        ClientStalled: it took nothing for `stall_s`.
    """
    flow, transport = connection.flow, connection.transport
    left = transport.get_write_buffer_size()
    while flow.write_paused:
        try:
            async with asyncio.timeout(stall_s):
                await flow.drain()
        except TimeoutError:
            now_left = transport.get_write_buffer_size()
            if now_left >= left:
                raise ClientStalled(f"the client read nothing for {stall_s:g} s") from None
            left = now_left


def raw_headers(headers: HeaderPairs, *, drop: frozenset[str]) -> RawHeaders:
    """Headers as they go to a client, without those in `drop`.

    Raises:
        MalformedReply: a name or value that would be read as something else than one header.
    """
    raw = []
    for name, value in headers:
        name = name.lower()
        if name in drop:
            continue
        if _NAME.fullmatch(name) is None or _BAD_VALUE.search(value) is not None:
            raise MalformedReply(f"the reply holds a header that cannot be sent: {name[:80]!r}")
        try:
            raw.append((name.encode("ascii"), value.encode("latin-1")))
        except UnicodeEncodeError:
            raise MalformedReply(f"the reply's header {name[:80]!r} is not Latin-1") from None
    return raw


_FRAMING = frozenset({"transfer-encoding", "keep-alive", "upgrade", "trailer", "x-request-id"})


def _head(reply: Reply, request_id: str) -> tuple[RawHeaders, int]:
    """The headers to send, and the promised length of the body, or -1."""
    if not 200 <= reply.status <= 599:
        raise MalformedReply(f"a streamed answer cannot have status {reply.status}")
    headers = raw_headers(reply.headers, drop=_FRAMING)
    lengths = {value.strip() for name, value in headers if name == b"content-length"}
    if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
        raise MalformedReply("the reply's content-length is not one number")
    headers = [pair for pair in headers if pair[0] != b"content-length"]
    length = -1
    if lengths and reply.status not in _NO_BODY:
        length = int(lengths.pop())
        headers.append((b"content-length", b"%d" % length))
    headers.append((b"x-request-id", request_id.encode()))
    return headers, length
