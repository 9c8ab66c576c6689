"""`simulate()`: a whole fabric in one process, without a broker, in virtual time.

What decides is what decides in production: the ingress's reading of a head, the router's catalogue
and route table, the lifecycle controller, the real contexts. What is not there is the broker: no
crash, no redelivery, no second process. Handlers that sleep for an hour take no time, and limits
strike at their exact instants, in the same order in every run.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from gati_core import App
from gati_core.contexts import Topics, make_hook
from gati_core.lifecycle import LifecycleEvent
from gati_core.wire import WEBSOCKET
from gati_testing._execution import Execution
from gati_testing._memory_bucket import MemoryBucket
from gati_testing._simulated_clients import HandshakeRefused, SimulatedSocket, SimulatedStream
from gati_testing._simulated_fabric import Options, Served, SimulatedFabric, SimulationMetrics
from gati_testing._virtual_loop import VirtualLoop
from gati_testing.assertions import Answer
from gati_testing.builders import BuiltRequest, RequestBuilder, as_request

T = TypeVar("T")

__all__ = [
    "HandshakeRefused",
    "SimulatedSocket",
    "SimulatedStream",
    "Simulation",
    "SimulationMetrics",
    "simulate",
]


class Simulation:
    """A simulated fabric; made by `simulate`. Methods block for moments, from sync and async tests alike.

    An answer is returned once everything is done that belongs to its request, cleanup included; only
    a 504 does not wait for a handler that does not react. Time stands still between two calls.
    """

    def __init__(self, apps: Sequence[App], options: Options) -> None:
        self._loop = VirtualLoop()
        self._fabric = SimulatedFabric(apps, options, self._loop)
        self._is_over = False

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the start-up hooks and begin to serve.

        Raises:
            StartupFailed: a start-up hook failed; what had started has been ended.
        """
        self._loop.start()
        try:
            self.run(self._fabric.start())
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """Close sockets, let requests finish, run the shutdown hooks and end everything; once.

        Raises:
            AssertionError: something still ran that nobody had abandoned.
        """
        if self._is_over:
            return
        self._is_over = True
        try:
            self.run(self._fabric.stop())
        finally:
            leaked = self._loop.close()
        # A handler that does not react to being cancelled was reported when it was abandoned.
        leaked = [task for task in leaked if "task 'handler of " not in task]
        assert not leaked, f"tasks were left behind: {leaked}"

    def __enter__(self) -> Simulation:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.shutdown()
        except AssertionError as exc:
            if error is None:
                raise
            error.add_note(str(exc))  # what failed first is what the test is about

    def run(self, work: Coroutine[Any, Any, T], *, within_s: float | None = None) -> T:
        """Run a coroutine inside the simulation and return its result.

        Args:
            within_s: virtual seconds that it may take.
        Raises:
            TimeoutError: it took longer.
        """
        if not inspect.iscoroutine(work):
            raise TypeError(f"run() takes a coroutine, not {work!r}; for several at once there is gather()")
        result: T = self._loop.call(work if within_s is None else _within(work, within_s))
        return result

    def gather(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        """Run several coroutines at once, `arequest(…)` for example, and return their results in this order.

        Raises:
            Whatever the first that failed has raised; the others are cancelled.
        """
        return self.run(_together(work))

    def now(self) -> float:
        """The virtual wall clock, Unix seconds."""
        return self._loop.now()

    def advance(self, seconds: float) -> None:
        """Let that much virtual time pass."""
        self.run(asyncio.sleep(seconds))

    # -- looking inside -------------------------------------------------------------------------

    @property
    def metrics(self) -> SimulationMetrics:
        """What happened so far; goes on counting."""
        return self._fabric.metrics

    def get_metrics(self) -> SimulationMetrics:
        """What happened so far, as a copy."""
        now = self.metrics
        return msgspec.structs.replace(now, by_route=dict(now.by_route), by_status=dict(now.by_status))

    @property
    def events(self) -> deque[LifecycleEvent]:
        """What the lifecycle did, of all requests, in order: the last 100,000."""
        return self._fabric.events

    def bucket(self, name: str) -> MemoryBucket:
        """What handlers have as `gctx.buckets[name]`; its methods are for `run`."""
        return self._fabric.bucket(name)

    def global_context(self, app: str) -> Any:
        """The `gctx` of an app's handlers."""
        return self._fabric.worker(app).gctx

    def topics(self, publisher: str = "test") -> Topics:
        """Publish to, or listen on, the simulated topics. Made and used inside `run`, and closed there."""
        return Topics(self._fabric.port, publisher=publisher)

    async def settled(self, execution: Execution) -> None:
        """Wait, inside `run`, until an execution has ended."""
        await self._fabric.settled(execution)

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
            method: `GET`, `POST`, …; or a whole request, in place of everything else but `timeout_s`.
            path: percent-encoded where it must be; may hold the query.
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
        """The same from inside `run` and `gather`; cancelling it is a client that leaves."""
        built = _built(method, path, json=json, body=body, headers=headers, query=query)
        return (await self._serve(built, timeout_s)).answer

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

    def head(self, path: str, **options: Any) -> Answer:
        """`request("HEAD", …)`."""
        return self.request("HEAD", path, **options)

    def options(self, path: str, **options: Any) -> Answer:
        """`request("OPTIONS", …)`."""
        return self.request("OPTIONS", path, **options)

    def stream(self, method: str | BuiltRequest | RequestBuilder, path: str = "/", **options: Any) -> SimulatedStream:
        """Send a request whose answer the test reads bit by bit; `request` returns a stream as a whole.

        Raises:
            AssertionError: the answer is no stream; says what it is.
        """

        async def begin() -> SimulatedStream:
            timeout_s = options.pop("timeout_s", None)
            served = await self._serve(_built(method, path, **options), timeout_s, is_read_slowly=True)
            if served.end is None or served.execution is None:
                raise AssertionError(f"the answer is no stream: {served.answer!r:.500}")
            return SimulatedStream(self, served.end, served.execution, served.answer)

        return self.run(begin())

    def websocket(
        self, path: str, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> SimulatedSocket:
        """Open a WebSocket connection.

        Args:
            subprotocols: what the client offers.
        Raises:
            HandshakeRefused: the handler, or the router, did not accept.
        """
        headers = dict(headers or {})
        if subprotocols:
            headers["sec-websocket-protocol"] = ", ".join(subprotocols)

        async def connect() -> SimulatedSocket:
            served = await self._serve(_built(WEBSOCKET, path, headers=headers), None)
            if served.end is None or served.execution is None:
                raise HandshakeRefused(served.answer)
            return SimulatedSocket(self, served.end, served.execution, served.answer)

        return self.run(connect())

    async def _serve(self, built: BuiltRequest, timeout_s: float | None, *, is_read_slowly: bool = False) -> Served:
        if timeout_s is None:
            timeout_s = self._fabric.options.request_timeout_s
        return await self._fabric.serve(built, timeout_s, is_read_slowly=is_read_slowly)


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
        apps: several of one name are versions of it, published in this order and tagged `v1`, `v2`, …
        modules: `gctx.modules`, by name.
        services: `gctx.services`, by name.
        config: `gctx.config`.
        hooks: further global hooks: lists under `before`, `after`, `catch` (as `App.before` takes
            them) and `finally` (`(gctx, lctx)`, at the end of every request that has a handler).
        hook_timeout_s: for those hooks but `finally`, which have 5 seconds.
        module_latency_s: virtual seconds that every async call of a module takes.
        request_timeout_s: the ingress's deadline.
        max_in_flight: requests that the ingress admits at once; one more is answered 503.
        worker_slots: requests that each app's worker runs at once; the others wait.
        queue_limit: requests that may wait for one handler; one more is answered 503.
        max_body_bytes: a request's larger body is answered 413.
    Raises:
        ValueError: no app, two of one name, or an option that cannot be.

    >>> app = App("shop")
    >>> @app.get("/slow")
    ... async def slow(req, res, gctx, lctx) -> None:
    ...     await asyncio.sleep(8)
    ...     res.text("pong")
    >>> with simulate(app) as fabric:
    ...     began = fabric.now()
    ...     fabric.get("/slow").text, round(fabric.now() - began)
    ('pong', 8)
    """
    if not apps or len(set(map(id, apps))) < len(apps):
        raise ValueError(f"simulate() needs at least one app, and each only once: {[app.name for app in apps]}")
    given = dict(hooks or {})
    if unknown := set(given) - {"before", "after", "catch", "finally"}:
        raise ValueError(f"hooks are before, after, catch and finally, not {sorted(unknown)}")
    if min(max_in_flight, worker_slots) < 1 or queue_limit < 1 or request_timeout_s <= 0 or module_latency_s < 0:
        raise ValueError("limits must be at least 1, timeouts above 0, latencies not below 0")
    return Simulation(
        apps,
        Options(
            modules=modules or {},
            services=services or {},
            config=config or {},
            hooks=[
                make_hook(function, kind=kind, level="global", timeout_s=hook_timeout_s)
                for kind in ("before", "after", "catch")
                for function in given.get(kind, ())
            ],
            finally_hooks=list(given.get("finally", ())),
            module_latency_s=module_latency_s,
            request_timeout_s=request_timeout_s,
            max_in_flight=max_in_flight,
            worker_slots=worker_slots,
            queue_limit=queue_limit,
            max_body_bytes=max_body_bytes,
        ),
    )


def _built(
    method: str | BuiltRequest | RequestBuilder,
    path: str = "/",
    *,
    json: Any = msgspec.UNSET,
    body: bytes | str = b"",
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, Any] | None = None,
) -> BuiltRequest:
    if not isinstance(method, str):
        return as_request(method)
    builder = RequestBuilder(method, path)
    if query:
        builder.query(query)
    for name, value in (headers or {}).items():
        builder.header(name, value)
    if json is not msgspec.UNSET:
        builder.json(json)
    elif body:
        builder.body(body)
    return builder.build()


async def _within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    async with asyncio.timeout(seconds):
        return await work


async def _together(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks) if tasks else None
