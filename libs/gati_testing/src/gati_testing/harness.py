"""`Harness`: one handler, run as a worker runs it, with fake modules and everything else real.

Hooks, validation, timeouts, compensation, snapshots, streams and sockets go through the same
lifecycle controller that runs in production; what a handler calls is what the test hands in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import msgspec

from gati_core import App
from gati_core.app import Handler, Route
from gati_core.contexts import Event, GlobalContext, Instance, LocalContext, Registry, Subscription, Topics
from gati_core.lifecycle import HandlerThreads, Lifecycle, LifecycleEvent, Observers
from gati_core.wire import WEBSOCKET, Reply
from gati_testing._execution import Execution
from gati_testing._memory_bucket import MemoryBucket
from gati_testing._memory_channels import ClientEnd, MemoryChannels
from gati_testing._memory_topics import MemoryTopics
from gati_testing.assertions import Answer
from gati_testing.builders import BuiltRequest, RequestBuilder, as_request, next_request_id

AnyRequest = BuiltRequest | RequestBuilder | Mapping[str, Any] | None
AnyHandler = Route[Any] | Callable[..., Any] | str


class Result(msgspec.Struct, kw_only=True):
    """What came of one execution."""

    response: Answer
    lctx: LocalContext
    """As the handler left it; its state is cleared at the end of the request, `state` is not."""
    state: dict[str, Any]
    """What `lctx.set` had stored when the handler ended."""
    error: BaseException | None
    """What made the request fail, as it was raised."""
    events: list[LifecycleEvent]
    """Everything the lifecycle did, in order."""
    published: list[Event]
    """What was published on topics that the harness listens to; see `Harness.listen`."""
    sent: list[str | bytes]
    """Messages that a WebSocket handler sent."""
    close_code: int | None = None
    """With which a WebSocket handler closed."""


class Harness:
    """Runs handlers of an app, or plain handler functions, in this event loop.

    Args:
        app: hooks, buckets and alerts of this app apply. Without one, each function stands alone.
        modules: `gctx.modules`, by name; see `create_mock_module`.
        services: `gctx.services`, by name.
        config: `gctx.config`.
        timeout_s: the deadline of a request, unless the execution says otherwise.

    >>> async def test_place_order() -> None:
    ...     async with Harness(app, modules={"orders": orders}) as harness:
    ...         result = await harness.execute_handler(place_order, {"body": {"sku": "ada"}})
    ...     assert result.response.status == 201
    """

    def __init__(
        self,
        app: App | None = None,
        *,
        modules: Mapping[str, Any] | None = None,
        services: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float = 10.0,
        threads: int = 8,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self._modules = dict(modules or {})
        self._services = dict(services or {})
        self._config = dict(config or {})
        self._timeout_s = timeout_s
        self._threads = HandlerThreads(threads)
        self._clock = clock
        self._buckets = {name: MemoryBucket(name, now=clock) for name in (app.buckets if app else ())}
        self._port = MemoryTopics()
        self.topics = Topics(self._port, publisher="harness")
        """Publish to handlers' subscriptions, or listen to what they publish."""
        self._published: list[Event] = []
        self._listening: list[Subscription] = []
        self._last: Execution | None = None
        self._gctx = self._global_context({}, {})

    # -- running --------------------------------------------------------------------------------

    async def execute_handler(
        self,
        handler: AnyHandler,
        request: AnyRequest = None,
        *,
        modules: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        messages: Iterable[str | bytes] = (),
        while_running: Callable[[Execution], Any] | None = None,
    ) -> Result:
        """Run one handler with its hooks and its cleanup.

        Args:
            handler: what a decorator returned, a handler's id, or a plain `(req, res, gctx, lctx)` function.
            request: see `as_request` for the form of a mapping.
            modules: added to those of the harness, for this execution.
            config: likewise.
            timeout_s: the request's deadline.
            messages: what a WebSocket client sends before it closes with 1000.
            while_running: called with the execution once it has begun; to cancel it, for example.
        Raises:
            LookupError: no such handler.
        """
        found = self._find(handler)
        built = as_request(request)
        if found.call.is_websocket:
            built = msgspec.structs.replace(built, method=WEBSOCKET)
        events: list[LifecycleEvent] = []
        observers = Observers(instance="harness")
        observers.listen(events.append)
        for listener in self.app.listeners if self.app else ():
            observers.listen(listener)
        channels = MemoryChannels(asyncio.get_running_loop().time)
        self._gctx = self._global_context(modules or {}, config or {})
        lifecycle = Lifecycle(
            gctx=self._gctx,
            threads=self._threads,
            version="test",
            observers=observers,
            channels=channels,
            topics=self.topics.local,
            clock=self._clock,
        )
        lifecycle.alerts.extend(self.app.alerts if self.app else ())
        descriptor = built.descriptor(
            request_id=next_request_id(),
            now_ms=int(self._clock() * 1000),
            timeout_s=timeout_s or self._timeout_s,
            reply_to="memory.reply.r",
        )
        execution = Execution(lifecycle, found.plan(), descriptor, built.params, built.body)
        self._last = execution
        running = asyncio.ensure_future(execution.finish())
        state: dict[str, Any] = {}
        lctx = execution.lctx
        lctx.lifecycle.on_cleanup(lambda: state.update(lctx._state or {}))
        if while_running is not None:
            outcome = while_running(execution)
            if asyncio.iscoroutine(outcome):
                await outcome
        if found.call.is_websocket:
            await self._talk(execution, channels, list(messages), running)
        reply = await running
        await asyncio.gather(*lifecycle.detached, return_exceptions=True)
        end = channels.ends.get(descriptor.request_id)
        return Result(
            response=_answer(reply, execution, end),
            lctx=lctx,
            state=state,
            error=execution.run.failure,
            events=events,
            published=list(self._published),
            sent=_messages(end),
            close_code=end.ended.code if end is not None and end.ended is not None else None,
        )

    @staticmethod
    async def _talk(
        execution: Execution, channels: MemoryChannels, messages: list[str | bytes], running: asyncio.Future[Any]
    ) -> None:
        await execution.began.wait()
        end = channels.ends.get(execution.lctx.request_id)
        if end is None or running.done():
            return
        for message in messages:
            if isinstance(message, str):
                end.send("text", message.encode())
            else:
                end.send("binary", message)
            await asyncio.sleep(0)
        if end.channel.is_open:
            end.send("close", code=1000)

    def _find(self, handler: AnyHandler) -> Handler:
        if isinstance(handler, Route):
            handler = handler.id if self.app is not None and handler.id in self.app.handlers else handler.function
        if isinstance(handler, str):
            handlers = self.app.handlers if self.app else {}
            if handler not in handlers:
                raise LookupError(f"no handler {handler!r} (there are: {', '.join(sorted(handlers)) or 'none'})")
            return handlers[handler]
        for each in (self.app.handlers if self.app else {}).values():
            if each.call.function is handler:
                return each
        alone = App("harness")
        alone.route("/", methods=["POST"], id="handler")(handler)
        return alone.handlers["handler"]

    # -- around it ------------------------------------------------------------------------------

    async def listen(self, *topics: str) -> None:
        """From now on, `Result.published` holds what handlers publish on these global topics."""
        for topic in topics:
            self._listening.append(await self.topics.subscribe(topic, self._published.append))

    def get_local_context(self) -> LocalContext:
        """The local context of the last execution.

        Raises:
            LookupError: nothing was executed yet.
        """
        if self._last is None:
            raise LookupError("nothing was executed yet")
        return self._last.lctx

    def get_global_context(self) -> GlobalContext:
        """The global context of the last execution, or of the next one."""
        return self._gctx

    async def cleanup(self) -> None:
        """Close what is open."""
        await self.topics.aclose()

    async def __aenter__(self) -> Harness:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cleanup()

    def _global_context(self, modules: Mapping[str, Any], config: Mapping[str, Any]) -> GlobalContext:
        return GlobalContext(
            Instance("harness", self.app.name if self.app else "harness", "harness", "localhost", 0),
            buckets=self._buckets,
            config={**self._config, **config},
            modules=Registry("module", {**self._modules, **modules}),
            services=Registry("service", self._services),
            topics=self.topics,
        )


def create_test_harness(
    app: App | None = None, *, modules: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None
) -> Harness:
    """A harness; see the class."""
    return Harness(app, modules=modules, config=config)


async def run_handler(
    handler: AnyHandler, request: AnyRequest = None, *, app: App | None = None, **options: Any
) -> Result:
    """Run one handler in a harness of its own; `options` are those of `Harness`."""
    async with Harness(app, **options) as harness:
        return await harness.execute_handler(handler, request)


def _answer(reply: Reply | None, execution: Execution, end: ClientEnd | None) -> Answer:
    if reply is not None:
        return Answer(status=reply.status, headers=reply.headers, body=reply.body)
    if execution.head is not None and end is not None:
        is_cut = end.ended is None or end.ended.kind == "abort"
        is_stream = execution.head.status != 101
        return Answer(
            status=execution.head.status,
            headers=execution.head.headers,
            body=b"".join(end.parts),
            is_cut=is_cut and is_stream,
        )
    return Answer(status=499)


def _messages(end: ClientEnd | None) -> list[str | bytes]:
    frames = end.frames if end is not None else ()
    return [
        frame.data.decode() if frame.kind == "text" else frame.data
        for frame in frames
        if frame.kind in ("text", "binary")
    ]
