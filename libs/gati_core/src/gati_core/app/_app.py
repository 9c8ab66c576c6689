"""`App`: what a handler package exports, and the decorators that fill it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from gati_core.app._paths import normalize_route
from gati_core.app._signature import body_type, check_handler, describe, source_of
from gati_core.errors import RegistrationError
from gati_core.lifecycle import BodyReader, HandlerCall
from gati_core.manifests import METHODS, HandlerManifest, Method
from gati_core.wire import DeliveryMode, token

F = TypeVar("F", bound=Callable[..., Any])

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class Handler:
    """One registered handler: its manifest, and how to call it."""

    __slots__ = ("call", "manifest")

    def __init__(self, manifest: HandlerManifest, call: HandlerCall) -> None:
        self.manifest = manifest
        self.call = call


class App:
    """A handler package: routes, and the buckets they need. Making one does no I/O.

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
        self._handlers: dict[str, Handler] = {}
        self._routes: dict[tuple[str, str], str] = {}
        self._buckets: list[str] = []

    @property
    def handlers(self) -> dict[str, Handler]:
        """Registered handlers by id."""
        return dict(self._handlers)

    @property
    def buckets(self) -> tuple[str, ...]:
        """Names of the declared buckets."""
        return tuple(self._buckets)

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
    ) -> Callable[[F], F]:
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

    def get(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for GET (and HEAD, which falls back to it)."""
        return self.route(path, methods=["GET"], **options)

    def post(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for POST."""
        return self.route(path, methods=["POST"], **options)

    def put(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for PUT."""
        return self.route(path, methods=["PUT"], **options)

    def patch(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for PATCH."""
        return self.route(path, methods=["PATCH"], **options)

    def delete(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for DELETE."""
        return self.route(path, methods=["DELETE"], **options)

    def head(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for HEAD."""
        return self.route(path, methods=["HEAD"], **options)

    def options(self, path: str, **options: Any) -> Callable[[F], F]:
        """`route` for OPTIONS."""
        return self.route(path, methods=["OPTIONS"], **options)

    def _register(
        self,
        function: F,
        path: str,
        methods: Sequence[Method],
        id: str | None,
        delivery: DeliveryMode | None,
        idempotent: bool,
        timeout_s: float,
    ) -> F:
        is_async = check_handler(function)
        where = describe(function)
        unknown = [method for method in methods if method not in METHODS]
        if unknown or not methods:
            raise RegistrationError(f"{where}: methods {unknown or 'none'}; choose from {', '.join(METHODS)}")
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
            methods=list(dict.fromkeys(methods)),
            path=route,
            mode=delivery or ("at_least_once" if safe else "at_most_once"),
            timeout_s=timeout_s,
            is_async=is_async,
            summary=(inspect.getdoc(function) or "").partition("\n")[0],
            source=source_of(function),
        )
        # Last, so that a refused registration leaves nothing behind.
        self._handlers[handler_id] = Handler(manifest, self._call(function, manifest))
        self._routes.update(((method, shape), handler_id) for method in methods)
        return function

    @staticmethod
    def _call(function: Any, manifest: HandlerManifest) -> HandlerCall:
        wanted = body_type(function)
        try:
            reader = BodyReader(wanted) if wanted is not None else None
        except (TypeError, msgspec.ValidationError) as exc:
            raise RegistrationError(f"{describe(function)}: the body type cannot be validated: {exc}") from exc
        return HandlerCall(
            id=manifest.id,
            path=manifest.path,
            function=function,
            is_async=manifest.is_async,
            timeout_s=manifest.timeout_s,
            body_reader=reader,
        )
