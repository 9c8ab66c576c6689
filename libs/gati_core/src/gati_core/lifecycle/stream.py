"""`res.stream()`: an answer in parts, at the pace of the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

import msgspec

from gati_core.errors import ChannelClosed
from gati_core.fabric import Channel
from gati_core.wire import CHANNEL_FRAME_BYTES

_encode = msgspec.json.Encoder().encode


class BodyStream:
    """The body of one streamed answer.

    Status and headers leave with the first part, or when the `async with` block is entered. Leaving
    the block ends the body; an error inside it cuts the connection, so that the client sees that
    the body is not whole.

    >>> async def ticks(req, res, gctx, lctx) -> None:
    ...     async with res.stream(content_type="text/event-stream") as stream:
    ...         for number in range(3):
    ...             await stream.event({"tick": number})
    """

    def __init__(self, begin: Callable[[], Channel]) -> None:
        self._begin = begin
        self._channel: Channel | None = None
        self._has_ended = False
        self._turn = asyncio.Lock()
        self.bytes_sent = 0

    @property
    def has_begun(self) -> bool:
        """Whether status and headers have left."""
        return self._channel is not None

    @property
    def has_ended(self) -> bool:
        """Whether the body is complete or cut."""
        return self._has_ended

    def begin(self) -> None:
        """Send status and headers now."""
        if self._channel is None:
            self._channel = self._begin()

    async def write(self, data: bytes | str) -> None:
        """Send a part of the body; waits while the client has not taken what was sent before.

        Raises:
            ChannelClosed: the client is gone, or the stream has ended.
        """
        if self._has_ended:
            raise ChannelClosed("the stream has ended")
        raw = data.encode() if isinstance(data, str) else bytes(memoryview(data))
        self.begin()
        assert self._channel is not None  # noqa: S101 - begin() has set it
        async with self._turn:  # or parts of two large writes would mix
            for at in range(0, len(raw), CHANNEL_FRAME_BYTES):
                part = raw[at : at + CHANNEL_FRAME_BYTES]
                await self._channel.send("part", part)
                self.bytes_sent += len(part)

    async def event(self, data: object, *, event: str = "", id: str = "", retry_ms: int | None = None) -> None:
        """Send one server-sent event; `data` that is no string is sent as JSON.

        Raises:
            ValueError: `event` or `id` holds a line break.
            ChannelClosed: as for `write`.
        """
        if any(mark in text for text in (event, id) for mark in "\r\n\0"):
            raise ValueError("event and id of a server-sent event may not hold line breaks")
        text = data if isinstance(data, str) else _encode(data).decode()
        lines = [f"event: {event}"] if event else []
        if id:
            lines.append(f"id: {id}")
        if retry_ms is not None:
            lines.append(f"retry: {int(retry_ms)}")
        lines += [f"data: {line}" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        await self.write("\n".join(lines) + "\n\n")

    async def end(self) -> None:
        """The body is complete. Once is enough; leaving the `async with` block does it."""
        if not self._has_ended:
            self.begin()
            self._has_ended = True
            if self._channel is not None:
                self._channel.end("end")

    def abort(self, reason: str = "") -> None:
        """Cut the connection: the client sees that the body is not whole."""
        if not self._has_ended:
            self._has_ended = True
            if self._channel is not None:
                self._channel.end("abort", text=reason)

    async def __aenter__(self) -> BodyStream:
        self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.end()
        else:
            self.abort(kind.__name__)
