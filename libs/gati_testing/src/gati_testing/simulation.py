"""`simulate()`: a whole fabric in one process, without a broker, in virtual time.

What decides is what decides in production: the ingress's reading of a head, the router's catalogue
and route table, the lifecycle controller, the real contexts. What is not there is the broker: no
crash, no redelivery, no second process. Handlers that sleep for an hour take no time, and limits
strike at their exact instants, in the same order in every run.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from gati_core import App
from gati_core.contexts import GlobalContext, Instance, LocalContext, Registry, TopicHost, Topics, make_hook
from gati_core.errors import (
    Backpressure,
    ContentTooLarge,
    DeadlineExceeded,
    GatiError,
    NoLiveWorker,
    Overloaded,
    RequestError,
)
from gati_core.ids import new_request_id
from gati_core.lifecycle import HandlerThreads, Lifecycle, LifecycleEvent, Observers, Plan, watch_tasks
from gati_core.manifests import PoolManifest, WorkerAnnouncement
from gati_core.wire import PROTOCOL, WEBSOCKET, Reply, RequestDescriptor, for_namespace, problem_parts
from gati_ingress.head import read_head
from gati_router.catalogue import Catalogue
from gati_testing._execution import Execution
from gati_testing._memory_bucket import MemoryBucket
from gati_testing._memory_channels import ClientEnd, MemoryChannels
from gati_testing._memory_topics import MemoryTopics
from gati_testing._virtual_loop import VirtualLoop
from gati_testing.assertions import Answer
from gati_testing.builders import BuiltRequest, RequestBuilder, as_request

_CLIENT = "127.0.0.1"
T = TypeVar("T")


class SimulationMetrics(msgspec.Struct):
    """What happened so far."""

    requests: int = 0
    by_route: dict[str, int] = {}
    by_status: dict[int, int] = {}
    hook_executions: int = 0
    hook_errors: int = 0
    hook_timeouts: int = 0
    module_calls: int = 0
    module_errors: int = 0
    module_latency_s: float = 0.0
    """Virtual seconds spent in calls of modules."""


class HandshakeRefused(Exception):
    """A WebSocket handler did not accept; `answer` is what the client gets instead."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the handshake was refused with {answer.status}: {answer.body!r:.200}")
        self.answer = answer


class _Worker:
    """One app, as its worker process would hold it."""

    def __init__(self, app: App, plans: dict[str, Plan], lifecycle: Lifecycle, host: TopicHost, slots: int) -> None:
        self.app = app
        self.plans = plans
        self.lifecycle = lifecycle
        self.host = host
        self.slots = asyncio.Semaphore(slots)
        self.queued: dict[str, int] = dict.fromkeys(plans, 0)


class SimulatedSocket:
    """The client's end of a WebSocket connection in a simulation."""

    def __init__(self, simulation: Simulation, end: ClientEnd, execution: Execution, head: Reply) -> None:
        self._simulation = simulation
        self._end = end
        self._execution = execution
        self.request_id = execution.lctx.request_id
        self.subprotocol = next((value for name, value in head.headers if name == "sec-websocket-protocol"), "")
        """What the handler chose."""

    def send(self, message: str | bytes) -> None:
        """Send one message, and let the handler react."""
        kind, data = ("text", message.encode()) if isinstance(message, str) else ("binary", message)
        self._simulation.run(self._feed(kind, data))

    def receive(self, *, within_s: float = 30.0) -> str | bytes:
        """The next message of the handler's.

        Raises:
            ChannelClosed: it has closed; see `close_code`.
            TimeoutError: none came within these virtual seconds.
        """
        frame = self._simulation.run(asyncio.wait_for(self._end.next(), within_s))
        if frame.kind == "close":
            return self.receive(within_s=within_s)  # raises: nothing comes after it
        data: bytes = frame.data
        return data.decode() if frame.kind == "text" else data

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close as the client, and wait for the handler's end."""
        self._simulation.run(self._feed("close", b"", code=code, text=reason))
        self._simulation.run(self._simulation.settled(self._execution))

    def vanish(self) -> None:
        """Be gone without a word."""

        async def vanish() -> None:
            self._end.vanish()
            await self._simulation.settled(self._execution)

        self._simulation.run(vanish())

    @property
    def close_code(self) -> int | None:
        """With which the handler closed; None while it has not."""
        return self._end.ended.code if self._end.ended is not None else None

    async def _feed(self, kind: Any, data: bytes, *, code: int = 0, text: str = "") -> None:
        self._end.send(kind, data, code=code, text=text)
        await asyncio.sleep(0)


