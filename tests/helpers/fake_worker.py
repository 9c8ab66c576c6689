"""A worker that speaks the wire and does what a test says: for the other side's behaviour, mistakes included."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec

from gati_core.errors import GatiError
from gati_core.fabric import DeliveryPort, Fabric, KvBucket, PullConsumer, open_fabric
from gati_core.ids import new_instance_id
from gati_core.manifests import HandlerManifest, PoolManifest, WorkerAnnouncement
from gati_core.settings import FabricSettings
from gati_core.wire import (
    CHANNEL_WINDOW_BYTES,
    CHANNEL_WINDOW_FRAMES,
    PROTOCOL,
    WEBSOCKET,
    Cancel,
    DeliveryMode,
    Frame,
    FrameKind,
    HeaderPairs,
    Reply,
    ReplyError,
    RequestDescriptor,
    decode_cancel,
    decode_descriptor,
    decode_frame,
    decode_work,
    encode,
)
from tests.helpers.waiting import eventually

_WITHIN_S = 15.0


class FakeCall:
    """One request that reached the fake. Everything is sent at once, windows or not, unless it says otherwise."""

    def __init__(self, worker: FakeWorker, request: RequestDescriptor) -> None:
        self.request = request
        self.channel = worker.fabric.subjects.channel(worker.id, request.request_id)
        self.frames: list[Frame] = []
        """What came from the ingress, without acks and probes."""
        self.probes = 0
        self.acked = 0
        """The last of our frames that the ingress acknowledged."""
        self.seq = 0
        """The last frame that we sent."""
        self.acks_itself = True
        self._sizes: list[int] = []
        self._worker = worker
        self._frames_subject = worker.fabric.subjects.frames(request.reply_to, request.request_id).encode()

    # -- sending --------------------------------------------------------------------------------

    def reply(
        self,
        status: int = 200,
        headers: HeaderPairs | None = None,
        body: bytes = b"",
        *,
        more: bool = False,
        channel: str | None = None,
        error: ReplyError | None = None,
    ) -> None:
        """Answer, or with `more` only begin to."""
        reply = Reply(PROTOCOL, self.request.request_id, status, headers or [], body, more=more, error=error)
        reply.route = self.request.path
        reply.channel = (self.channel if channel is None else channel) if more else ""
        self._worker.fabric.connection.publish_now(self.request.reply_to.encode(), encode(reply))

    def open(self, status: int = 200, headers: HeaderPairs | None = None) -> None:
        """The head of a streamed answer, or 101 for a socket."""
        self.reply(status, headers, more=True)

    def send(
        self, kind: FrameKind, data: bytes = b"", *, code: int = 0, text: str = "", seq: int | None = None
    ) -> None:
        """One frame, with the next number or with another one."""
        if seq is None:
            self.seq += 1
            self._sizes.append(len(data))
        self.raw(encode(Frame(PROTOCOL, self.request.request_id, seq or self.seq, kind, data, code, text)))

    async def send_in_window(self, kind: FrameKind, data: bytes, *, within_s: float = _WITHIN_S) -> None:
        """One frame, as soon as the window has room."""
        await eventually(lambda: self.has_room, within_s=within_s, every_s=0.002)
        self.send(kind, data)

    @property
    def unacked(self) -> tuple[int, int]:
        """Frames and bytes that the ingress has not acknowledged."""
        return self.seq - self.acked, sum(self._sizes[self.acked :])

    @property
    def has_room(self) -> bool:
        """Whether the window has room for a frame."""
        frames, size = self.unacked
        return frames < CHANNEL_WINDOW_FRAMES and size < CHANNEL_WINDOW_BYTES

    def raw(self, data: bytes) -> None:
        """These bytes where the ingress expects a frame."""
        self._worker.fabric.connection.publish_now(self._frames_subject, data)

    def ack(self, seq: int) -> None:
        """Acknowledge the client's frames up to this one."""
        self.raw(encode(Frame(PROTOCOL, self.request.request_id, seq, "ack")))

    # -- receiving ------------------------------------------------------------------------------

    async def got(self, count: int, *, within_s: float = _WITHIN_S) -> list[Frame]:
        """Wait for that many frames; returns all."""
        await eventually(lambda: len(self.frames) >= count, within_s=within_s)
        return self.frames

    async def got_close(self, *, within_s: float = _WITHIN_S) -> tuple[int, str]:
        """Wait until the ingress closes the socket; returns code and reason."""
        await eventually(lambda: any(frame.kind == "close" for frame in self.frames), within_s=within_s)
        last = self.frames[-1]
        assert last.kind == "close", "something followed the close"
        return last.code, last.text

    async def was_cancelled(self, *, within_s: float = _WITHIN_S) -> str:
        """Wait until the ingress cancels the request; returns the reason."""
        cancels = self._worker.cancels
        await eventually(lambda: self.request.request_id in cancels, within_s=within_s)
        return cancels[self.request.request_id].reason

    def take(self, frame: Frame) -> None:
        """One frame off the wire."""
        if frame.kind == "ack":
            self.acked = frame.seq
        elif frame.kind == "probe":
            self.probes += 1
        else:
            assert frame.seq == len(self.frames) + 1, f"frame {frame.seq} came as number {len(self.frames) + 1}"
            self.frames.append(frame)
            if self.acks_itself:
                self.ack(frame.seq)


