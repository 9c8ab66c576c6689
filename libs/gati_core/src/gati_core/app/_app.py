"""`App`: what a handler package exports, and the decorators that fill it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from gati_core.app._manifest import full_manifest
from gati_core.app._paths import normalize_route
from gati_core.app._route import HookRegistrar, Route
from gati_core.app._signature import check_handler, describe, request_types, response_type, source_of
from gati_core.contexts import Hook, ProcessLifecycle, TopicHandler
from gati_core.errors import RegistrationError, UnsupportedType
from gati_core.gtype import Document
from gati_core.lifecycle import (
    HOP_TIMEOUT_S,
    Alert,
    DeclaredType,
    HandlerCall,
    Listener,
    Middleware,
    Plan,
    RequestReader,
    ResponseCheck,
    Transformer,
    check_parameters,
)
from gati_core.limits import check_timeout
from gati_core.manifests import METHODS, HandlerManifest, Method, Policies, UnknownFields
from gati_core.schemas import SCRIPT_TIMEOUT_S, DbSchema
from gati_core.wire import WEBSOCKET, DeliveryMode, token

log = structlog.get_logger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Callable[..., Any])
T = TypeVar("T")

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class _Options(NamedTuple):
    """What the decorators take beside path and methods; see `App.route`."""

    delivery: DeliveryMode | None
    idempotent: bool
    timeout_s: float
    roles: Sequence[str] = ()
    unknown_fields: UnknownFields = "ignore"
    modules: Sequence[str] = ()


def _checked_roles(where: str, roles: Sequence[str]) -> set[str]:
    given: Any = roles  # whatever its annotation promises
    if isinstance(given, str) or not all(isinstance(role, str) and role for role in given):
        raise RegistrationError(f"{where}: roles must be a list of names, not {roles!r}")
    return set(roles)


class Handler:
    """One registered handler: its manifest, its types, how to call it, and the hooks around it."""

    __slots__ = ("_declared", "_manifest", "_middleware", "_modules", "_package_hooks", "call", "types")

    def __init__(
        self,
        declared: HandlerManifest,
        call: HandlerCall,
        package_hooks: list[Hook],
        middleware: list[Middleware],
        types: Mapping[str, DeclaredType],
        modules: Sequence[str],
    ) -> None:
        self._declared = declared
        self._manifest: HandlerManifest | None = None
        self._package_hooks = package_hooks
        self._middleware = middleware
        self._modules = modules
        self.call = call
        self.types = types
        """By `request` (of the body), `response`, `params`, `query` and `headers`; those that are declared."""

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
    def documents(self) -> dict[str, Document]:
        """The declared types as data; keys as in `types`."""
        return {area: declared.document for area, declared in self.types.items()}

    def documents_by_name(self) -> list[tuple[str, Document]]:
        """The declared types with the fingerprints by which the manifest refers to them."""
        refs = self.manifest.gtypes
        return [(getattr(refs, area), document) for area, document in self.documents.items()]

    @property
    def manifest(self) -> HandlerManifest:
        """What is published about it, hooks included. Worked out anew when hooks were added since."""
        hooks = self.plan().hooks()
        if self._manifest is None or self._hooks_in(self._manifest) != [hook.id for hook in hooks]:
            self._manifest = full_manifest(self._declared, self.call.function, hooks, self.documents, self._modules)
        return self._manifest

    @staticmethod
    def _hooks_in(manifest: HandlerManifest) -> list[str]:
        return [record.id for record in manifest.hooks if record.level != "local"]


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
        self._transformers: list[Transformer] = []
        self._db_schemas: list[DbSchema] = []
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

    def transformer(
        self,
        handler: str | Route[Any],
        *,
        from_version: str,
        to_version: str = "",
        timeout_s: float = HOP_TIMEOUT_S,
        threaded: bool = False,
    ) -> Callable[[T], T]:
        """Let clients of an older version of a handler use a newer one.

        The decorated class has static methods of one argument each, plain or async; those it lacks change nothing.
        `forward_request(request)` makes an old request a new one, `backward_response(response)` a new answer an
        old one; `backward_request` and `forward_response` lead the other way.

        Args:
            from_version: the older version: a TSV, a tag such as `v1.0.0`, or a package's version.
            to_version: the one that followed it; this package's own where it is empty.
            timeout_s: for each of the functions. An async or threaded one is cancelled then; a plain one, which
                nobody can interrupt, fails when it returns too late.
            threaded: run plain functions in a thread, because they wait or compute for long.
        Raises:
            RegistrationError: the class has none of these methods, or one that cannot be called so; the limit is none;
                `threaded` with async functions alone.
        """
        name = handler.id if isinstance(handler, Route) else handler

        def register(functions: T) -> T:
            made = Transformer(
                name,
                functions,
                from_version=from_version,
                to_version=to_version,
                timeout_s=timeout_s,
                threaded=threaded,
            )
            if name not in self._handlers:
                known = ", ".join(self._handlers) or "none yet: define the transformer below its handler"
                raise RegistrationError(f"transformer {made.name}: there is no handler {name!r}; there are {known}")
            for each in self._transformers:
                if (each.handler, each.from_version, each.to_version) == (name, from_version, to_version):
                    raise RegistrationError(
                        f"transformer {made.name}: {each.name} leads from {from_version!r} of {name!r} already"
                    )
            self._transformers.append(made)
            return functions

        return register

    @property
    def transformers(self) -> tuple[Transformer, ...]:
        """Those that are declared."""
        return tuple(self._transformers)

    def db_schema(
        self,
        name: str,
        *,
        url: str,
        migrations: str | Path = "migrations/",
        compatible_with: Sequence[str] = (),
        timeout_s: float = SCRIPT_TIMEOUT_S,
    ) -> DbSchema:
        """Declare a version of a database schema that the package uses; its migrations run before the package starts.

        Args:
            name: of this version of the schema, for example `schema_v42`.
            url: of the database, or `env:NAME` for the environment variable that holds it.
            migrations: directory of yoyo migrations, relative to the module that calls this.
            compatible_with: schemas whose users can also work with this one.
            timeout_s: for each migration.
        Raises:
            RegistrationError: with the reason, and file and line of the call.
        """
        caller = sys._getframe(1)
        file = str(caller.f_globals.get("__file__") or caller.f_code.co_filename)
        where = f"{file}:{caller.f_lineno}"
        label = f"db_schema {name!r} ({where})"
        given: Any = migrations
        if not isinstance(given, str | Path) or not str(given):
            raise RegistrationError(f"{label}: migrations must be the path of a directory, not {migrations!r}")
        taken = next((each for each in self._db_schemas if each.name == name), None)
        if taken is not None:
            raise RegistrationError(f"{label}: a schema of this name is declared at {taken.where}")
        declared = DbSchema(
            app=self.name,
            name=name,
            url=url,
            directory=Path(file).resolve().parent / migrations,
            compatible_with=compatible_with,
            timeout_s=timeout_s,
            where=where,
        )
        self._db_schemas.append(declared)
        return declared

    @property
    def db_schemas(self) -> tuple[DbSchema, ...]:
        """Those that are declared, in the order in which they are activated."""
        return tuple(self._db_schemas)

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
        roles: Sequence[str] = (),
        unknown_fields: UnknownFields = "ignore",
        modules: Sequence[str] = (),
    ) -> Callable[[F], Route[F]]:
        """Register the decorated function for `methods` on `path`.

        Args:
            path: `/orders/{id}` or `/orders/:id`; a parameter matches one segment.
            id: names the handler in subjects, logs and versions; the function's name by default.
            delivery: `at_least_once` runs again after a crash, `at_most_once` never does. By default
                GET, HEAD, OPTIONS, PUT and DELETE run at least once, POST and PATCH at most once.
            idempotent: running twice is the same as once, so `at_least_once` is the default.
            timeout_s: the handler's own limit; the request's deadline may be earlier.
            roles: a caller needs one of them: 401 without credentials, 403 without such a role.
            unknown_fields: what becomes of fields of path, query and body that the types do not declare:
                they are ignored, or a 400.
            modules: what the handler uses in ways that its source does not show; see `gati check`.
        Raises:
            RegistrationError: with the reason and the function's file and line.
        """
        options = _Options(delivery, idempotent, timeout_s, roles, unknown_fields, modules)
        return lambda function: self._register(function, path, methods, id, options)

    def websocket(
        self, path: str, *, id: str | None = None, timeout_s: float = 86_400.0, roles: Sequence[str] = ()
    ) -> Callable[[F], Route[F]]:
        """Register the decorated function for WebSocket connections on `path`; see `lctx.websocket`.

        Args:
            timeout_s: how long one connection may stay open; a day by default.
        Raises:
            RegistrationError: with the reason and the function's file and line; a plain `def` function
                cannot hold a connection.
        """
        options = _Options("at_most_once", False, timeout_s, roles)
        return lambda function: self._register(function, path, (WEBSOCKET,), id, options, is_websocket=True)

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
        options: _Options,
        *,
        is_websocket: bool = False,
    ) -> Route[F]:
        delivery, timeout_s = options.delivery, options.timeout_s
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
        if options.unknown_fields not in ("ignore", "reject"):
            raise RegistrationError(
                f"{where}: unknown_fields {options.unknown_fields!r} is neither 'ignore' nor 'reject'"
            )
        check_timeout(timeout_s, where)
        try:
            route, parameters = normalize_route(path)
        except RegistrationError as exc:
            raise RegistrationError(f"{where}: {exc}") from exc
        if id is None:
            id = str(getattr(function, "__name__", "handler"))
        elif not isinstance(id, str):
            raise RegistrationError(f"{where}: a handler id must be a string, not {id!r}")
        handler_id = token(id, f"{where}: handler id")
        if handler_id in self._handlers:
            other = source_of(self._handlers[handler_id].call.function)
            raise RegistrationError(f"{where}: handler id {handler_id!r} is taken by {other}; pass id=")
        shape = "/".join("{}" if part.startswith("{") else part for part in route.split("/"))
        for method in methods:
            taken = self._routes.get((method, shape))
            if taken is not None:
                raise RegistrationError(f"{where}: {method} {route} is already served by handler {taken!r}")
        safe = options.idempotent or all(method in _IDEMPOTENT for method in methods)
        manifest = HandlerManifest(
            id=handler_id,
            methods=list(dict.fromkeys(methods)),  # type: ignore[arg-type]  # checked above
            path=route,
            mode=delivery or ("at_least_once" if safe else "at_most_once"),
            timeout_s=timeout_s,
            is_async=is_async,
            summary=(inspect.getdoc(function) or "").partition("\n")[0],
            source=source_of(function),
            policies=Policies(
                roles=sorted(_checked_roles(where, options.roles)), unknown_fields=options.unknown_fields
            ),
        )
        # A WebSocket has no bodies: what its handler declares of them means nothing.
        types = (
            {}
            if is_websocket
            else self._declared_types(function, parameters, is_strict=options.unknown_fields == "reject")
        )
        call = self._call(function, manifest, types, is_websocket=is_websocket)
        # Last, so that a refused registration leaves nothing behind.
        self._handlers[handler_id] = Handler(manifest, call, self._hooks, self._middleware, types, options.modules)
        self._routes.update(((method, shape), handler_id) for method in methods)
        return Route(function, handler_id, call.hooks, self)

    @staticmethod
    def _declared_types(function: Any, parameters: Sequence[str], *, is_strict: bool) -> dict[str, DeclaredType]:
        where = describe(function)
        wanted = request_types(function)
        annotations = {
            "request": wanted.body,
            "query": wanted.query,
            "params": wanted.params,
            "headers": wanted.headers,
            "response": response_type(function),
        }
        declared: dict[str, DeclaredType] = {}
        for area, annotation in annotations.items():
            if annotation is None:
                continue
            name = "body" if area == "request" else area
            try:
                # Many headers come that nobody declares, whatever the policy is.
                declared[area] = DeclaredType(
                    annotation, where=name, is_strict=is_strict and area not in ("response", "headers")
                )
            except UnsupportedType as exc:
                raise RegistrationError(f"{where}: {exc}") from exc
            for warning in declared[area].warnings:
                log.warning("type_is_large", handler=where, detail=warning)
        try:
            check_parameters(declared.get("params"), parameters)
        except UnsupportedType as exc:
            raise RegistrationError(f"{where}: {exc}") from exc
        return declared

    @staticmethod
    def _call(
        function: Any, manifest: HandlerManifest, types: Mapping[str, DeclaredType], *, is_websocket: bool
    ) -> HandlerCall:
        typed = {area: types[area] for area in ("query", "params", "headers") if area in types}
        has_request = bool(typed) or "request" in types
        try:
            reader = RequestReader(body=types.get("request"), **typed) if has_request else None
        except UnsupportedType as exc:
            raise RegistrationError(f"{describe(function)}: {exc}") from exc
        return HandlerCall(
            id=manifest.id,
            path=manifest.path,
            function=function,
            is_async=manifest.is_async,
            timeout_s=manifest.timeout_s,
            request_reader=reader,
            response_check=ResponseCheck(types["response"]) if "response" in types else None,
            is_websocket=is_websocket,
        )
