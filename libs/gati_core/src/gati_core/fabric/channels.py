"""The worker's end of a channel: ordered frames to one client and back, with flow control (ADR-0010)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from gati_core.errors import BrokerUnavailable, ChannelClosed, MalformedMessage
from gati_core.fabric.ports import MessagePort
from gati_core.wire import (
    CHANNEL_ACK_BYTES,
    CHANNEL_ACK_FRAMES,
    CHANNEL_SILENCE_S,
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    Frame,
    FrameKind,
    Subjects,
    decode_frame,
    encode,
)

log = structlog.get_logger(__name__)


class Channel:
    """One open channel. `send` waits while the client is slow; `receive` tells it to go on."""

    def __init__(
        self,
        request_id: str,
        subject: str,
        send: Callable[[Frame], None],
        *,
        now: Callable[[], float],
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.request_id = request_id
        self.subject = subject
        """Where the ingress sends its frames."""
        self.heard_at = now()
        self.on_lost = on_lost
        """Called once, with the reason, when the channel breaks or the client leaves."""
        self._send = send
        self._sent = 0
        self._acked = 0
        self._sizes: deque[int] = deque()
        self._unacked_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()
        self._received = 0
        self._consumed = 0
        self._consumed_bytes = 0
        self._acknowledged = 0
        self._inbox: deque[Frame] = deque()
        self._reader: asyncio.Future[None] | None = None
        self.closed: Frame | None = None
        """How it ended: a `close` frame of the client's or one that stands for a lost channel."""
        self._has_ended = False

    @property
    def unacked_frames(self) -> int:
        """Frames sent and not yet consumed by the client."""
        return self._sent - self._acked

    @property
    def is_open(self) -> bool:
        """Whether frames can still be sent."""
        return self.closed is None and not self._has_ended

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits in `receive` for a frame that has not come."""
        return self._reader is not None and not self._reader.done() and not self._inbox

    async def send(self, kind: FrameKind, data: bytes = b"") -> None:
        """Send one frame, waiting until the window has room for it.

        Raises:
            ChannelClosed: the client is gone, the channel broke, or its last frame was sent.
        """
        async with self._turn:
            while self.is_open and not self._has_room:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            self._must_be_open()
            self._put(Frame(PROTOCOL, self.request_id, self._sent + 1, kind, data))

    def end(self, kind: FrameKind, *, code: int = 0, text: str = "") -> None:
        """Send the last frame, which needs no room; nothing happens when the channel is closed already."""
        if self.is_open:
            try:
                self._put(Frame(PROTOCOL, self.request_id, self._sent + 1, kind, b"", code, text))
            except ChannelClosed as exc:
                log.debug("channel_end_not_sent", request_id=self.request_id, error=str(exc))
        self._has_ended = True
        self._wake()

    async def receive(self) -> Frame:
        """The next `text` or `binary` frame of the client.

        Raises:
            ChannelClosed: the client closed or is gone; `closed` says how. Frames that came before are
                returned first.
        """
        while not self._inbox:
            if self.closed is not None or self._has_ended:
                reason = self.closed.text if self.closed is not None else ""
                raise ChannelClosed(reason or "the connection is closed")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        frame = self._inbox.popleft()
        self._consumed += 1
        self._consumed_bytes += len(frame.data)
        if self._consumed - self._acknowledged >= CHANNEL_ACK_FRAMES or self._consumed_bytes >= CHANNEL_ACK_BYTES:
            self._acknowledged = self._consumed
            self._consumed_bytes = 0
            try:
                self._send(Frame(PROTOCOL, self.request_id, self._consumed, "ack"))
            except BrokerUnavailable as exc:
                self.lose(str(exc))
        return frame

    def feed(self, frame: Frame, now: float) -> None:
        """Take one frame from the wire. Called from the read loop; never waits, never raises."""
        self.heard_at = now
        if frame.kind == "probe":
            self._on_probe(frame.seq)
            return
        if self.closed is not None:
            return
        if frame.kind == "ack":
            self._on_ack(frame.seq)
            return
        self._received += 1
        if frame.seq != self._received:
            self.lose(f"frame {frame.seq} came where {self._received} was due: messages were lost")
        elif frame.kind == "close":
            self._close(frame)
        elif frame.kind not in ("text", "binary"):
            self.lose(f"a client sends no {frame.kind} frames")
        elif len(self._inbox) >= 2 * CHANNEL_WINDOW_FRAMES:
            self.lose("the ingress sent more than the window allows")
        else:
            self._inbox.append(frame)
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)

    def lose(self, reason: str) -> None:
        """The channel is broken: both directions end now."""
        if self.closed is None:
            log.info("channel_lost", request_id=self.request_id, reason=reason)
            self._close(Frame(PROTOCOL, self.request_id, 0, "close", b"", 1006, reason))

    def _close(self, frame: Frame) -> None:
        self.closed = frame
        self._wake()
        if self.on_lost is not None:
            self.on_lost(frame.text or "client_gone")

    def _wake(self) -> None:
        for future in (self._waiter, self._reader):
            if future is not None and not future.done():
                future.set_result(None)

    def _on_probe(self, seq: int) -> None:
        # Each side tells how much it has sent: of what a broker lost, nothing else would be noticed
        # while both wait for the other.
        if self.closed is None and seq != self._received:
            self.lose(f"the ingress has sent {seq} frames, and {self._received} came: messages were lost")
        if self.closed is None:
            answer = Frame(PROTOCOL, self.request_id, self._sent, "probe")
        else:
            answer = unknown_channel(self.request_id, self.closed.text)
        try:
            self._send(answer)
        except BrokerUnavailable as exc:
            log.debug("probe_not_answered", request_id=self.request_id, error=str(exc))

    def _on_ack(self, seq: int) -> None:
        while self._acked < min(seq, self._sent):
            self._acked += 1
            self._unacked_bytes -= self._sizes.popleft()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def _has_room(self) -> bool:
        # Full means full before the next frame: were that frame counted as well, a large one could wait
        # for the acknowledgement of less than the receiver acknowledges by itself.
        return len(self._sizes) < CHANNEL_WINDOW_FRAMES and self._unacked_bytes < CHANNEL_WINDOW_BYTES

    def _put(self, frame: Frame) -> None:
        try:
            self._send(frame)
        except BrokerUnavailable as exc:
            # What was sent before may be lost as well: only the client's next request can help.
            self.lose(str(exc))
            raise ChannelClosed(f"the broker is away: {exc}") from exc
        self._sent += 1
        self._sizes.append(len(frame.data))
        self._unacked_bytes += len(frame.data)

    def _must_be_open(self) -> None:
        if not self.is_open:
            reason = self.closed.text if self.closed is not None else "its last frame was sent"
            raise ChannelClosed(f"nothing can be sent any more: {reason or 'the client closed the connection'}")


def unknown_channel(request_id: str, reason: str = "") -> Frame:
    """Tells an ingress that this channel is not open here (any more); no frame of the channel itself."""
    return Frame(PROTOCOL, request_id, 0, "abort", b"", 0, reason or "the worker has ended this channel")


class ChannelPort(Protocol):
    """What opens channels: the process's `ChannelHost`, or a double in tests."""

    def open(self, request_id: str, reply_to: str) -> Channel:
        """A channel for one request, whose ingress listens where `reply_to` points."""

    def close(self, request_id: str) -> None:
        """Forget it."""