class FakeWorker:
    """Made by `fake_worker`."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.id = new_instance_id()
        self.pool = f"fake-{self.id}"
        self.calls: list[FakeCall] = []
        self.cancels: dict[str, Cancel] = {}
        self._taken = 0
        self._by_id: dict[str, FakeCall] = {}

    async def next_call(self, *, within_s: float = _WITHIN_S) -> FakeCall:
        """The next request that arrives."""
        await eventually(lambda: len(self.calls) > self._taken, within_s=within_s)
        self._taken += 1
        return self.calls[self._taken - 1]

    def on_delivery(self, delivery: DeliveryPort) -> None:
        """One work item."""
        work = decode_work(delivery.data, subject="work")
        call = FakeCall(self, decode_descriptor(work.descriptor, subject="work"))
        self._by_id[work.request_id] = call
        self.calls.append(call)
        delivery.ack()

    def on_frame(self, subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        """One frame from an ingress."""
        self._by_id[subject.rpartition(b".")[2].decode()].take(decode_frame(data))

    def on_cancel(self, _subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        """One cancellation."""
        cancel = decode_cancel(data)
        self.cancels[cancel.request_id] = cancel


@asynccontextmanager
async def fake_worker(
    settings: FabricSettings, routes: Sequence[tuple[str, str]], *, deaf: bool = False
) -> AsyncIterator[FakeWorker]:
    """Announce handlers for some methods and paths, and take their requests until the end of the block.

    Args:
        deaf: do not listen on channels, as if the process were gone.
    """
    async with open_fabric(settings, name="fake-worker") as fabric:
        worker = FakeWorker(fabric)
        handlers = [_handler(number, method, path) for number, (method, path) in enumerate(routes)]
        durables = await fabric.topology.ensure_pool(worker.pool, {each.id: each.mode for each in handlers})
        subjects = fabric.subjects
        await fabric.connection.subscribe(subjects.cancel_any, worker.on_cancel)
        if not deaf:
            await fabric.connection.subscribe(subjects.channel_filter(worker.id), worker.on_frame)
        consumers = [
            PullConsumer(
                fabric.connection,
                stream=subjects.work_stream,
                durable=durable,
                capacity=2048,
                on_delivery=worker.on_delivery,
                delivers_once=mode == "at_most_once",
            )
            for mode, durable in durables.items()
        ]
        for consumer in consumers:
            await consumer.start()
        manifest = PoolManifest(
            app="fake", pool=worker.pool, handlers=handlers, published_ms=time.time_ns() // 1_000_000
        )
        members = KvBucket(fabric.connection, subjects.pools_bucket)
        key = subjects.member_key("worker", worker.pool, worker.id)
        announcement = msgspec.json.encode(WorkerAnnouncement(worker=worker.id, manifest=manifest))

        async def announce() -> None:
            while True:
                try:
                    await members.put(key, announcement, ttl_s=60)
                except GatiError:
                    pass  # the broker of a test may be away
                await anyio.sleep(1.0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(announce)
            try:
                yield worker
            finally:
                tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            for consumer in consumers:
                await consumer.stop_pulling()
            if fabric.connection.is_up:
                await members.delete(key)


def _handler(number: int, method: str, path: str) -> HandlerManifest:
    mode: DeliveryMode = "at_most_once" if method in (WEBSOCKET, "POST") else "at_least_once"
    return HandlerManifest(id=f"h{number}", methods=[method], path=path, mode=mode)  # type: ignore[list-item]
