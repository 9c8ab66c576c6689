"""Channels: what one streamed answer or one WebSocket uses after its first reply (ADR-0010).

A channel counts and acknowledges frames, keeps both directions within their windows, and says when
the worker is gone. What the frames mean to a client is the business of `streaming` and `sockets`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

import structlog

from gati_core.errors import BrokerUnavailable, ChannelBroken, GatiError, MalformedMessage
from gati_core.fabric import MessagePort
from gati_core.wire import (
    CHANNEL_ACK_BYTES,
    CHANNEL_ACK_FRAMES,
    CHANNEL_PROBE_S,
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    Frame,
    FrameKind,
    Reply,
    decode_frame,
    encode,
)

log = structlog.get_logger(__name__)

_LAST = frozenset({"end", "close", "abort"})
_NO_RESPONDERS = b"NATS/1.0 503"
_BROKER_WAIT_S = 5.0
"""How long a frame waits for a broker that is away."""
_RETURN_S = 1.0
"""After a reconnect of ours, frames wait this long: a worker that is not back yet would miss them."""
_TRUST_S = 4.0
"""After a reconnect of ours, nobody listening does not mean yet that the worker is gone."""


class Channel:
    """One open channel, as its ingress sees it. Made by `Channels.open`, ended by `Channels.forget`."""

    __slots__ = (
        "_acked",
        "_consumed",
        "_error",
        "_is_closed",
        "_is_finished",
        "_next_seq",
        "_owner",
        "_queue",
        "_queued_bytes",
        "_reader",
        "_seq",
        "_since_bytes",
        "_since_frames",
        "_subject",
        "_unacked",
        "_unacked_bytes",
        "_writer",
        "is_forgotten",
        "is_socket",
        "on_cut",
        "request_id",
    )

    def __init__(self, owner: Channels, request_id: str, subject: str, *, is_socket: bool) -> None:
        self.request_id = request_id
        self.is_socket = is_socket
        self.is_forgotten = False
        self.on_cut: Callable[[], None] | None = None
        """Set by who owns the client's connection: drops it, and what is still to be written."""
        self._owner = owner
        self._subject = subject.encode()
        self._error: GatiError | None = None
        # From the worker:
        self._queue: deque[Frame] = deque()
        self._queued_bytes = 0
        self._next_seq = 1
        self._is_finished = False
        self._consumed = 0
        self._since_frames = 0
        self._since_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        # To the worker:
        self._seq = 0
        self._is_closed = False
        self._acked = 0
        self._unacked: deque[int] = deque()
        self._unacked_bytes = 0
        self._writer: asyncio.Future[None] | None = None

    # -- from the worker ------------------------------------------------------------------------

    async def next(self) -> Frame:
        """The worker's next frame, never an `ack`.

        Raises:
            GatiError: what the channel failed with, after the frames that came before; see `fail`.
        """
        queue = self._queue
        while not queue:
            if self._error is not None:
                raise self._error
            self._reader = self._owner.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = queue.popleft()
        self._queued_bytes -= len(frame.data)
        return frame

    def consumed(self, frame: Frame) -> None:
        """The client's socket has taken this frame: the worker may send as much again."""
        self._consumed = frame.seq
        self._since_frames += 1
        self._since_bytes += len(frame.data)
        if self._since_frames >= CHANNEL_ACK_FRAMES or self._since_bytes >= CHANNEL_ACK_BYTES:
            self._acknowledge()

    def offer(self, frame: Frame) -> None:
        """Take one frame off the wire. Never raises: what does not fit breaks the channel."""
        if self._error is not None or self._is_finished:
            return
        kind = frame.kind
        if kind == "ack":
            self._on_ack(frame.seq)
            return
        if kind == "probe":
            if frame.seq != self._next_seq - 1:
                text = f"the worker has sent {frame.seq} frames, and {self._next_seq - 1} came: messages were lost"
                self.fail(ChannelBroken(text, is_mutual=True))
            return
        if frame.seq == 0 and kind in ("abort", "close"):
            # Not one of the stream's frames: whoever listens there does not know this channel (any more).
            self.fail(ChannelBroken(frame.text or "the worker does not know this channel"))
            return
        if frame.seq != self._next_seq:
            self.fail(ChannelBroken(f"frame {frame.seq} came where {self._next_seq} was due", is_mutual=True))
            return
        if len(self._queue) >= 2 * CHANNEL_WINDOW_FRAMES or self._queued_bytes >= 2 * CHANNEL_WINDOW_BYTES:
            error = ChannelBroken(
                f"{len(self._queue)} frames of {self._queued_bytes} bytes wait: twice what may be unacknowledged",
                is_mutual=True,
            )
            self.fail(error, at_once=True)
            return
        self._next_seq += 1
        self._is_finished = kind in _LAST
        self._queue.append(frame)
        self._queued_bytes += len(frame.data)
        _wake(self._reader)

    # -- to the worker --------------------------------------------------------------------------

    async def send(self, kind: FrameKind, data: bytes) -> None:
        """Send one frame as soon as the window has room for it.

        Full means full before this frame: a sender that also counted the frame itself would wait for
        ever for the acknowledgement of less than the receiver acknowledges by itself.

        Raises:
            BrokerUnavailable: the broker was away for longer than a frame waits.
            MessageTooLarge: the broker does not take a message of this size.
            GatiError: what the channel failed with.
        """
        while len(self._unacked) >= CHANNEL_WINDOW_FRAMES or self._unacked_bytes >= CHANNEL_WINDOW_BYTES:
            await self._wait()
        frame = encode(Frame(PROTOCOL, self.request_id, self._seq + 1, kind, data))
        give_up_at = 0.0
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._owner.publish(self._subject, frame)
                break
            except BrokerUnavailable:
                now = self._owner.loop.time()
                give_up_at = give_up_at or now + _BROKER_WAIT_S
                if now >= give_up_at:
                    raise
                self._owner.stuck.add(self)
                await self._wait()
        self._seq += 1
        self._unacked.append(len(data))
        self._unacked_bytes += len(data)

    def close(self, code: int, reason: str) -> None:
        """Tell the worker that the socket is closed; needs no room. A worker not reached notices the silence.

        Only the first close counts, and none after the worker's own.
        """
        if self._is_closed or self._is_finished:
            return
        self._is_closed = True
        frame = Frame(PROTOCOL, self.request_id, self._seq + 1, "close", b"", code, reason)
        self._seq += 1
        self._publish(frame)

    @property
    def unacked(self) -> int:
        """Frames sent and not yet consumed by the worker."""
        return len(self._unacked)

    # -- the end --------------------------------------------------------------------------------

    def fail(self, error: GatiError, *, at_once: bool = False) -> None:
        """End it: `next` and `send` raise this. Only the first failure counts.

        Args:
            at_once: forget the frames that the client has not had yet.
        """
        if self._error is not None:
            return
        self._error = error
        if at_once:
            self._queue.clear()
            self._queued_bytes = 0
        _wake(self._reader)
        _wake(self._writer)

    def cut(self, error: GatiError) -> None:
        """As `fail` at once, and without waiting for a client that does not take what is written."""
        self.fail(error, at_once=True)
        if self.on_cut is not None:
            self.on_cut()

    def ended_by_worker(self, error: GatiError) -> None:
        """As `fail`, unless the worker had already sent its last frame."""
        if not self._is_finished:
            self.fail(error)

    def probe(self) -> None:
        """Say that we are here, and have the broker tell us when nobody listens.

        It says how much was sent, and so does the answer: what a crashed broker lost is noticed.
        The last acknowledgement goes along again: lost with a broker, it would stall the worker.
        """
        if self._is_finished or self._error is not None:
            return
        owner = self._owner
        frame = Frame(PROTOCOL, self.request_id, self._seq, "probe")
        try:
            owner.port.publish_now(self._subject, encode(frame), owner.frames_subject(self.request_id))
        except GatiError as exc:
            log.debug("probe_not_sent", request_id=self.request_id, error=str(exc))
            return
        if self._consumed:
            self._acknowledge()

    # -- inside ---------------------------------------------------------------------------------

    def _on_ack(self, seq: int) -> None:
        if seq > self._seq:
            self.fail(ChannelBroken(f"frame {seq} was acknowledged, and {self._seq} sent", is_mutual=True))
            return
        while self._acked < seq and self._unacked:  # a close is counted, and never waited for
            self._acked += 1
            self._unacked_bytes -= self._unacked.popleft()
        _wake(self._writer)

    def _acknowledge(self) -> None:
        self._since_frames = self._since_bytes = 0
        self._publish(Frame(PROTOCOL, self.request_id, self._consumed, "ack"))

    def _publish(self, frame: Frame) -> None:
        try:
            self._owner.port.publish_now(self._subject, encode(frame))
        except GatiError as exc:
            log.debug("frame_not_sent", request_id=self.request_id, kind=frame.kind, error=str(exc))

    async def _wait(self) -> None:
        """Until something changed that `send` waits for."""
        if self._error is not None:
            raise self._error
        self._writer = self._owner.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None
            self._owner.stuck.discard(self)

    def retry(self) -> None:
        """The broker may be back, or has been away too long: `send` looks again."""
        _wake(self._writer)


