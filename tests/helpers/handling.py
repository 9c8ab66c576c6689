"""Requests through the lifecycle of one process, without a broker: what unit tests of a worker's inside stand on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anyio

from gati_core import App
from gati_core.contexts import GlobalContext, Instance, LocalTopics
from gati_core.errors import BrokerUnavailable
from gati_core.fabric import Channel
from gati_core.lifecycle import (
    HandlerRun,
    HandlerThreads,
    Lifecycle,
    LifecycleEvent,
    Observers,
    Plan,
    QuietControl,
)
from gati_core.wire import PROTOCOL, Frame, Reply, RequestDescriptor

WITHIN_S = 10.0
"""What one request of a test may take; only a test that hangs takes it."""


def descriptor(**fields: Any) -> RequestDescriptor:
    """A request that would work."""
    values: dict[str, Any] = {
        "request_id": "r-1",
        "reply_to": "gati.reply.i.0",
        "deadline_ms": 9_999,
        "received_ms": 1_000,
        "method": "POST",
        "path": "/orders/7",
    }
    return RequestDescriptor(protocol=PROTOCOL, **values | fields)


class Wire:
    """The other end of every channel: keeps what the worker sends, and sends what a test says."""

    def __init__(self, *, now: Callable[[], float] = lambda: 0.0) -> None:
        self.now = now
        self.is_up = True
        self.heads: list[Reply] = []
        self.frames: list[Frame] = []
        self.channels: dict[str, Channel] = {}
        self.closed: list[str] = []
        self.acks_at_once = True
        self._sent = 0

    def channel(self, request_id: str = "r-1") -> Channel:
        """One channel that sends to this end."""
        return Channel(request_id, f"gati.channel.w.{request_id}", self._take, now=self.now)

    def open(self, request_id: str, reply_to: str) -> Channel:
        """See `ChannelPort`."""
        channel = self.channels[request_id] = self.channel(request_id)
        return channel

    def close(self, request_id: str) -> None:
        """See `ChannelPort`."""
        self.closed.append(request_id)

    def _take(self, frame: Frame) -> None:
        if not self.is_up:
            raise BrokerUnavailable("no broker is connected")
        self.frames.append(frame)
        if self.acks_at_once and frame.kind not in ("ack", "close", "end", "abort") and self.channels:
            channel = self.channels[frame.request_id]
            ack = Frame(PROTOCOL, frame.request_id, frame.seq, "ack")
            asyncio.get_running_loop().call_soon(channel.feed, ack, self.now())

    def say(self, message: str | bytes, request_id: str = "r-1") -> None:
        """The client sends a message."""
        kind, data = ("text", message.encode()) if isinstance(message, str) else ("binary", message)
        self._sent += 1
        self.channels[request_id].feed(Frame(PROTOCOL, request_id, self._sent, kind, data), self.now())  # type: ignore[arg-type]

    def hang_up(self, code: int = 1000, reason: str = "", request_id: str = "r-1") -> None:
        """The client closes its socket."""
        self._sent += 1
        self.channels[request_id].feed(Frame(PROTOCOL, request_id, self._sent, "close", b"", code, reason), self.now())

    @property
    def sent(self) -> list[tuple[str, bytes]]:
        """Kind and data of what the worker sent, acks left out."""
        return [(frame.kind, frame.data) for frame in self.frames if frame.kind != "ack"]


class WireControl(QuietControl):
    """A `Control` whose run may stream to a `Wire`."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.wire = wire

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """Keep it."""
        if not self.wire.is_up:
            raise BrokerUnavailable("no broker is connected")
        self.wire.heads.append(reply)


class Underway:
    """A request whose handler runs."""

    def __init__(self, run: HandlerRun, control: QuietControl) -> None:
        self.run = run
        self.control = control
        self.task: asyncio.Task[Reply | None] = asyncio.ensure_future(_finish(run))

    def cancel(self, reason: str, *, is_own_limit: bool = False) -> None:
        """Cancel it as a worker does."""
        self.control.cancel_reason = reason
        self.control.is_own_limit = is_own_limit
        self.task.cancel()

    async def reply(self) -> Reply | None:
        """What it comes to, after its cleanup."""
        with anyio.fail_after(WITHIN_S):
            return await self.task


class Desk:
    """One process that runs the handlers of an app.

    Args:
        observed: whether somebody listens to lifecycle events; they are in `events`.
    """

    def __init__(
        self,
        *,
        observed: bool = False,
        threads: int = 4,
        topics: Callable[[str], LocalTopics] | None = None,
        observers: Observers | None = None,
        version: str = "",
    ) -> None:
        self.gctx = GlobalContext(Instance("i", "shop", "shop-1", "host", 0))
        self.wire = Wire()
        self.events: list[LifecycleEvent] = []
        self.threads = HandlerThreads(threads)
        self.lifecycle = Lifecycle(
            gctx=self.gctx,
            threads=self.threads,
            version=version,
            observers=observers,
            channels=self.wire,
            topics=topics,
        )
        if observed:
            self.lifecycle.observers.listen(self.events.append)

    def begin(self, app: App | Plan, *, handler: str = "", body: bytes = b"", **fields: Any) -> Underway:
        """Start one request of the app's only handler, or of the one that is named."""
        if isinstance(app, Plan):
            plan = app
        else:
            plan = app.handlers[handler or next(iter(app.handlers))].plan()
            self.lifecycle.alerts = list(app.alerts)
        control = WireControl(self.wire)
        run = HandlerRun(
            self.lifecycle, plan, descriptor(**fields), {"id": "7"}, body, attempt=2, routed_ms=1_500, control=control
        )
        return Underway(run, control)

    async def handle(self, app: App | Plan, **options: Any) -> Reply:
        """One request from its start through its cleanup; see `begin`."""
        reply = await self.begin(app, **options).reply()
        assert reply is not None, "nobody was answered"
        return reply

    @property
    def steps(self) -> list[str]:
        """The events so far, as `type stage`."""
        return [f"{event.type} {event.stage}".rstrip() for event in self.events]


async def _finish(run: HandlerRun) -> Reply | None:
    try:
        return await run.execute()
    finally:
        if run.needs_cleanup:
            await run.cleanup()


def problem(reply: Reply) -> dict[str, Any]:
    """The problem document of an error answer, checked against the reply that carries it."""
    document: dict[str, Any] = json.loads(reply.body)
    assert dict(reply.headers)["content-type"] == "application/problem+json"
    assert document["status"] == reply.status
    assert document["request_id"] == reply.request_id
    assert reply.error is not None
    assert reply.error.code == document["code"]
    return document


def shop(
    function: Callable[..., Any], *, id: str = "h", path: str = "/orders/{id}", method: str = "POST", **options: Any
) -> App:
    """An app with this one handler."""
    app = App("shop")
    if method == "WEBSOCKET":
        app.websocket(path, id=id, **options)(function)
    else:
        app.route(path, methods=[method], id=id, **options)(function)  # type: ignore[list-item]
    return app