class ChannelHost:
    """The channels of one worker process, on one subscription."""

    def __init__(
        self, port: MessagePort, subjects: Subjects, worker: str, *, now: Callable[[], float] | None = None
    ) -> None:
        self._port = port
        self._subjects = subjects
        self._worker = worker
        self._now = now or asyncio.get_running_loop().time
        self._open: dict[str, Channel] = {}

    @property
    def filter(self) -> str:
        """What to subscribe `on_message` to."""
        return self._subjects.channel_filter(self._worker)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request_id: str, reply_to: str) -> Channel:
        """A channel for one request, whose ingress listens where `reply_to` points."""
        target = self._subjects.frames(reply_to, request_id).encode()

        def send(frame: Frame) -> None:
            self._port.publish_now(target, encode(frame))

        channel = Channel(request_id, self._subjects.channel(self._worker, request_id), send, now=self._now)
        self._open[request_id] = channel
        return channel

    def close(self, request_id: str) -> None:
        """Forget a channel that has ended."""
        self._open.pop(request_id, None)

    def on_message(self, subject: bytes, reply: bytes, data: bytes, _headers: bytes | None) -> None:
        """Called for every message on `filter`."""
        request_id = subject.rpartition(b".")[2].decode("ascii", "replace")
        channel = self._open.get(request_id)
        if channel is None:
            if reply:  # a probe: a broker that crashed has lost our last frame
                try:
                    self._port.publish_now(reply, encode(unknown_channel(request_id)))
                except BrokerUnavailable as exc:
                    log.debug("probe_not_answered", request_id=request_id, error=str(exc))
            return
        try:
            frame = decode_frame(data, subject="a channel")
        except MalformedMessage as exc:
            channel.lose(str(exc))
            return
        channel.feed(frame, self._now())

    def tick(self, now: float) -> None:
        """Give up channels whose ingress has been silent; called every 50 ms."""
        for channel in list(self._open.values()):
            if channel.is_open and now - channel.heard_at > CHANNEL_SILENCE_S:
                channel.lose(f"the ingress was silent for {CHANNEL_SILENCE_S:g} s")
