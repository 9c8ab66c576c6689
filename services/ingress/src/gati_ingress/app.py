"""One request, as plain ASGI: read, publish, wait for the reply, answer.

The path of a request holds no task, no lock and no timer of its own: deadlines are swept every
50 ms, publish acks and replies arrive as callbacks (ADR-0004).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from gati_core.errors import (
    ClientGone,
    ContentTooLarge,
    DeadlineExceeded,
    GatiError,
    MalformedReply,
    Overloaded,
    PublishUnconfirmed,
    RequestTimeout,
    ShuttingDown,
)
from gati_core.fabric import Fabric, KvView
from gati_core.ids import new_instance_id, new_request_id
from gati_core.wire import (
    PROTOCOL,
    WEBSOCKET,
    Cancel,
    HeaderPairs,
    Reply,
    RequestDescriptor,
    decode_reply,
    encode,
    problem_parts,
)
from gati_ingress.channels import Channels
from gati_ingress.head import Head, read_head, take_version
from gati_ingress.operations import Operations
from gati_ingress.settings import IngressSettings
from gati_ingress.sockets import Sockets
from gati_ingress.stats import Recorder
from gati_ingress.streaming import Streams

log = structlog.get_logger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_NO_BODY = frozenset({204, 304})
_REMEMBER_MS = 5_000


class _Pending:
    """One request that waits for its reply."""

    __slots__ = ("deadline", "deadline_ms", "future", "is_socket", "request_id")

    def __init__(
        self, request_id: str, deadline: float, deadline_ms: int, future: asyncio.Future[Reply], is_socket: bool
    ) -> None:
        self.request_id = request_id
        self.is_socket = is_socket
        self.deadline = deadline
        self.deadline_ms = deadline_ms
        self.future = future


class Ingress:
    """The ASGI application of one process. `start` before the first request, `aclose` after the last."""

    def __init__(self, *, settings: IngressSettings, fabric: Fabric, shared_stats: str = "") -> None:
        self._settings = settings
        self._version_names = [name for part in settings.version_query.split(",") if (name := part.strip())]
        self._version_hints = [f"{name}=" for name in self._version_names]
        self._fabric = fabric
        self._publisher = fabric.publisher
        self._connection = fabric.connection
        self.id = new_instance_id()
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[str, _Pending] = {}
        self._admitted = 0
        """Requests whose body is being read or whose answer is awaited: what the limit is about."""
        subjects = fabric.subjects
        self._req_subjects = [subjects.req(priority).encode() for priority in range(11)]
        self._reply_to = subjects.reply(self.id, "r")
        self._reply_subject = self._reply_to.encode()
        self._is_channel = subjects.is_channel
        self._cancel_subject = subjects.cancel_any.encode()
        self._view = KvView(fabric.connection, subjects.pools_bucket)
        self.recorder = Recorder(self.id)
        self.operations = Operations(
            settings=settings, fabric=fabric, view=self._view, recorder=self.recorder, shared=shared_stats
        )
        self.channels = Channels(port=fabric.connection, reply_to=self._reply_to, loop=self._loop)
        self._streams = Streams(
            settings=settings, recorder=self.recorder, channels=self.channels, cancel=self._cancel_open
        )
        self._sockets = Sockets(
            settings=settings,
            recorder=self.recorder,
            channels=self.channels,
            ask=self._ask_socket,
            refuse=self._refusal,
            take_body=fabric.bodies.take,
        )
        self._watch_task: asyncio.Task[None] | None = None
        self.is_draining = False

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for replies and begin to watch what readiness depends on.

        Raises:
            BrokerUnavailable: the broker did not let us.
        """
        await self._connection.subscribe(self._fabric.subjects.reply_filter(self.id), self._on_reply)
        await self._view.start()
        await self.operations.refresh()
        self._watch_task = self._loop.create_task(self.operations.keep_fresh())
        self._connection.on_tick(self._sweep)
        self._connection.on_tick(self.channels.tick)
        self._connection.on_up(self.channels.came_up)
        self._connection.on_down(self.channels.went_down)

    def begin_drain(self) -> None:
        """From now on: not ready, new requests get 503, and sockets, which end by no other means, are closed."""
        self.is_draining = True
        self.operations.is_draining = True
        self._sockets.begin_drain()

    def answer_all_waiting(self) -> None:
        """The grace is over: requests still waiting are answered 503, and cancelled; what streams is cut."""
        for pending in list(self._in_flight.values()):
            if not pending.future.done():
                self._cancel(pending, "shutting_down")
                _fail(pending, ShuttingDown("this ingress is shutting down"))
        for channel in self.channels:
            channel.cut(ShuttingDown("this ingress is shutting down"))

    async def aclose(self) -> None:
        """Stop watching, after the server has closed its last connection."""
        for listener in (self._sweep, self.channels.tick, self.channels.came_up, self.channels.went_down):
            self._connection.off(listener)
        if self._watch_task is not None:
            self._watch_task.cancel()
        await self.operations.aclose()
        await self._view.aclose()

    @property
    def in_flight(self) -> int:
        """Requests that wait for an answer."""
        return len(self._in_flight)

    # -- one request --------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry; the server has no lifespan, so there are only requests and WebSocket handshakes."""
        if scope["type"] != "http":
            await self._sockets(scope, receive, send)
            return
        raw_path: bytes = scope["raw_path"]
        operation = self.operations.by_path.get(raw_path)
        if operation is not None:
            await operation(scope, send)
            return
        started = self._loop.time()
        received_ms = time.time_ns() // 1_000_000
        request_id = new_request_id(received_ms)
        method: str = scope["method"]
        size = 0
        route = ""
        try:
            head = read_head(scope["headers"])
            self._admit()
            try:
                body = b""
                if head.has_body:
                    body = await self._read_body(head, receive, is_here="gati.is_whole" in scope)
                    size = len(body)
                reply = await self._ask(scope, raw_path, method, head, body, request_id, started, received_ms)
            finally:
                self._admitted -= 1
            route = reply.route
            status, headers, answer = reply.status, reply.headers, reply.body
            if reply.more:
                await self._streams.answer(scope, send, reply, request_id)
                self.recorder.request(method, route, status, self._loop.time() - started, size)
                return
            if reply.body_ticket:
                answer = await self._fabric.bodies.take(reply.body_ticket)
            if reply.error is not None:
                self.recorder.error(reply.error.code)
        except ClientGone as exc:
            self.recorder.error(exc.code)
            self.recorder.request(method, "", exc.status, self._loop.time() - started, size)
            return
        except GatiError as exc:
            status, headers, answer = self._refusal(exc, request_id)
        except Exception:
            log.exception("ingress_failed", request_id=request_id)
            status, headers, answer = self._refusal(GatiError("The ingress failed."), request_id)
        await _answer(send, status, headers, answer, request_id)
        elapsed = self._loop.time() - started
        self.recorder.request(method, route, status, elapsed, size)
        if status >= 500 or (self._settings.log_sample and random.random() < self._settings.log_sample):  # noqa: S311
            log.info(
                "request_answered",
                request_id=request_id,
                method=method,
                path=raw_path.decode("latin-1")[:200],
                status=status,
                duration_ms=round(elapsed * 1000, 2),
            )

    def _admit(self) -> None:
        if self.is_draining:
            raise ShuttingDown("this ingress is shutting down")
        if self._admitted >= self._settings.max_in_flight:
            raise Overloaded(f"{self._admitted} requests are in flight, as many as this ingress takes")
        self._admitted += 1

    async def _ask_socket(self, scope: Scope, head: Head, request_id: str, started: float, received_ms: int) -> Reply:
        """Publish a WebSocket handshake and wait for the reply that decides it."""
        self._admit()
        try:
            return await self._ask(scope, scope["raw_path"], WEBSOCKET, head, b"", request_id, started, received_ms)
        finally:
            self._admitted -= 1

    async def _ask(
        self,
        scope: Scope,
        raw_path: bytes,
        method: str,
        head: Head,
        body: bytes,
        request_id: str,
        started: float,
        received_ms: int,
    ) -> Reply:
        """Publish the request and wait for its one answer."""
        timeout_s = self._settings.request_timeout_s
        deadline_ms = received_ms + int(timeout_s * 1000)
        ticket = ""
        if len(body) > self._fabric.settings.claim_check_bytes:
            ticket = await self._fabric.bodies.put(request_id, body)
            body = b""
        client = scope.get("client")
        version, query = head.version, scope["query_string"].decode("latin-1")
        if query and self._version_hints and any(hint in query for hint in self._version_hints):
            asked, query = take_version(query, self._version_names)
            version = asked or version
        descriptor = RequestDescriptor(
            PROTOCOL,
            request_id,
            self._reply_to,
            deadline_ms,
            received_ms,
            method,
            raw_path.decode("ascii"),
            head.priority,
            version,
            None,
            query,
            head.pairs,
            body,
            ticket,
            client[0] if client else "",
            head.traceparent,
            head.flags,
            head.idempotency_key,
        )
        future: asyncio.Future[Reply] = self._loop.create_future()
        pending = _Pending(request_id, started + timeout_s, deadline_ms, future, method is WEBSOCKET)
        connection = scope.get("gati.connection")
        self._in_flight[request_id] = pending
        try:
            self._publisher.publish(self._req_subjects[head.priority], encode(descriptor), self._on_published, pending)
            if connection is not None:
                connection.on_gone = lambda: self._client_gone(pending)
            return await future
        finally:
            del self._in_flight[request_id]
            if connection is not None:
                connection.on_gone = None

    async def _read_body(self, head: Head, receive: Receive, *, is_here: bool) -> bytes:
        limit = self._settings.max_body_bytes
        if head.content_length > limit:
            raise ContentTooLarge(f"a body of {head.content_length} bytes exceeds the limit of {limit}")
        if is_here:  # the usual case: the body came with the head, and reading it does not wait
            message = await receive()
            if not message.get("more_body") and message["type"] == "http.request":
                whole: bytes = message["body"]
                if len(whole) > limit:
                    raise ContentTooLarge(f"a body of {len(whole)} bytes exceeds the limit of {limit}")
                return whole
            raise ClientGone("the client left before it had sent the body")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientGone("the client left before it had sent the body")
                    parts.append(message["body"])
                    size += len(message["body"])
                    if size > limit:
                        raise ContentTooLarge(f"the body exceeds the limit of {limit} bytes")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestTimeout(f"the body was not complete after {self._settings.body_timeout_s:g} s") from None

    def _refusal(self, error: GatiError, request_id: str) -> tuple[int, HeaderPairs, bytes]:
        self.recorder.error(error.code)
        status, headers, body = problem_parts(error, request_id)
        if isinstance(error, (ContentTooLarge, RequestTimeout, ShuttingDown)):
            headers.append(("connection", "close"))  # the rest of the body is not worth reading
        return status, headers, body

    # -- what comes back ------------------------------------------------------------------------

    def _on_reply(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None) -> None:
        if subject != self._reply_subject:
            if not self.channels.on_frame(subject, data, headers):
                self.recorder.stats.late_replies += 1
            return
        try:
            reply = decode_reply(data)
        except MalformedReply as exc:
            self.recorder.error(exc.code)
            log.error("reply_refused", error=str(exc))
            return
        pending = self._in_flight.get(reply.request_id)
        if pending is None or pending.future.done():
            if not self.channels.on_late_reply(reply):
                self.recorder.stats.late_replies += 1
            return
        if reply.more:  # its frames may be in the same read: the channel has to be there for them
            if not self._is_channel(reply.channel):
                self._cancel(pending, "refused")
                _fail(pending, MalformedReply(f"{reply.channel[:80]!r} is no channel of this fabric"))
                return
            self.channels.open(reply.request_id, reply.channel, is_socket=pending.is_socket)
        pending.future.set_result(reply)

    def _on_published(self, pending: _Pending, error: GatiError | None) -> None:
        if error is None or pending.future.done():
            return
        if isinstance(error, PublishUnconfirmed):
            self._cancel(pending, "unconfirmed")  # it may be stored after all: nobody waits for it
        _fail(pending, error)

    def _client_gone(self, pending: _Pending) -> None:
        if not pending.future.done():
            self._cancel(pending, "client_gone")
            _fail(pending, ClientGone("the client closed the connection"))

    def _sweep(self, now: float) -> None:
        for pending in list(self._in_flight.values()):
            if pending.deadline <= now and not pending.future.done():
                self._cancel(pending, "deadline")
                _fail(pending, DeadlineExceeded(f"no answer within {self._settings.request_timeout_s:g} s"))

    def _cancel(self, pending: _Pending, reason: str) -> None:
        self._send_cancel(Cancel(PROTOCOL, pending.request_id, reason, pending.deadline_ms))

    def _cancel_open(self, request_id: str, reason: str) -> None:
        """Cancel what has begun to answer: it is running, so nobody has to remember for long."""
        self._send_cancel(Cancel(PROTOCOL, request_id, reason, time.time_ns() // 1_000_000 + _REMEMBER_MS))

    def _send_cancel(self, cancel: Cancel) -> None:
        self.recorder.stats.cancelled += 1
        try:
            self._connection.publish_now(self._cancel_subject, encode(cancel))
        except GatiError as exc:
            log.debug("cancel_not_sent", request_id=cancel.request_id, error=str(exc))


def _fail(pending: _Pending, error: GatiError) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)


async def _answer(send: Send, status: int, headers: HeaderPairs, body: bytes, request_id: str) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    raw.append((b"x-request-id", request_id.encode()))
    if status not in _NO_BODY:
        raw.append((b"content-length", b"%d" % len(body)))
    else:
        body = b""
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
