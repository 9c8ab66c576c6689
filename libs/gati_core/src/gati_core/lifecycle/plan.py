"""What runs for one handler, worked out once: the function, its hooks in their order, its types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gati_core.contexts import Hook
from gati_core.lifecycle.middleware import Middleware, in_order
from gati_core.lifecycle.validation import RequestReader, ResponseCheck


class HandlerCall:
    """A handler ready to be called: the function, how it is called, its types and its own hooks."""

    __slots__ = (
        "function",
        "hooks",
        "id",
        "is_async",
        "is_websocket",
        "path",
        "request_reader",
        "response_check",
        "timeout_s",
    )

    def __init__(
        self,
        *,
        id: str,
        path: str,
        function: Callable[..., Any],
        is_async: bool,
        timeout_s: float,
        request_reader: RequestReader | None = None,
        response_check: ResponseCheck | None = None,
        is_websocket: bool = False,
        hooks: list[Hook] | None = None,
    ) -> None:
        self.id = id
        self.path = path
        self.function = function
        self.is_async = is_async
        self.timeout_s = timeout_s
        self.request_reader = request_reader
        self.response_check = response_check
        self.is_websocket = is_websocket
        self.hooks = hooks if hooks is not None else []
        """Hooks of this route, in the order of registration."""


class Plan:
    """A handler with every hook that its package and its route declare for it.

    Args:
        package_hooks: the package's own (`global`), in the order of registration.
        middleware: the package's, in the order of registration.
    """

    __slots__ = (
        "after",
        "after_levels",
        "before_levels",
        "call",
        "catch",
        "catch_levels",
        "error_middleware",
        "has_before",
        "middleware",
    )

    def __init__(
        self, call: HandlerCall, package_hooks: Sequence[Hook] = (), middleware: Sequence[Middleware] = ()
    ) -> None:
        self.call = call
        self.middleware = in_order([each for each in middleware if not each.is_for_errors])
        self.error_middleware = in_order([each for each in middleware if each.is_for_errors])
        self.before_levels = _levels("before", package_hooks, call.hooks)
        self.after_levels = _levels("after", package_hooks, call.hooks)
        self.catch_levels = _levels("catch", package_hooks, call.hooks)
        self.has_before = any(self.before_levels)
        self.after = in_reverse(self.after_levels, None)
        self.catch = in_reverse(self.catch_levels, None)

    def hooks(self) -> list[Hook]:
        """All of them, in the order of registration within kind and level; for manifests."""
        return [
            hook for levels in (self.before_levels, self.after_levels, self.catch_levels) for hook in sum(levels, ())
        ]


Levels = tuple[tuple[Hook, ...], tuple[Hook, ...]]


def _levels(kind: str, package_hooks: Sequence[Hook], route_hooks: Sequence[Hook]) -> Levels:
    return (
        tuple(hook for hook in package_hooks if hook.kind == kind),
        tuple(hook for hook in route_hooks if hook.kind == kind),
    )


def in_reverse(levels: Levels, request_hooks: list[Hook] | None) -> tuple[Hook, ...]:
    """Global, route, local in the order of registration, turned round: local first, last registered first."""
    if request_hooks is None:
        return tuple(reversed(levels[0] + levels[1]))
    by_level: dict[str, list[Hook]] = {"global": list(levels[0]), "route": list(levels[1]), "local": []}
    for hook in request_hooks:
        by_level[hook.level].append(hook)
    return tuple(reversed(by_level["global"] + by_level["route"] + by_level["local"]))
