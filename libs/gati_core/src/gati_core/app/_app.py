"""`App`: what a handler package exports, and the decorators that fill it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from gati_core.app._paths import normalize_route
from gati_core.app._route import HookRegistrar, Route
from gati_core.app._signature import body_type, check_handler, describe, response_type, source_of
from gati_core.contexts import Hook, ProcessLifecycle, TopicHandler
from gati_core.errors import RegistrationError
from gati_core.lifecycle import Alert, BodyReader, HandlerCall, Listener, Middleware, Plan, ResponseCheck
from gati_core.manifests import METHODS, HandlerManifest, HookRecord, Method
from gati_core.wire import WEBSOCKET, DeliveryMode, token

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Callable[..., Any])

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class Handler:
    """One registered handler: its manifest, how to call it, and the hooks around it."""

    __slots__ = ("_manifest", "_middleware", "_package_hooks", "call")

    def __init__(
        self, manifest: HandlerManifest, call: HandlerCall, package_hooks: list[Hook], middleware: list[Middleware]
    ) -> None:
        self._manifest = manifest
        self._package_hooks = package_hooks
        self._middleware = middleware
        self.call = call

    @property
    def package_hooks(self) -> tuple[Hook, ...]:
        """Hooks of the whole package that are registered by now."""
        return tuple(self._package_hooks)

    def plan(self, more_hooks: Sequence[Hook] = ()) -> Plan:
        """The handler with all hooks and middleware that are registered by now.

        Args:
            more_hooks: run after those of the package, as if they were the package's own.
        """
        return Plan(self.call, [*self._package_hooks, *more_hooks], self._middleware)

    @property
    def manifest(self) -> HandlerManifest:
        """What is published about it, hooks included."""
        records = [
            HookRecord(
                id=hook.id,
                type=hook.kind,
                level=hook.level,
                timeout_s=hook.timeout_s,
                retries=hook.retries,
                backoff_s=hook.backoff_s,
                is_async=hook.is_async,
                threaded=hook.is_threaded,
                detached=hook.is_detached,
            )
            for hook in self.plan().hooks()
        ]
        return msgspec.structs.replace(self._manifest, hooks=records)


class App(HookRegistrar):
    """A handler package: routes, hooks, and the buckets they need. Making one does no I/O.

    `before`, `after` and `catch` register hooks for every handler of the package.

    Args:
        name: unique in the fabric; letters, digits, `_` and `-`, at most 55 characters.

    >>> app = App("shop")
    >>> @app.get("/ping")
    ... async def ping(req, res, gctx, lctx) -> None:
    ...     res.text("pong")
    """

    def __init__(self, name: str) -> None:
        self.name = token(name, "app name")
        if len(name) > 55:
            raise RegistrationError(f"app name {name!r} is longer than 55 characters")
        super().__init__("global", [])
        self._handlers: dict[str, Handler] = {}
        self._routes: dict[tuple[str, str], str] = {}
        self._buckets: list[str] = []
        self._listeners: list[Listener] = []
        self._alerts: list[Alert] = []
        self._middleware: list[Middleware] = []
        self._subscribers: list[TopicHandler] = []
        self.lifecycle = ProcessLifecycle()
        """What runs when a worker process starts, leaves, is asked how it is, or is short of memory."""
        self.on_startup = self.lifecycle.on_startup
        self.on_pre_shutdown = self.lifecycle.on_pre_shutdown
        self.on_shutdown = self.lifecycle.on_shutdown
        self.on_config_reload = self.lifecycle.on_config_reload
        self.on_memory_pressure = self.lifecycle.on_memory_pressure
        self.on_health_check = self.lifecycle.on_health_check

    @property
    def handlers(self) -> dict[str, Handler]:
        """Registered handlers by id."""
        return dict(self._handlers)

    @property
    def buckets(self) -> tuple[str, ...]:
        """Names of the declared buckets."""
        return tuple(self._buckets)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Who is told of lifecycle events."""
        return tuple(self._listeners)

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Who is told of failed compensations."""
        return tuple(self._alerts)

    @property
    def subscribers(self) -> tuple[TopicHandler, ...]:
        """The declared subscriptions to topics."""
        return tuple(self._subscribers)

    def subscribe(
        self,
        topic: str,
        *,
        durable: str = "",
        type: Any = None,
        concurrency: int = 1,
        timeout_s: float = 30.0,
    ) -> Callable[[S], S]:
        """Call the decorated `function(event, gctx)` for the events of a global topic.

        Args:
            durable: a group's name. Its members, in all processes, share the durable events, each at
                least once; one that fails is tried again, and becomes a dead letter after three attempts.
                Without it, every process gets every event that is published while it runs.
            type: what payloads are read as; an event that does not fit is dropped, or a dead letter.
            concurrency: events handled at once; only with 1 are they handled in order.
            timeout_s: for one event.
        Raises:
            RegistrationError: the topic, the function or an option is not right.
        """

        def register(function: S) -> S:
            self._subscribers.append(
                TopicHandler(
                    topic=topic,
                    function=function,
                    durable=durable,
                    type=type,
                    concurrency=concurrency,
                    timeout_s=timeout_s,
                )
            )
            return function

        return register

    def use(self, *, path: str = "*", methods: Sequence[str] | None = None, priority: int = 0) -> Callable[[S], S]:
        """Run the decorated `function(req, res, gctx, lctx, next)` around the package's handlers.

        It runs after the before hooks, and `await next()` runs what it is around. Hooks do the same with
        limits, retries and events; this is for code that was written as middleware.

        Args:
            path: `*`, `/admin/*`, `/users/:id` or an exact path.
            methods: all when None.
            priority: higher runs first.
        Raises:
            RegistrationError: the function or an option is not right.
        """

        def register(function: S) -> S:
            self._middleware.append(Middleware(function, path=path, methods=methods, priority=priority))
            return function

        return register

    def use_for_errors(
        self, *, path: str = "*", methods: Sequence[str] | None = None, priority: int = 0
    ) -> Callable[[S], S]:
        """Call the decorated `function(error, req, res, gctx, lctx)` when a request fails, after the catch
        hooks and until one has answered; options as `use`."""

        def register(function: S) -> S:
            self._middleware.append(
                Middleware(function, path=path, methods=methods, priority=priority, is_for_errors=True)
            )
            return function

        return register

    def on_event(self, listener: Listener) -> Listener:
        """Call `listener(event)` for every lifecycle event of every request in this process.

        It is called at once and must be quick; every request then pays for its events.
        """
        self._listeners.append(listener)
        return listener

    def on_alert(self, alert: Alert) -> Alert:
        """Call `alert(request_id, action_id, error)` when a compensating action fails; plain or async."""
        self._alerts.append(alert)
        return alert

    def bucket(self, name: str) -> str:
        """Declare a durable key-value bucket; handlers reach it as `gctx.buckets[name]`."""
        if token(name, "bucket") not in self._buckets:
            self._buckets.append(name)
        return name

    def route(
        self,
        path: str,
        *,
        methods: Sequence[Method],
        id: str | None = None,
        delivery: DeliveryMode | None = None,
        idempotent: bool = False,
        timeout_s: float = 30.0,
    ) -> Callable[[F], Route[F]]:
        """Register the decorated function for `methods` on `path`.

        Args:
            path: `/orders/{id}` or `/orders/:id`; a parameter matches one segment.
            id: names the handler in subjects, logs and versions; the function's name by default.
            delivery: `at_least_once` runs again after a crash, `at_most_once` never does. By default
                GET, HEAD, OPTIONS, PUT and DELETE run at least once, POST and PATCH at most once.
            idempotent: running twice is the same as once, so `at_least_once` is the default.
            timeout_s: the handler's own limit; the request's deadline may be earlier.
        Raises:
            RegistrationError: with the reason and the function's file and line.
        """
        return lambda function: self._register(function, path, methods, id, delivery, idempotent, timeout_s)

    def websocket(self, path: str, *, id: str | None = None, timeout_s: float = 86_400.0) -> Callable[[F], Route[F]]:
        """Register the decorated function for WebSocket connections on `path`; see `lctx.websocket`.

        Args:
            timeout_s: how long one connection may stay open; a day by default.
        Raises:
            RegistrationError: with the reason and the function's file and line; a plain `def` function
                cannot hold a connection.
        """
        return lambda function: self._register(
            function, path, (WEBSOCKET,), id, "at_most_once", False, timeout_s, is_websocket=True
        )

    def get(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for GET (and HEAD, which falls back to it)."""
        return self.route(path, methods=["GET"], **options)

    def post(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for POST."""
        return self.route(path, methods=["POST"], **options)

    def put(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for PUT."""
        return self.route(path, methods=["PUT"], **options)

    def patch(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for PATCH."""
        return self.route(path, methods=["PATCH"], **options)

    def delete(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for DELETE."""
        return self.route(path, methods=["DELETE"], **options)

    def head(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for HEAD."""
        return self.route(path, methods=["HEAD"], **options)

    def options(self, path: str, **options: Any) -> Callable[[F], Route[F]]:
        """`route` for OPTIONS."""
        return self.route(path, methods=["OPTIONS"], **options)

    def _register(
        self,
        function: F,
        path: str,
        methods: Sequence[str],
        id: str | None,
        delivery: DeliveryMode | None,
        idempotent: bool,
        timeout_s: float,
        *,
        is_websocket: bool = False,
    ) -> Route[F]:
        if isinstance(function, Route):
            function = function.function  # one function, several routes
        is_async = check_handler(function)
        where = describe(function)
        unknown = [method for method in methods if method not in METHODS and not is_websocket]
        if unknown or not methods:
            raise RegistrationError(f"{where}: methods {unknown or 'none'}; choose from {', '.join(METHODS)}")
        if is_websocket and not is_async:
            raise RegistrationError(f"{where}: a WebSocket handler must be `async def`")
        if delivery not in (None, "at_least_once", "at_most_once"):
            raise RegistrationError(f"{where}: delivery {delivery!r} is neither 'at_least_once' nor 'at_most_once'")
        if not 0 < timeout_s < math.inf:
            raise RegistrationError(f"{where}: timeout_s must be above 0 and finite, not {timeout_s}")
        try:
            route, _ = normalize_route(path)
        except RegistrationError as exc:
            raise RegistrationError(f"{where}: {exc}") from exc
        if id is None:
            id = str(getattr(function, "__name__", "handler"))
        elif not isinstance(id, str):
            raise RegistrationError(f"{where}: a handler id must be a string, not {id!r}")
        handler_id = token(id, f"{where}: handler id")
        if handler_id in self._handlers:
            other = self._handlers[handler_id].manifest.source
            raise RegistrationError(f"{where}: handler id {handler_id!r} is taken by {other}; pass id=")
        shape = "/".join("{}" if part.startswith("{") else part for part in route.split("/"))
        for method in methods:
            taken = self._routes.get((method, shape))
            if taken is not None:
                raise RegistrationError(f"{where}: {method} {route} is already served by handler {taken!r}")
        safe = idempotent or all(method in _IDEMPOTENT for method in methods)
        manifest = HandlerManifest(
            id=handler_id,
            methods=list(dict.fromkeys(methods)),  # type: ignore[arg-type]  # checked above
            path=route,
            mode=delivery or ("at_least_once" if safe else "at_most_once"),
            timeout_s=timeout_s,
            is_async=is_async,
            summary=(inspect.getdoc(function) or "").partition("\n")[0],
            source=source_of(function),
        )
        call = self._call(function, manifest, is_websocket=is_websocket)
        # Last, so that a refused registration leaves nothing behind.
        self._handlers[handler_id] = Handler(manifest, call, self._hooks, self._middleware)
        self._routes.update(((method, shape), handler_id) for method in methods)
        return Route(function, handler_id, call.hooks, self)

    @staticmethod
    def _call(function: Any, manifest: HandlerManifest, *, is_websocket: bool) -> HandlerCall:
        wanted, declared = body_type(function), response_type(function)
        try:
            reader = BodyReader(wanted) if wanted is not None and not is_websocket else None
        except (TypeError, msgspec.ValidationError) as exc:
            raise RegistrationError(f"{describe(function)}: the body type cannot be validated: {exc}") from exc
        try:
            check = ResponseCheck(declared) if declared is not None and not is_websocket else None
        except (TypeError, msgspec.ValidationError) as exc:
            raise RegistrationError(f"{describe(function)}: the response type cannot be validated: {exc}") from exc
        return HandlerCall(
            id=manifest.id,
            path=manifest.path,
            function=function,
            is_async=manifest.is_async,
            timeout_s=manifest.timeout_s,
            body_reader=reader,
            response_check=check,
            is_websocket=is_websocket,
        )