class Simulation:
    """A simulated fabric; made by `simulate`. Methods block for moments, from sync and async tests alike."""

    def __init__(
        self,
        apps: Sequence[App],
        *,
        modules: Mapping[str, Any],
        services: Mapping[str, Any],
        config: Mapping[str, Any],
        hooks: Mapping[str, Sequence[Callable[..., Any]]],
        hook_timeout_s: float,
        module_latency_s: float,
        request_timeout_s: float,
        max_in_flight: int,
        worker_slots: int,
        queue_limit: int,
        max_body_bytes: int,
    ) -> None:
        unknown = set(hooks) - {"before", "after", "catch", "finally"}
        if unknown:
            raise ValueError(f"hooks are before, after, catch and finally, not {sorted(unknown)}")
        self._apps = list(apps)
        self._modules = modules
        self._services = services
        self._config = config
        self._finally = list(hooks.get("finally", ()))
        self._extra_hooks = [
            make_hook(function, kind=kind, level="global", timeout_s=hook_timeout_s)
            for kind in ("before", "after", "catch")
            for function in hooks.get(kind, ())
        ]
        self._module_latency_s = module_latency_s
        self._request_timeout_s = request_timeout_s
        self._max_in_flight = max_in_flight
        self._worker_slots = worker_slots
        self._queue_limit = queue_limit
        self._max_body_bytes = max_body_bytes
        self._loop = VirtualLoop()
        self._in_flight = 0
        self._workers: dict[str, _Worker] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self.metrics = SimulationMetrics(by_route={}, by_status={})
        self.events: list[LifecycleEvent] = []
        """What the lifecycle did, of all requests, in order."""
        self._subjects = for_namespace("simulated")
        self._port = MemoryTopics(namespace="simulated")

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the start-up hooks and begin to serve."""
        self._loop.start()
        try:
            self.run(self._start())
        except BaseException:
            self._loop.close()
            raise

    def shutdown(self) -> None:
        """Run the shutdown hooks and end everything.

        Raises:
            AssertionError: something still ran.
        """
        try:
            self.run(self._stop())
        finally:
            leaked = self._loop.close()
        assert not leaked, f"tasks were left behind: {leaked}"

    def __enter__(self) -> Simulation:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def run(self, work: Awaitable[T]) -> T:
        """Run a coroutine inside the simulation and return its result."""

        async def wait() -> T:
            return await work

        return self._loop.call(wait())

    def now(self) -> float:
        """The virtual wall clock, Unix seconds."""
        return self._loop.now()

    def advance(self, seconds: float) -> None:
        """Let that much virtual time pass."""
        self.run(_sleep(seconds))

    def topics(self, publisher: str = "test") -> Topics:
        """Publish to, or listen on, the simulated topics; from inside `run`."""
        return Topics(self._port, publisher=publisher)

    def bucket(self, app: str, name: str) -> Any:
        """The bucket `gctx.buckets[name]` of an app; its methods are for `run`."""
        return self._workers[app].lifecycle.gctx.buckets[name]

    # -- requests -------------------------------------------------------------------------------

    def request(
        self,
        method: str | BuiltRequest | RequestBuilder,
        path: str = "/",
        *,
        json: Any = msgspec.UNSET,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send one request and return its answer.

        Args:
            timeout_s: the ingress's deadline, when it is not the simulation's.
        """
        return self.run(
            self.arequest(method, path, json=json, body=body, headers=headers, query=query, timeout_s=timeout_s)
        )

    async def arequest(
        self,
        method: str | BuiltRequest | RequestBuilder,
        path: str = "/",
        *,
        json: Any = msgspec.UNSET,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The same from inside `run`, for several at once."""
        if isinstance(method, str):
            builder = RequestBuilder(method, path)
            if query:
                builder.query(query)
            for name, value in (headers or {}).items():
                builder.header(name, value)
            if json is not msgspec.UNSET:
                builder.json(json)
            elif body:
                builder.body(body)
            built = builder.build()
        else:
            built = as_request(method)
        answer, _ = await self._serve(built, timeout_s or self._request_timeout_s)
        return answer

    def get(self, path: str, **options: Any) -> Answer:
        """`request("GET", …)`."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> Answer:
        """`request("POST", …)`."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Any) -> Answer:
        """`request("PUT", …)`."""
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Any) -> Answer:
        """`request("PATCH", …)`."""
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        """`request("DELETE", …)`."""
        return self.request("DELETE", path, **options)

    def websocket(self, path: str, *, headers: Mapping[str, str] | None = None) -> SimulatedSocket:
        """Open a WebSocket connection.

        Raises:
            HandshakeRefused: the handler, or the router, did not accept.
        """
        builder = RequestBuilder(WEBSOCKET, path)
        for name, value in (headers or {}).items():
            builder.header(name, value)

        async def connect() -> SimulatedSocket:
            answer, execution = await self._serve(builder.build(), self._request_timeout_s)
            if execution is None or execution.head is None:
                raise HandshakeRefused(answer)
            channels = execution.run.lifecycle.channels
            assert isinstance(channels, MemoryChannels)
            return SimulatedSocket(self, channels.ends[execution.lctx.request_id], execution, execution.head)

        return self.run(connect())

    def get_metrics(self) -> SimulationMetrics:
        """What happened so far."""
        return self.metrics

    async def settled(self, execution: Execution) -> None:
        """Wait until an execution has ended, at most its own limits."""
        waiting = [task for task in self._background if task.get_name() == execution.lctx.request_id]
        if waiting:
            await asyncio.wait(waiting, timeout=60)

    # -- inside the loop ------------------------------------------------------------------------

    async def _start(self) -> None:
        watch_tasks(asyncio.get_running_loop())
        self._catalogue = Catalogue(self._subjects, worker_ttl_s=1e9, now=asyncio.get_running_loop().time)
        for app in self._apps:
            worker = self._worker(app)
            await worker.lifecycle.gctx.lifecycle.run_startup(worker.lifecycle.gctx)
            await worker.host.start()
            self._workers[app.name] = worker
            handlers = [handler.manifest for handler in app.handlers.values()]
            manifest = PoolManifest(app=app.name, pool=app.name, handlers=handlers, published_ms=self._loop.now_ms())
            announcement = WorkerAnnouncement(worker=app.name, manifest=manifest)
            key = self._subjects.member_key("worker", app.name, app.name)
            self._catalogue.pool_changed(key, msgspec.json.encode(announcement))

    async def _stop(self) -> None:
        for worker in self._workers.values():
            gctx = worker.lifecycle.gctx
            await gctx.lifecycle.run_pre_shutdown(gctx)
        if self._background:
            await asyncio.wait(list(self._background), timeout=20)
        for worker in self._workers.values():
            if worker.lifecycle.detached:
                await asyncio.wait(list(worker.lifecycle.detached), timeout=20)
            await worker.host.aclose()
            gctx = worker.lifecycle.gctx
            await gctx.lifecycle.run_shutdown(gctx)

    def _worker(self, app: App) -> _Worker:
        loop = asyncio.get_running_loop()
        topics = Topics(self._port, publisher=app.name)
        modules = {name: _Timed(self, module) for name, module in self._modules.items()}
        gctx = GlobalContext(
            Instance(app.name, app.name, app.name, "simulated", self._loop.now_ms()),
            buckets={name: MemoryBucket(name, now=self._loop.now) for name in app.buckets},
            config=self._config,
            modules=Registry("module", modules),
            services=Registry("service", dict(self._services)),
            lifecycle=app.lifecycle.fresh(),
            topics=topics,
        )
        observers = Observers(instance=app.name)
        observers.listen(self._observe)
        for listener in app.listeners:
            observers.listen(listener)
        lifecycle = Lifecycle(
            gctx=gctx,
            threads=HandlerThreads(32),
            version="simulated",
            observers=observers,
            channels=MemoryChannels(loop.time),
            topics=topics.local,
            clock=self._loop.now,
        )
        lifecycle.alerts.extend(app.alerts)
        plans = {
            name: Plan(handler.call, [*handler.package_hooks, *self._extra_hooks])
            for name, handler in app.handlers.items()
        }
        host = TopicHost(topics=topics, port=self._port, app=app.name, handlers=app.subscribers, gctx=gctx)
        return _Worker(app, plans, lifecycle, host, self._worker_slots)

    async def _serve(self, built: BuiltRequest, timeout_s: float) -> tuple[Answer, Execution | None]:
        """As ingress, router and worker would: admit, match, queue, run, answer."""
        request_id = new_request_id(self._loop.now_ms())
        route = ""
        execution: Execution | None = None
        try:
            if len(built.body) > self._max_body_bytes:
                raise ContentTooLarge(f"a body of {len(built.body)} bytes exceeds the limit of {self._max_body_bytes}")
            if self._in_flight >= self._max_in_flight:
                raise Overloaded(f"{self._in_flight} requests are in flight, as many as this ingress takes")
            self._in_flight += 1
            try:
                target, params = self._catalogue.table.match(built.method, built.path)
                if not target.is_live:
                    raise NoLiveWorker(f"no live worker serves {target.path}")
                route = target.path
                descriptor = self._descriptor(built, request_id, timeout_s)
                answer, execution = await self._dispatch(
                    self._workers[target.app], target.handler, descriptor, params, timeout_s
                )
            finally:
                self._in_flight -= 1
        except (RequestError, GatiError) as exc:
            status, headers, body = problem_parts(exc, request_id)
            answer = Answer(status=status, headers=headers, body=body)
        answer.headers = [*answer.headers, ("x-request-id", request_id)]
        if built.method == "HEAD":
            answer.body = b""
        self._count(route, answer.status)
        return answer, execution

    async def _dispatch(
        self, worker: _Worker, handler: str, descriptor: RequestDescriptor, params: dict[str, str], timeout_s: float
    ) -> tuple[Answer, Execution | None]:
        if worker.queued[handler] >= self._queue_limit:
            raise Backpressure("the handler's queue is full")
        deadline = asyncio.get_running_loop().time() + timeout_s
        late = DeadlineExceeded(f"no answer within {timeout_s:g} s")
        worker.queued[handler] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await worker.slots.acquire()
        except TimeoutError:
            raise late from None
        finally:
            worker.queued[handler] -= 1
        execution = Execution(worker.lifecycle, worker.plans[handler], descriptor, params, descriptor.body)
        for function in self._finally:
            execution.lctx.lifecycle.on_cleanup(_bound(function, worker.lifecycle.gctx, execution.lctx))
        # Outside the handler's own tasks: it goes on when the client has stopped waiting.
        running = asyncio.Task(execution.finish(), loop=asyncio.get_running_loop(), name=descriptor.request_id)
        self._background.add(running)
        running.add_done_callback(self._background.discard)
        running.add_done_callback(lambda _: worker.slots.release())
        try:
            async with asyncio.timeout_at(deadline):
                await execution.began.wait()
        except TimeoutError:
            raise late from None
        if execution.head is not None and execution.head.status == 101:
            return Answer(status=101, headers=execution.head.headers), execution
        reply = await running
        channels = worker.lifecycle.channels
        end = channels.ends.get(descriptor.request_id) if isinstance(channels, MemoryChannels) else None
        if reply is not None:
            return Answer(status=reply.status, headers=reply.headers, body=reply.body), execution
        if execution.head is not None and end is not None:
            is_cut = end.ended is None or end.ended.kind != "end"
            head = execution.head
            body = b"".join(end.parts)
            return Answer(status=head.status, headers=head.headers, body=body, is_cut=is_cut), execution
        raise late

    def _descriptor(self, built: BuiltRequest, request_id: str, timeout_s: float) -> RequestDescriptor:
        head = read_head([(name.encode("latin-1"), value.encode("latin-1")) for name, value in built.headers])
        now_ms = self._loop.now_ms()
        return RequestDescriptor(
            PROTOCOL,
            request_id,
            self._subjects.reply("simulated", "r"),
            now_ms + int(timeout_s * 1000),
            now_ms,
            built.method,
            built.path,
            head.priority,
            head.version,
            built.principal,
            built.query,
            head.pairs,
            built.body,
            "",
            _CLIENT,
            head.traceparent,
            head.flags,
            head.idempotency_key,
        )

    # -- counting -------------------------------------------------------------------------------

    def _count(self, route: str, status: int) -> None:
        metrics = self.metrics
        metrics.requests += 1
        metrics.by_route[route] = metrics.by_route.get(route, 0) + 1
        metrics.by_status[status] = metrics.by_status.get(status, 0) + 1

    def _observe(self, event: LifecycleEvent) -> None:
        self.events.append(event)
        if event.type == "hook:end":
            self.metrics.hook_executions += 1
        elif event.type == "hook:error":
            self.metrics.hook_executions += 1
            self.metrics.hook_errors += 1
            if event.error.startswith("HookTimeout"):
                self.metrics.hook_timeouts += 1

    @property
    def module_latency_s(self) -> float:
        """What every async call of a module takes, in virtual seconds."""
        return self._module_latency_s


class _Timed:
    """A module whose calls are counted and take their virtual time."""

    def __init__(self, simulation: Simulation, module: Any) -> None:
        self._simulation = simulation
        self._module = module

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._module, name)
        if not callable(method):
            return method
        simulation, metrics = self._simulation, self._simulation.metrics

        def call(*args: Any, **kwargs: Any) -> Any:
            metrics.module_calls += 1
            try:
                result = method(*args, **kwargs)
            except BaseException:
                metrics.module_errors += 1
                raise
            return later(result) if inspect.isawaitable(result) else result

        async def later(work: Awaitable[Any]) -> Any:
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                await asyncio.sleep(simulation.module_latency_s)
                return await work
            except BaseException:
                metrics.module_errors += 1
                raise
            finally:
                metrics.module_latency_s += loop.time() - began

        return call


def simulate(
    *apps: App,
    modules: Mapping[str, Any] | None = None,
    services: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    hooks: Mapping[str, Sequence[Callable[..., Any]]] | None = None,
    hook_timeout_s: float = 5.0,
    module_latency_s: float = 0.0,
    request_timeout_s: float = 10.0,
    max_in_flight: int = 1024,
    worker_slots: int = 256,
    queue_limit: int = 10_000,
    max_body_bytes: int = 10 * 1024 * 1024,
) -> Simulation:
    """A simulated fabric that serves these apps; use it with `with`.

    Args:
        modules: `gctx.modules`, by name.
        hooks: further global hooks: lists under `before`, `after`, `catch` (as `App.before` takes
            them) and `finally` (`(gctx, lctx)`, at the end of every request).
        hook_timeout_s: for those hooks.
        module_latency_s: virtual seconds that every async call of a module takes.
        request_timeout_s: the ingress's deadline.
        max_in_flight: requests that the ingress admits at once; one more is answered 503.
        worker_slots: requests that each app's worker runs at once; the others wait.
        queue_limit: requests that may wait for one handler; one more is answered 503.

    >>> with simulate(app) as fabric:
    ...     assert fabric.get("/ping").text == "pong"
    """
    if not apps:
        raise ValueError("simulate() needs at least one app")
    return Simulation(
        apps,
        modules=modules or {},
        services=services or {},
        config=config or {},
        hooks=hooks or {},
        hook_timeout_s=hook_timeout_s,
        module_latency_s=module_latency_s,
        request_timeout_s=request_timeout_s,
        max_in_flight=max_in_flight,
        worker_slots=worker_slots,
        queue_limit=queue_limit,
        max_body_bytes=max_body_bytes,
    )


def _bound(function: Callable[..., Any], gctx: GlobalContext, lctx: LocalContext) -> Callable[[], Any]:
    return lambda: function(gctx, lctx)


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)
