"""Channels without an ingress: what a stream or a socket sends is kept, and the client is the test."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gati_core.errors import ChannelClosed
from gati_core.fabric import Channel
from gati_core.wire import PROTOCOL, Frame, FrameKind


class ClientEnd:
    """The other end of one channel.

    Args:
        reads: whether the client takes what is sent; one that does not lets the sender wait.
    """

    def __init__(self, request_id: str, now: Callable[[], float], *, reads: bool) -> None:
        self.channel = Channel(request_id, f"memory.{request_id}", self._take, now=now)
        self.reads = reads
        self.frames: deque[Frame] = deque()
        """What was sent and not yet taken by `next`."""
        self.parts: list[bytes] = []
        """The body so far, when this is a stream."""
        self.ended: Frame | None = None
        """The `end`, `abort` or `close` frame."""
        self._now = now
        self._sent = 0
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def _take(self, frame: Frame) -> None:
        if frame.kind == "ack":
            return
        if frame.kind == "part":
            self.parts.append(frame.data)
        elif frame.kind in ("end", "abort", "close"):
            self.ended = frame
        self.frames.append(frame)
        self._arrived.set()
        if self.reads:
            ack = Frame(PROTOCOL, frame.request_id, frame.seq, "ack")
            self._loop.call_soon(self.channel.feed, ack, self._now())

    async def next(self) -> Frame:
        """The next frame that was sent; waits for it."""
        while not self.frames:
            if self.ended is not None:
                raise ChannelClosed("the connection is closed")
            self._arrived.clear()
            await self._arrived.wait()
        return self.frames.popleft()

    def send(self, kind: FrameKind, data: bytes = b"", *, code: int = 0, text: str = "") -> None:
        """Send a frame as the client."""
        self._sent += 1
        self.channel.feed(Frame(PROTOCOL, self.channel.request_id, self._sent, kind, data, code, text), self._now())

    def vanish(self) -> None:
        """Be gone without a word."""
        self.channel.lose("client_gone")


class MemoryChannels:
    """A `ChannelPort` whose clients are `ClientEnd`s."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.ends: dict[str, ClientEnd] = {}
        self.clients_read = True

    def open(self, request_id: str, reply_to: str) -> Channel:
        """See `ChannelPort`."""
        end = self.ends[request_id] = ClientEnd(request_id, self._now, reads=self.clients_read)
        return end.channel

    def close(self, request_id: str) -> None:
        """See `ChannelPort`; the client's end stays, for the test to look at."""