class Channels:
    """All open channels of one ingress process.

    Args:
        reply_to: where the replies of this process go; frames go to its siblings.
    """

    def __init__(self, *, port: MessagePort, reply_to: str, loop: asyncio.AbstractEventLoop) -> None:
        self.port = port
        self.loop = loop
        self.stuck: set[Channel] = set()
        """Channels with a frame that waits for the broker."""
        self._prefix = reply_to.rpartition(".")[0].encode() + b"."
        self._open: dict[str, Channel] = {}
        self._probes: deque[tuple[float, Channel]] = deque()
        self._is_down = False
        self._returned_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._open.values()))

    def frames_subject(self, request_id: str) -> bytes:
        """Where the worker sends the frames of this request."""
        return self._prefix + request_id.encode()

    def open(self, request_id: str, subject: str, *, is_socket: bool) -> Channel:
        """Begin to listen. The caller has checked the subject."""
        channel = self._open[request_id] = Channel(self, request_id, subject, is_socket=is_socket)
        self._probes.append((self.loop.time() + CHANNEL_PROBE_S, channel))
        return channel

    def get(self, request_id: str) -> Channel | None:
        """The open channel of this request."""
        return self._open.get(request_id)

    def forget(self, channel: Channel) -> None:
        """The request is over; what still comes for it is late."""
        channel.is_forgotten = True
        self._open.pop(channel.request_id, None)

    def on_frame(self, subject: bytes, data: bytes, headers: bytes | None) -> bool:
        """One message on one of the frame subjects; false when no channel of ours is meant."""
        channel = self._open.get(subject[len(self._prefix) :].decode("latin-1"))
        if channel is None:
            return False
        if headers is not None and not data and headers.startswith(_NO_RESPONDERS):
            if not self._is_down and self.loop.time() >= self._returned_at + _TRUST_S:
                channel.ended_by_worker(ChannelBroken("the worker is gone"))
            return True
        try:
            frame = decode_frame(data)
        except MalformedMessage as exc:
            channel.fail(ChannelBroken(f"a frame cannot be read: {exc}", is_mutual=True))
            return True
        if frame.request_id != channel.request_id:
            channel.fail(ChannelBroken("a frame names another request", is_mutual=True))
            return True
        channel.offer(frame)
        return True

    def on_late_reply(self, reply: Reply) -> bool:
        """A second reply to a request whose channel is open ends it; false when none is."""
        channel = self._open.get(reply.request_id)
        if channel is None:
            return False
        if reply.more:
            # The request ran again elsewhere. What the first run has sent cannot be continued by the second.
            channel.fail(ChannelBroken("the worker was replaced in mid-answer", is_mutual=True))
            return True
        code = reply.error.code if reply.error is not None else ""
        is_leaving = code in ("ingress.shutting_down", "worker.leaving", "worker.shutting_down")
        text = reply.error.message if reply.error is not None else f"a second reply came, status {reply.status}"
        channel.ended_by_worker(ChannelBroken(text, close_code=1012 if is_leaving else 1011))
        return True

    def tick(self, now: float) -> None:
        """Send the probes that are due. Call this many times a second: it looks at no other channel."""
        probes = self._probes
        while probes and probes[0][0] <= now:
            _, channel = probes.popleft()
            if not channel.is_forgotten:
                channel.probe()
                probes.append((now + CHANNEL_PROBE_S, channel))
        for channel in list(self.stuck):
            channel.retry()

    def publish(self, subject: bytes, frame: bytes) -> None:
        """Publish one counted frame, which must not be lost.

        Raises:
            BrokerUnavailable: not now.
            MessageTooLarge: not ever.
        """
        if self._is_down or (self._returned_at and self.loop.time() < self._returned_at + _RETURN_S):
            raise BrokerUnavailable("the connection to the broker has just come back")
        self.port.publish_now(subject, frame)

    def went_down(self) -> None:
        """Our connection is lost."""
        self._is_down = True

    def came_up(self) -> None:
        """Our connection is back; that of a worker may take a little longer."""
        self._is_down = False
        self._returned_at = self.loop.time()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
