"""The inside of a simulation: ingress, router and workers in one event loop, whose time is virtual."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gati_core import App
from gati_core.app.versioning import PackageVersions
from gati_core.contexts import GlobalContext, Hook, Instance, Registry, TopicHost, Topics
from gati_core.errors import (
    Backpressure,
    ChannelClosed,
    ContentTooLarge,
    DeadlineExceeded,
    GatiError,
    NoLiveWorker,
    Overloaded,
    ShuttingDown,
    TransformFailed,
)
from gati_core.ids import new_request_id
from gati_core.lifecycle import HandlerThreads, Lifecycle, LifecycleEvent, Observers, watch_tasks
from gati_core.manifests import PoolManifest, WorkerAnnouncement, memory_store
from gati_core.timescape import Choice, memory_registry, timeline_key
from gati_core.wire import WEBSOCKET, HeaderPairs, RequestDescriptor, for_namespace, problem_parts
from gati_router.catalogue import Catalogue
from gati_router.routes import Target
from gati_testing._execution import Execution, Version
from gati_testing._memory_bucket import MemoryBucket
from gati_testing._memory_channels import ClientEnd, MemoryChannels
from gati_testing._memory_topics import MemoryTopics
from gati_testing._modules import timed
from gati_testing._virtual_loop import VirtualLoop
from gati_testing.assertions import Answer
from gati_testing.builders import BuiltRequest

MAX_EVENTS = 100_000
_NO_BODY = frozenset({204, 304})
_NO_STREAMED_BODY = frozenset({204, 205, 304})
_SWEEP_S = 0.05
"""How late an ingress may notice a deadline: a handler that obeys its own limit answers before."""
_DRAIN_S = 20.0
_LEAVE_S = 5.0


class SimulationMetrics(msgspec.Struct):
    """What happened so far."""

    requests: int = 0
    by_route: dict[str, int] = {}
    """By the route's path; `""` counts what no route was found for."""
    by_status: dict[int, int] = {}
    hook_executions: int = 0
    hook_errors: int = 0
    hook_timeouts: int = 0
    module_calls: int = 0
    module_errors: int = 0
    module_latency_s: float = 0.0
    """Virtual seconds spent in calls of modules."""
    abandoned: int = 0
    """Handlers that did not react to being cancelled."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `simulate` was told."""

    modules: Mapping[str, Any]
    services: Mapping[str, Any]
    config: Mapping[str, Any]
    hooks: Sequence[Hook]
    finally_hooks: Sequence[Callable[..., Any]]
    module_latency_s: float
    request_timeout_s: float
    max_in_flight: int
    worker_slots: int
    queue_limit: int
    max_body_bytes: int


class Served(msgspec.Struct, kw_only=True):
    """What the client has of a request."""

    answer: Answer
    execution: Execution | None = None
    end: ClientEnd | None = None
    """Of a stream that the client reads itself, or of a socket: the client's end."""


class Worker:
    """One app, as its worker process would hold it."""

    def __init__(
        self,
        app: App,
        lifecycle: Lifecycle,
        topics: Topics,
        host: TopicHost,
        options: Options,
        versions: PackageVersions,
    ) -> None:
        self.app = app
        self.versions = versions
        self.lifecycle = lifecycle
        self.topics = topics
        self.host = host
        self.channels = MemoryChannels(asyncio.get_running_loop().time)
        lifecycle.channels = self.channels
        self.plans = {name: handler.plan(options.hooks) for name, handler in app.handlers.items()}
        self.slots = asyncio.Semaphore(options.worker_slots)
        self.queued = dict.fromkeys(self.plans, 0)

    @property
    def gctx(self) -> GlobalContext:
        """What its handlers share."""
        return self.lifecycle.gctx


