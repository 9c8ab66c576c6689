"""Hooks: what runs around a handler, and the rules for registering it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from gati_core.errors import RegistrationError
from gati_core.limits import check_timeout

HookKind = Literal["before", "after", "catch"]
HookLevel = Literal["global", "route", "local"]
LEVELS: tuple[HookLevel, ...] = get_args(HookLevel)

DEFAULT_HOOK_TIMEOUT_S = 5.0
MAX_RETRIES = 10
MAX_BACKOFF_S = 2.0
_PARAMETERS = {"before": ("gctx", "lctx"), "after": ("gctx", "lctx"), "catch": ("error", "gctx", "lctx")}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Hook:
    """One registered hook. Made by `make_hook`, which checks it."""

    __slots__ = (
        "backoff_s",
        "function",
        "id",
        "is_async",
        "is_detached",
        "is_threaded",
        "kind",
        "level",
        "retries",
        "timeout_s",
    )

    def __init__(
        self,
        *,
        id: str,
        kind: HookKind,
        level: HookLevel,
        function: Callable[..., Any],
        timeout_s: float,
        retries: int,
        backoff_s: float,
        is_async: bool,
        is_threaded: bool,
        is_detached: bool,
    ) -> None:
        self.id = id
        self.kind = kind
        self.level = level
        self.function = function
        self.timeout_s = timeout_s
        self.retries = retries
        self.backoff_s = backoff_s
        self.is_async = is_async
        self.is_threaded = is_threaded
        self.is_detached = is_detached

    def __repr__(self) -> str:
        return f"<{self.level} {self.kind} hook {self.id!r}>"


def make_hook(
    function: Callable[..., Any],
    *,
    kind: HookKind,
    level: HookLevel,
    id: str | None = None,
    timeout_s: float = DEFAULT_HOOK_TIMEOUT_S,
    retries: int = 0,
    backoff_s: float = 0.05,
    threaded: bool = False,
    detached: bool = False,
) -> Hook:
    """Check a hook and its options.

    Args:
        function: `(gctx, lctx)`, of a catch hook `(error, gctx, lctx)`; plain or async.
        timeout_s: for one attempt. An async or threaded hook is cancelled then; a plain one, which
            cannot be, counts as failed when it comes back too late.
        retries: further attempts after a failed one.
        backoff_s: pause before the first retry; doubles with each, up to 2 s.
        threaded: run a plain function in a thread, for hooks that wait.
        detached: do not wait for it: the answer leaves meanwhile, and its failure is only logged.
    Raises:
        RegistrationError: says which hook and what is wrong with it.
    """
    name = _name(function)
    given: Any = function  # whatever its annotation promises
    if not callable(given) or inspect.isclass(given):
        raise RegistrationError(f"a {kind} hook must be a function, not {function!r}")
    check_parameters(function, _PARAMETERS[kind], f"{kind} hook {name}")
    if level not in LEVELS:
        raise RegistrationError(f"{kind} hook {name}: level {level!r} is none of {', '.join(LEVELS)}")
    check_timeout(timeout_s, f"{kind} hook {name}")
    if type(retries) is not int or not 0 <= retries <= MAX_RETRIES:
        raise RegistrationError(f"{kind} hook {name}: retries must be 0 to {MAX_RETRIES}, not {retries!r}")
    if not 0 <= backoff_s < math.inf:
        raise RegistrationError(f"{kind} hook {name}: backoff_s must be 0 or more, not {backoff_s}")
    if id is not None and (type(id) is not str or not id):
        raise RegistrationError(f"{kind} hook {name}: an id must be a non-empty string, not {id!r}")
    if detached and retries:
        raise RegistrationError(f"{kind} hook {name}: a detached hook has no retries; retry inside it")
    is_async = is_async_callable(function)
    if threaded and is_async:
        raise RegistrationError(f"{kind} hook {name}: threaded=True is for plain functions; this one is async")
    return Hook(
        id=id or name,
        kind=kind,
        level=level,
        function=function,
        timeout_s=timeout_s,
        retries=retries,
        backoff_s=backoff_s,
        is_async=is_async,
        is_threaded=threaded,
        is_detached=detached,
    )


def is_async_callable(function: Any) -> bool:
    """Whether calling it gives a coroutine, seen through partial objects and `__call__`."""
    while hasattr(function, "func") and not inspect.isroutine(function):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def check_parameters(function: Callable[..., Any], names: tuple[str, ...], what: str) -> None:
    """Refuse a function that cannot be called with exactly these positional arguments.

    Raises:
        RegistrationError: `what` begins the message.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as exc:
        raise RegistrationError(f"{what}: its parameters are not known to Python") from exc
    parameters = list(signature.parameters.values())
    known = [parameter.name for parameter in parameters if parameter.name in names]
    in_order = known == [name for name in names if name in known]
    try:
        signature.bind(*names)
    except TypeError:
        in_order = False
    if not in_order:
        found = ", ".join(str(parameter) for parameter in parameters)
        raise RegistrationError(f"{what} takes ({', '.join(names)}), not ({found})")


def _name(function: Any) -> str:
    while hasattr(function, "func") and not inspect.isroutine(function):
        function = function.func
    return str(getattr(function, "__name__", None) or type(function).__name__)
