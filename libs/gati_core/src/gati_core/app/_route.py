"""What the decorators of an `App` return: the handler, with a place for its own hooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from gati_core.contexts import Hook, HookKind, HookLevel, make_hook
from gati_core.errors import RegistrationError

if TYPE_CHECKING:
    from gati_core.app._app import App

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound=Callable[..., Any])


class HookRegistrar:
    """`before`, `after` and `catch` as decorators, with and without options."""

    def __init__(self, level: HookLevel, hooks: list[Hook]) -> None:
        self._level: HookLevel = level
        self._hooks = hooks

    @overload
    def before(self, function: H) -> H: ...
    @overload
    def before(self, **options: Any) -> Callable[[H], H]: ...
    def before(self, function: Any = None, **options: Any) -> Any:
        """Run `function(gctx, lctx)` before the handler.

        A hook that raises stops the request: the handler does not run. One that answers through
        `lctx.response` takes the handler's place.

        Args:
            id: names it in events, logs and manifests; the function's name by default.
            timeout_s: for one attempt, 5 seconds by default.
            retries: further attempts after a failed one; none by default.
            backoff_s: pause before the first retry, doubling with each.
            threaded: run a plain function in a thread, because it waits.
            detached: the answer does not wait for it.
        Raises:
            RegistrationError: says which hook, and what is wrong.
        """
        return self._add("before", function, options)

    @overload
    def after(self, function: H) -> H: ...
    @overload
    def after(self, **options: Any) -> Callable[[H], H]: ...
    def after(self, function: Any = None, **options: Any) -> Any:
        """Run `function(gctx, lctx)` after the handler, in the reverse order of before. See `before`."""
        return self._add("after", function, options)

    @overload
    def catch(self, function: H) -> H: ...
    @overload
    def catch(self, **options: Any) -> Callable[[H], H]: ...
    def catch(self, function: Any = None, **options: Any) -> Any:
        """Run `function(error, gctx, lctx)` when the request fails. It may answer. See `before`."""
        return self._add("catch", function, options)

    def remove_hook(self, hook_id: str) -> bool:
        """Take back the hooks of this id; returns whether there was one. Only before the worker starts."""
        found = [hook for hook in self._hooks if hook.id == hook_id]
        for hook in found:
            self._hooks.remove(hook)
        return bool(found)

    def _add(self, kind: HookKind, function: Any, options: dict[str, Any]) -> Any:
        if function is None:
            return lambda given: self._add(kind, given, options)
        try:
            hook = make_hook(function, kind=kind, level=self._level, **options)
        except TypeError as exc:
            raise RegistrationError(f"{kind} hook: {exc}") from exc
        self._hooks.append(hook)
        return function


class Route(HookRegistrar, Generic[F]):
    """A registered handler. Calls like the function, and takes the route's own hooks.

    >>> from gati_core import App
    >>> app = App("shop")
    >>> @app.get("/ping")
    ... async def ping(req, res, gctx, lctx) -> None:
    ...     res.text("pong")
    >>> @ping.before
    ... def note(gctx, lctx) -> None:
    ...     lctx.set("seen", True)
    """

    def __init__(self, function: F, id: str, hooks: list[Hook], app: App | None = None) -> None:
        super().__init__("route", hooks)
        functools.update_wrapper(self, function)
        self.function = function
        """What was decorated."""
        self.id = id
        """The handler's id."""
        self.app = app
        """Where it is registered."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function itself, without hooks or validation."""
        return self.function(*arguments, **named)

    def __repr__(self) -> str:
        return f"<route {self.id!r} of {getattr(self.function, '__qualname__', self.function)!r}>"