class SimulatedFabric:
    """See the module. Everything but making it happens inside the loop."""

    def __init__(self, apps: Sequence[App], options: Options, loop: VirtualLoop) -> None:
        self._apps = list(apps)
        self.options = options
        self._loop = loop
        self._subjects = for_namespace("simulated")
        self.port = MemoryTopics(namespace="simulated")
        self.metrics = SimulationMetrics(by_route={}, by_status={})
        self.events: deque[LifecycleEvent] = deque(maxlen=MAX_EVENTS)
        self._workers: dict[str, Worker] = {}
        self._buckets: dict[str, MemoryBucket] = {}
        self._in_flight = 0
        self._running: dict[asyncio.Task[Any], Execution] = {}
        self._deaf: set[asyncio.Task[Any]] = set()
        """Of handlers that were abandoned."""
        self._sockets: dict[str, ClientEnd] = {}
        self._is_draining = False

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start a worker for each app, and learn their routes."""
        watch_tasks(asyncio.get_running_loop())
        self._catalogue = Catalogue(self._subjects, worker_ttl_s=1e9, now=asyncio.get_running_loop().time)
        registry = memory_registry(now_ms=self._loop.now_ms)
        store = memory_store()
        versions = Counter[str]()
        for app in self._apps:
            versions[app.name] += 1
            # Of one app given several times, each is a version, as if one had been published after the other.
            label = f"v{versions[app.name]}"
            pool = app.name if versions[app.name] == 1 else f"{app.name}-{label}"
            worker = self._worker(app, PackageVersions(app, registry, store))
            await worker.gctx.lifecycle.run_startup(worker.gctx)
            self._workers[pool] = worker
            await worker.host.start()
            await worker.versions.store_documents()
            for each in await worker.versions.register(package="", actor="simulate", tags=[label]):
                timeline = await registry.timeline(app.name, each.handler)
                self._catalogue.timeline_changed(timeline_key(app.name, each.handler), msgspec.json.encode(timeline))
            handlers = [handler.manifest for handler in app.handlers.values()]
            # Of two apps with one route, the newer one is served: here, the one that was named later.
            published_ms = self._loop.now_ms() + len(self._workers)
            manifest = PoolManifest(app=app.name, pool=pool, handlers=handlers, published_ms=published_ms)
            announcement = WorkerAnnouncement(worker=pool, manifest=manifest)
            key = self._subjects.member_key("worker", pool, pool)
            self._catalogue.pool_changed(key, msgspec.json.encode(announcement))

    async def stop(self) -> None:
        """Close sockets, let requests finish, run the shutdown hooks; in the order of real services."""
        self._is_draining = True
        for end in list(self._sockets.values()):
            end.close(1001, "going away")
        for worker in self._workers.values():
            await worker.gctx.lifecycle.run_pre_shutdown(worker.gctx)
        if not await _ended(self._loose(), within_s=_DRAIN_S):
            for execution in self._running.values():
                execution.cancel("leaving")
            await _ended(self._running, within_s=_LEAVE_S)
            for task in self._loose():
                task.cancel()
            await _ended(self._loose(), within_s=_LEAVE_S)
        for worker in self._workers.values():
            await worker.host.aclose()
            await worker.gctx.lifecycle.run_shutdown(worker.gctx)
            await worker.topics.aclose()
        for task in self._deaf:
            try:
                task.get_coro().close()  # where no cancellation is heard, this is
            except RuntimeError:
                pass  # not even this

    def _loose(self) -> list[asyncio.Task[Any]]:
        """Whatever a process waits for before it leaves."""
        of_workers = [
            task for each in self._workers.values() for task in (*each.lifecycle.detached, *each.gctx.spawned)
        ]
        return [*self._running, *of_workers]

    def bucket(self, name: str) -> MemoryBucket:
        """One bucket; as in a fabric, apps that declare the same name share it."""
        if name not in self._buckets:
            self._buckets[name] = MemoryBucket(name, now=self._loop.now)
        return self._buckets[name]

    def worker(self, app: str) -> Worker:
        """The worker of an app."""
        return self._workers[app]

    def _worker(self, app: App, versions: PackageVersions) -> Worker:
        options = self.options
        topics = Topics(self.port, publisher=app.name)
        modules = {
            name: timed(module, self.metrics, options.module_latency_s) for name, module in options.modules.items()
        }
        gctx = GlobalContext(
            Instance(app.name, app.name, app.name, "simulated", self._loop.now_ms()),
            buckets={name: self.bucket(name) for name in app.buckets},
            config=options.config,
            modules=Registry("module", modules),
            services=Registry("service", dict(options.services)),
            lifecycle=app.lifecycle.fresh(),
            topics=topics,
        )
        observers = Observers(instance=app.name)
        for listener in (self._observe, *app.listeners):
            observers.listen(listener)
        lifecycle = Lifecycle(
            gctx=gctx,
            threads=HandlerThreads(32),
            version="simulated",
            observers=observers,
            topics=topics.local,
            clock=self._loop.now,
        )
        lifecycle.alerts.extend(app.alerts)
        host = TopicHost(topics=topics, port=self.port, app=app.name, handlers=app.subscribers, gctx=gctx)
        return Worker(app, lifecycle, topics, host, options, versions)

    # -- one request ----------------------------------------------------------------------------

    async def serve(self, built: BuiltRequest, timeout_s: float, *, is_read_slowly: bool = False) -> Served:
        """As ingress, router and worker would: admit, match, queue, run, answer."""
        request_id = new_request_id(self._loop.now_ms())
        route = ""
        try:
            self._admit()
            try:
                if len(built.body) > (limit := self.options.max_body_bytes):
                    raise ContentTooLarge(f"a body of {len(built.body)} bytes exceeds the limit of {limit}")
                descriptor = built.descriptor(
                    request_id=request_id,
                    now_ms=self._loop.now_ms(),
                    timeout_s=timeout_s,
                    reply_to=self._subjects.reply("simulated", "r"),
                )
                choice, params = self._catalogue.find(
                    built.method, built.path, descriptor.version, built.principal, request_id
                )
                target = choice.target
                if target is None:
                    raise NoLiveWorker(f"no live worker serves {built.path}")
                route = target.path
                worker = self._workers[target.pool]
                if is_read_slowly:
                    worker.channels.read_slowly(request_id)
                execution, end = await self._run_version(worker, choice, descriptor, params, timeout_s)
            finally:
                self._in_flight -= 1
            answer = await self._answer(execution, end, built.method, is_read_slowly=is_read_slowly)
            answer.headers += choice.version_headers
            served = Served(answer=answer, execution=execution, end=end)
        except GatiError as exc:
            status, headers, body = problem_parts(exc, request_id)
            if isinstance(exc, (ContentTooLarge, ShuttingDown)):
                headers.append(("connection", "close"))
            served = Served(answer=_whole(status, headers, body, built.method))
        served.answer.headers.append(("x-request-id", request_id))
        self._count(route, served.answer.status)
        return served

    def _admit(self) -> None:
        if self._is_draining:
            raise ShuttingDown("this ingress is shutting down")
        if self._in_flight >= self.options.max_in_flight:
            raise Overloaded(f"{self._in_flight} requests are in flight, as many as this ingress takes")
        self._in_flight += 1

    async def _run_version(
        self,
        worker: Worker,
        choice: Choice[Target],
        descriptor: RequestDescriptor,
        params: dict[str, str],
        timeout_s: float,
    ) -> tuple[Execution, ClientEnd | None]:
        """Run what the router chose, and the client's own version where a transformer fails; as workers do."""
        target, fallback = choice.target, choice.fallback
        if target is None:
            raise NoLiveWorker("no live worker")
        version = Version(choice.tsv, choice.source)
        if not choice.hops:
            return await self._run(worker, target.handler, descriptor, params, descriptor.body, timeout_s, version)
        original = (descriptor, params, descriptor.body)
        try:
            chain = version.chain = await worker.versions.chain(target.handler, choice.hops)
            changed = await chain.inbound(worker.lifecycle, *original)
            execution, end = await self._run(worker, target.handler, *changed, timeout_s, version)
            failure = execution.run.failure
            if not isinstance(failure, TransformFailed) or fallback is None or (target.is_once and failure.has_run):
                return execution, end
        except TransformFailed as exc:
            if fallback is None:
                raise exc.for_clients() from exc
        other = self._workers[fallback.pool]
        own = Version(choice.resolved.tsv, choice.source)
        return await self._run(other, fallback.handler, *original, timeout_s, own)

    async def _run(
        self,
        worker: Worker,
        handler: str,
        descriptor: RequestDescriptor,
        params: dict[str, str],
        body: bytes,
        timeout_s: float,
        version: Version,
    ) -> tuple[Execution, ClientEnd | None]:
        """Queue, start the handler, and wait until its answer begins."""
        if worker.queued[handler] >= self.options.queue_limit:
            raise Backpressure("the handler's queue is full")
        deadline = asyncio.get_running_loop().time() + timeout_s + _SWEEP_S
        late = DeadlineExceeded(f"no answer within {timeout_s:g} s")
        worker.queued[handler] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await worker.slots.acquire()
        except TimeoutError:
            raise late from None
        finally:
            worker.queued[handler] -= 1
        execution = self._begin(worker, handler, descriptor, params, body, version)
        try:
            async with asyncio.timeout_at(deadline):
                await execution.began.wait()
        except TimeoutError:
            raise late from None  # it is being cancelled by its own clock
        except asyncio.CancelledError:
            execution.cancel("client_gone")
            raise
        end = worker.channels.claim(descriptor.request_id) if execution.head is not None else None
        return execution, end

    def _begin(
        self,
        worker: Worker,
        handler: str,
        descriptor: RequestDescriptor,
        params: dict[str, str],
        body: bytes,
        version: Version,
    ) -> Execution:
        at_end: list[Callable[[], Any]] = []
        execution = Execution(
            worker.lifecycle,
            worker.plans[handler],
            descriptor,
            params,
            body,
            version=version,
            at_end=at_end,
            on_head=worker.slots.release,
        )
        at_end.extend(_bound(function, worker.gctx, execution.lctx) for function in self.options.finally_hooks)
        # Outside of the client's task: it goes on for a while when the client has stopped waiting.
        task = asyncio.Task(execution.finish(), loop=asyncio.get_running_loop(), name=descriptor.request_id)
        self._running[task] = execution

        def ended(task: asyncio.Task[Any]) -> None:
            del self._running[task]
            if execution.head is None:  # else the slot was given back when the answer began
                worker.slots.release()
            if execution.is_abandoned and execution.task is not None:
                self.metrics.abandoned += 1
                self._deaf.add(execution.task)
                execution.task.add_done_callback(self._deaf.discard)
            self._sockets.pop(descriptor.request_id, None)

        task.add_done_callback(ended)
        return execution

    async def _answer(
        self, execution: Execution, end: ClientEnd | None, method: str, *, is_read_slowly: bool
    ) -> Answer:
        head = execution.head
        if head is None:
            await self.settled(execution)  # so that a test finds everything done that belongs to the request
            if execution.reply is None:
                raise GatiError("The worker failed.")
            return _whole(execution.reply.status, execution.reply.headers, execution.reply.body, method)
        if end is None:
            raise RuntimeError("an answer began without a channel")  # a bug of this package
        answer = Answer(status=head.status, headers=list(head.headers))
        if method == WEBSOCKET:
            self._sockets[execution.lctx.request_id] = end
        elif method == "HEAD" or head.status in _NO_STREAMED_BODY:
            end.cut()
        elif not is_read_slowly:
            try:
                await self._collect(end, answer)
            except asyncio.CancelledError:
                end.cut()
                raise
        return answer

    @staticmethod
    async def _collect(end: ClientEnd, answer: Answer) -> None:
        parts = []
        try:
            while (frame := await end.next()).kind == "part":
                parts.append(frame.data)
            answer.is_cut = frame.kind != "end"
        except ChannelClosed:
            answer.is_cut = True
        answer.body = b"".join(parts)

    async def settled(self, execution: Execution) -> None:
        """Wait until an execution has ended; its own limits see to that."""
        task = next((task for task, each in self._running.items() if each is execution), None)
        if task is None:
            return
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            execution.cancel("client_gone")
            raise

    # -- counting -------------------------------------------------------------------------------

    def _count(self, route: str, status: int) -> None:
        metrics = self.metrics
        metrics.requests += 1
        metrics.by_route[route] = metrics.by_route.get(route, 0) + 1
        metrics.by_status[status] = metrics.by_status.get(status, 0) + 1

    def _observe(self, event: LifecycleEvent) -> None:
        self.events.append(event)
        if event.type in ("hook:end", "hook:error"):
            self.metrics.hook_executions += 1
        if event.type == "hook:error":
            self.metrics.hook_errors += 1
            self.metrics.hook_timeouts += event.error.startswith("HookTimeout")


def _whole(status: int, headers: HeaderPairs, body: bytes, method: str) -> Answer:
    """An answer as the ingress sends it in one piece."""
    headers = list(headers)
    if status in _NO_BODY:
        body = b""
    else:
        headers.append(("content-length", str(len(body))))
    return Answer(status=status, headers=headers, body=b"" if method == "HEAD" else body)


def _bound(function: Callable[..., Any], gctx: GlobalContext, lctx: Any) -> Callable[[], Any]:
    return lambda: function(gctx, lctx)


async def _ended(tasks: Iterable[asyncio.Task[Any]], *, within_s: float) -> bool:
    """Whether all of these end in time."""
    waiting = list(tasks)
    return not waiting or not (await asyncio.wait(waiting, timeout=within_s))[1]
