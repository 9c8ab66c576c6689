"""`Harness`: one handler, run as a worker runs it, with fake modules and everything else real.

Hooks, validation, timeouts, compensation, snapshots, streams and sockets go through the same
lifecycle controller that runs in production; what a handler calls is what the test hands in.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import anyio
import msgspec

from gati_core import App, ChannelClosed
from gati_core.app import Handler, Route
from gati_core.contexts import Event, GlobalContext, Instance, LocalContext, Registry, Topics
from gati_core.lifecycle import HandlerThreads, Lifecycle, LifecycleEvent, Observers, watch_tasks
from gati_core.wire import WEBSOCKET, Reply
from gati_testing._execution import Execution
from gati_testing._memory_bucket import MemoryBucket
from gati_testing._memory_channels import ClientEnd, MemoryChannels
from gati_testing._memory_topics import MemoryTopics
from gati_testing._recorded_topics import RecordedTopics
from gati_testing.assertions import Answer
from gati_testing.builders import BuiltRequest, RequestBuilder, as_request, next_request_id

AnyRequest = BuiltRequest | RequestBuilder | Mapping[str, Any] | None
AnyHandler = Route[Any] | Callable[..., Any] | str

_SETTLE_S = 5.0


class Result(msgspec.Struct, kw_only=True):
    """What came of one execution."""

    response: Answer
    """Status 499 when the execution was cancelled as if the client had gone: nobody was answered."""
    lctx: LocalContext
    """As the request left it; its state is cleared at the end, `state` is not."""
    state: dict[str, Any]
    """What `lctx.set` had stored when the handler and its hooks had ended."""
    error: BaseException | None
    """What made the request fail, as it was raised."""
    events: list[LifecycleEvent]
    """Everything the lifecycle did, in order."""
    published: list[Event]
    """What was published on topics, global ones and those of the request, in order."""
    sent: list[str | bytes]
    """Messages that a WebSocket handler sent."""
    close_code: int | None = None
    """With which a WebSocket handler closed."""


class Harness:
    """Runs handlers with their hooks, or plain handler functions, in this event loop.

    What decorators of an `App` return knows its app: its hooks, buckets and alerts apply. Start-up and
    shutdown hooks do not run here; `simulate` runs them. `gctx.state`, metrics and buckets live as
    long as the harness, as in one worker process.

    Args:
        app: for handlers that are named by their id, and functions that were registered with it.
        modules: `gctx.modules`, by name; see `create_mock_module`.
        services: `gctx.services`, by name.
        config: `gctx.config`.
        timeout_s: the deadline of a request, unless the execution says otherwise.
        threads: `def` handlers and hooks that run at once.
        clock: Unix seconds, for the contexts.

    >>> from gati_testing import assert_response, create_stub_module
    >>> app = App("shop")
    >>> @app.post("/orders")
    ... async def place_order(req, res, gctx, lctx) -> None:
    ...     res.status(201).json(await gctx.modules["orders"].create(req.body["sku"]))
    >>> async def test_place_order() -> None:
    ...     harness = Harness(modules={"orders": create_stub_module({"create": "o-1"})})
    ...     result = await harness.execute_handler(place_order, {"body": {"sku": "ada"}})
    ...     return assert_response(result.response).status(201).json("o-1") is not None
    >>> asyncio.run(test_place_order())
    True
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
        self._buckets: dict[str, MemoryBucket] = {}
        self._port = MemoryTopics()
        self._topics: Topics | None = None
        self._last: Execution | None = None
        self._gctx = self._global_context(app, {}, {}, None)

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
            handler: what a decorator returned, a handler's id, or a `(req, res, gctx, lctx)` function.
            request: see `as_request` for the form of a mapping.
            modules: added to those of the harness, for this execution.
            config: likewise.
            timeout_s: the request's deadline.
            messages: what a WebSocket client sends. It closes, with 1000, when the handler has taken
                them all and waits for the next.
            while_running: a plain or async function, called with the execution once the handler waits
                for something (or has ended); `execution.cancel("client_gone")` ends it.
        Raises:
            LookupError: no such handler.
        """
        app, found = self._find(handler)
        built = as_request(request)
        if found.call.is_websocket:
            built = msgspec.structs.replace(built, method=WEBSOCKET)
        loop = asyncio.get_running_loop()
        if loop.get_task_factory() is None:
            watch_tasks(loop)  # as in a worker: what a handler starts and forgets ends with its request
        published: list[Event] = []
        events: list[LifecycleEvent] = []
        topics = Topics(RecordedTopics(self._port, published), publisher="harness")
        gctx = self._gctx = self._global_context(app, modules or {}, config or {}, topics)
        lifecycle = self._lifecycle(app, gctx, topics, events)
        execution = self._last = Execution(
            lifecycle,
            found.plan(),
            built.descriptor(
                request_id=next_request_id(),
                now_ms=int(self._clock() * 1000),
                timeout_s=self._timeout_s if timeout_s is None else timeout_s,
                reply_to="memory.reply.r",
            ),
            built.params,
            built.body,
        )
        running = asyncio.Task(execution.finish(), loop=loop, name=f"harness {execution.lctx.request_id}")
        end: ClientEnd | None = None
        try:
            await execution.has_started.wait()
            if while_running is not None:
                outcome = while_running(execution)
                if inspect.isawaitable(outcome):
                    await outcome
            await execution.began.wait()
            channels = lifecycle.channels
            end = channels.claim(execution.lctx.request_id) if isinstance(channels, MemoryChannels) else None
            if end is not None and found.call.is_websocket:
                await _talk(end, messages, self._timeout_s if timeout_s is None else timeout_s)
            await asyncio.wait([running])
        finally:
            with anyio.CancelScope(shield=True):  # bounded: what does not end in time is left
                execution.cancel("client_gone")  # nothing happens when it has ended
                await asyncio.wait([running], timeout=2 * _SETTLE_S)
                await _settle(lifecycle, topics)
        return Result(
            response=_answer(running.result(), execution, end),
            lctx=execution.lctx,
            state=execution.state,
            error=execution.run.failure,
            events=events,
            published=published,
            sent=_messages(end),
            close_code=end.ended.code if end is not None and end.ended is not None else None,
        )

    def _find(self, handler: AnyHandler) -> tuple[App, Handler]:
        if isinstance(handler, Route) and handler.app is not None:
            return handler.app, handler.app.handlers[handler.id]
        handlers = self.app.handlers if self.app else {}
        if isinstance(handler, str):
            if self.app is None or handler not in handlers:
                raise LookupError(f"no handler {handler!r} (there are: {', '.join(sorted(handlers)) or 'none'})")
            return self.app, handlers[handler]
        for each in handlers.values():
            if self.app is not None and each.call.function is handler:
                return self.app, each
        alone = App("harness")
        alone.route("/", methods=["POST"], id="handler")(handler)
        return alone, alone.handlers["handler"]

    def _lifecycle(self, app: App, gctx: GlobalContext, topics: Topics, events: list[LifecycleEvent]) -> Lifecycle:
        observers = Observers(instance="harness")
        for listener in (events.append, *app.listeners):
            observers.listen(listener)
        lifecycle = Lifecycle(
            gctx=gctx,
            threads=self._threads,
            version="test",
            observers=observers,
            channels=MemoryChannels(asyncio.get_running_loop().time),
            topics=topics.local,
            clock=self._clock,
        )
        lifecycle.alerts.extend(app.alerts)
        return lifecycle

    # -- around it ------------------------------------------------------------------------------

    @property
    def topics(self) -> Topics:
        """Publish to what handlers subscribe to, or listen to what they publish while they run."""
        if self._topics is None:
            self._topics = Topics(self._port, publisher="test")
        return self._topics

    def bucket(self, name: str) -> MemoryBucket:
        """`gctx.buckets[name]`, to prepare it before or to look into it afterwards."""
        if name not in self._buckets:
            self._buckets[name] = MemoryBucket(name, now=self._clock)
        return self._buckets[name]

    def get_local_context(self) -> LocalContext:
        """The local context of the last execution.

        Raises:
            LookupError: nothing was executed yet.
        """
        if self._last is None:
            raise LookupError("nothing was executed yet")
        return self._last.lctx

    def get_global_context(self) -> GlobalContext:
        """The global context of the last execution; before the first, one without topics."""
        return self._gctx

    async def cleanup(self) -> None:
        """Close what the test subscribed to; executions leave nothing open."""
        if self._topics is not None:
            topics, self._topics = self._topics, None
            await topics.aclose()

    async def __aenter__(self) -> Harness:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cleanup()

    def _global_context(
        self, app: App | None, modules: Mapping[str, Any], config: Mapping[str, Any], topics: Topics | None
    ) -> GlobalContext:
        gctx = GlobalContext(
            Instance("harness", app.name if app else "harness", "harness", "localhost", int(self._clock() * 1000)),
            buckets={name: self.bucket(name) for name in (app.buckets if app else ())},
            config={**self._config, **config},
            modules=Registry("module", {**self._modules, **modules}),
            services=Registry("service", self._services),
            topics=topics,
        )
        last: GlobalContext | None = getattr(self, "_gctx", None)
        if last is not None:  # one process, as far as handlers can tell
            gctx.state, gctx.metrics = last.state, last.metrics
        return gctx


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


async def _talk(end: ClientEnd, messages: Iterable[str | bytes], within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            for message in messages:
                if isinstance(message, str):
                    await end.send("text", message.encode())
                else:
                    await end.send("binary", message)
            await end.answered()
    except (ChannelClosed, TimeoutError):
        pass  # the handler has heard enough, or does not listen
    end.close(1000)


async def _settle(lifecycle: Lifecycle, topics: Topics) -> None:
    """Let end what may outlive a request; a harness outlives none."""
    loose = [*lifecycle.detached, *lifecycle.gctx.spawned]
    if loose:
        _, late = await asyncio.wait(loose, timeout=_SETTLE_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_SETTLE_S)
    await topics.aclose()


def _answer(reply: Reply | None, execution: Execution, end: ClientEnd | None) -> Answer:
    if reply is not None:
        return Answer(status=reply.status, headers=reply.headers, body=reply.body)
    head = execution.head
    if head is None or end is None:
        return Answer(status=499)
    parts = b"".join(frame.data for frame in end.frames if frame.kind == "part")
    is_cut = head.status != 101 and (end.ended is None or end.ended.kind != "end")
    return Answer(status=head.status, headers=head.headers, body=parts, is_cut=is_cut)


def _messages(end: ClientEnd | None) -> list[str | bytes]:
    frames = end.frames if end is not None else ()
    return [
        frame.data.decode() if frame.kind == "text" else frame.data
        for frame in frames
        if frame.kind in ("text", "binary")
    ]
