"""Middleware: functions around a handler that call the next one themselves.

For packages that come from frameworks where this is how things are done. Hooks say the same with
limits, retries and events, and are what the rest of Gati is built on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from gati_core.contexts import check_parameters
from gati_core.errors import GatiError, RegistrationError

if TYPE_CHECKING:
    from gati_core.lifecycle.controller import HandlerRun

log = structlog.get_logger(__name__)

_PARAMETERS = ("req", "res", "gctx", "lctx", "next")
_ERROR_PARAMETERS = ("error", "req", "res", "gctx", "lctx")
_NAME = re.compile(r"\{\w+\}|:\w+")


class Middleware:
    """One registered middleware.

    Args:
        path: `*` for every path, `/admin/*` for everything below, `/users/:id` or `/users/{id}` with
            a parameter for one segment, or one exact path.
        methods: the ones it is for; all when None.
        priority: higher runs first; of equal ones, the first registered.
    Raises:
        RegistrationError: the function or an option is not right.
    """

    __slots__ = ("_methods", "_pattern", "function", "is_for_errors", "name", "priority")

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        path: str = "*",
        methods: Sequence[str] | None = None,
        priority: int = 0,
        is_for_errors: bool = False,
    ) -> None:
        self.name = str(getattr(function, "__qualname__", None) or type(function).__name__)
        what = f"error middleware {self.name}" if is_for_errors else f"middleware {self.name}"
        check_parameters(function, _ERROR_PARAMETERS if is_for_errors else _PARAMETERS, what)
        if path != "*" and not path.startswith("/"):
            raise RegistrationError(f"{what}: path {path!r} is neither '*' nor begins with '/'")
        self.function = function
        self.priority = priority
        self.is_for_errors = is_for_errors
        self._methods = None if methods is None else frozenset(method.upper() for method in methods)
        self._pattern = None if path == "*" else _pattern(path)

    def matches(self, method: str, path: str) -> bool:
        """Whether it is for this request."""
        if self._methods is not None and method not in self._methods:
            return False
        return self._pattern is None or self._pattern.fullmatch(path) is not None


def in_order(middleware: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Higher priority first; the order of registration among equals."""
    return tuple(sorted(middleware, key=lambda each: -each.priority))


async def run_through(run: HandlerRun, handler: Callable[[], Awaitable[object]]) -> object:
    """Call the middleware that is for this request, each around the next, and the handler innermost."""
    request = run.request
    chain = [each for each in run.plan.middleware if each.matches(request.method, request.path)]

    async def call(at: int) -> object:
        if at == len(chain):
            return await handler()
        is_called = False

        async def call_next() -> None:
            nonlocal is_called
            if is_called:
                raise GatiError(f"middleware {chain[at].name} called next() a second time")
            is_called = True
            await call(at + 1)

        result = chain[at].function(request, run.response, run.lifecycle.gctx, run.lctx, call_next)
        return await result if inspect.isawaitable(result) else result

    return await call(0)


def _pattern(path: str) -> re.Pattern[str]:
    below = path.endswith("/*")
    segments = [segment for segment in path.removesuffix("/*").split("/") if segment]
    text = "".join("/" + ("[^/]+" if _NAME.fullmatch(segment) else re.escape(segment)) for segment in segments)
    return re.compile((text or "") + ("(/.*)?" if below else "/?"))
