"""Channels without an ingress: what a stream or a socket sends is kept, and the client is the test."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gati_core.errors import ChannelClosed
from gati_core.fabric import Channel
from gati_core.wire import CHANNEL_WINDOW_FRAMES, PROTOCOL, Frame, FrameKind

_IDLE_TURNS = 20
"""Of the loop: one task may read for another, which then has something to say."""
_LOOK_EVERY_S = 0.001


class ClientEnd:
    """The other end of one channel.

    Args:
        reads: whether the client takes what is sent as it comes; else `next` is what takes it, and a
            sender that is too far ahead waits.
    """

    def __init__(self, request_id: str, now: Callable[[], float], *, reads: bool) -> None:
        self.channel = Channel(request_id, f"memory.{request_id}", self._take, now=now)
        self.frames: deque[Frame] = deque()
        """What was sent and not yet taken by `next`."""
        self.ended: Frame | None = None
        """The `end`, `abort` or `close` frame."""
        self.is_over = False
        """Whether the handler has ended, or the client has closed."""
        self._reads = reads
        self._now = now
        self._sent = 0
        self._acked = 0
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def _take(self, frame: Frame) -> None:
        if frame.kind == "ack":
            self._acked = frame.seq
        else:
            if frame.kind in ("end", "abort", "close"):
                self.ended = frame
            self.frames.append(frame)
            if self._reads:
                self._loop.call_soon(self._acknowledge, frame)
        self._changed.set()

    def _acknowledge(self, frame: Frame) -> None:
        self.channel.feed(Frame(PROTOCOL, frame.request_id, frame.seq, "ack"), self._now())

    async def next(self) -> Frame:
        """The next frame that was sent; waits for it.

        Raises:
            ChannelClosed: there is none, and none will come.
        """
        while not self.frames:
            if self.ended is not None or self.is_over:
                raise ChannelClosed("the connection is closed")
            await self._wait()
        frame = self.frames.popleft()
        if not self._reads:
            self._acknowledge(frame)
        return frame

    async def send(self, kind: FrameKind, data: bytes = b"") -> None:
        """Send a message as the client; waits while the handler has not taken what was sent before.

        Raises:
            ChannelClosed: the handler, or the client, has closed.
        """
        while self._is_open and self._sent - self._acked >= CHANNEL_WINDOW_FRAMES:
            await self._wait()
        if not self._is_open:
            raise ChannelClosed("the connection is closed")
        self._feed(kind, data)

    async def answered(self) -> None:
        """Return when the handler has taken every message and waits for the next one, or has closed."""
        turns = 0
        while self._is_open and turns < _IDLE_TURNS:
            turns = turns + 1 if self.channel.is_awaited else 0
            await asyncio.sleep(0 if turns else _LOOK_EVERY_S)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close as the client; 1006 stands for a client that is gone without a word."""
        if self._is_open:
            self._feed("close", code=code, text=reason)
        self.over()

    def cut(self) -> None:
        """Be gone in the middle of a stream."""
        self.channel.lose("client_gone")
        self.over()

    def over(self) -> None:
        """Nothing more will come."""
        self.is_over = True
        self._changed.set()

    @property
    def _is_open(self) -> bool:
        return self.channel.is_open and not self.is_over

    def _feed(self, kind: FrameKind, data: bytes = b"", *, code: int = 0, text: str = "") -> None:
        self._sent += 1
        self.channel.feed(Frame(PROTOCOL, self.channel.request_id, self._sent, kind, data, code, text), self._now())

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class MemoryChannels:
    """A `ChannelPort` whose clients are `ClientEnd`s."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ends: dict[str, ClientEnd] = {}
        self._slow: set[str] = set()

    def read_slowly(self, request_id: str) -> None:
        """The client of this request takes what is sent by `ClientEnd.next` only."""
        self._slow.add(request_id)

    def claim(self, request_id: str) -> ClientEnd | None:
        """The client's end of a channel that was opened; whoever asks keeps it."""
        self._slow.discard(request_id)
        return self._ends.get(request_id)

    def open(self, request_id: str, reply_to: str) -> Channel:
        """See `ChannelPort`."""
        end = self._ends[request_id] = ClientEnd(request_id, self._now, reads=request_id not in self._slow)
        return end.channel

    def close(self, request_id: str) -> None:
        """See `ChannelPort`."""
        self._slow.discard(request_id)
        end = self._ends.pop(request_id, None)
        if end is not None:
            end.over()
