"""`gctx.lifecycle`: what runs at start, at the end, and in between, once per process."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, overload

import anyio
import structlog

from gati_core.contexts._health import (
    BUILT_IN,
    CheckResult,
    CheckStatus,
    HealthFacts,
    HealthReport,
    MemoryLevel,
    built_in_checks,
    memory_pressure,
    overall,
)
from gati_core.contexts._hooks import check_parameters
from gati_core.contexts._limited import Limited, NoAnswer
from gati_core.errors import RegistrationError, StartupFailed
from gati_core.limits import check_timeout

if TYPE_CHECKING:
    from gati_core.contexts._global import GlobalContext

log = structlog.get_logger("gati.lifecycle")

F = TypeVar("F", bound=Callable[..., Any])
BreakerState = Literal["open", "closed", "half-open"]

STARTUP_TIMEOUT_S = 15.0
SHUTDOWN_TIMEOUT_S = 10.0
CALLBACK_TIMEOUT_S = 5.0
MAX_HOOKS = 256
"""Of one kind: a handler that registers with every request is noticed."""
_MAX_MESSAGE = 500

_Kind = Literal["startup", "pre_shutdown", "shutdown", "health_check", "config_reload", "memory_pressure", "breaker"]
_PARAMETERS: dict[_Kind, tuple[str, ...]] = {
    "startup": ("gctx",),
    "pre_shutdown": ("gctx",),
    "shutdown": ("gctx",),
    "health_check": ("gctx",),
    "config_reload": ("gctx", "old", "new"),
    "memory_pressure": ("gctx", "level"),
    "breaker": ("gctx", "service", "state"),
}
_VERDICTS: dict[str, CheckStatus] = {"pass": "pass", "warn": "warn", "fail": "fail"}


class Priority(enum.IntEnum):
    """Higher runs first; hooks of one priority run in the order of their registration."""

    CRITICAL = 1000
    HIGH = 800
    NORMAL = 500
    LOW = 200
    CLEANUP = 100


class ProcessLifecycle:
    """Registrations, and what runs them. Each `on_…` works as a decorator and as a call.

    Functions are plain or async; plain ones run in a thread. One instance serves one process.

    >>> lifecycle = ProcessLifecycle()
    >>> @lifecycle.on_startup
    ... async def open_pool(gctx): ...
    >>> @lifecycle.on_health_check("database")
    ... async def ping(gctx):
    ...     return "warn", "slow"
    """

    __slots__ = ("_attempted", "_has_started", "_hooks", "_is_leaving", "_memory_level")

    def __init__(self) -> None:
        self._hooks: dict[_Kind, list[Limited]] = {kind: [] for kind in _PARAMETERS}
        self._attempted: set[str] = set()
        self._has_started = False
        self._is_leaving = False
        self._memory_level: MemoryLevel | None = None

    def fresh(self) -> ProcessLifecycle:
        """The same registrations for another process, none of which have run."""
        other = ProcessLifecycle()
        for kind, hooks in self._hooks.items():
            other._hooks[kind] = [Limited(each.name, each.function, each.priority, each.timeout_s) for each in hooks]
        return other

    # -- registering ----------------------------------------------------------------------------

    @overload
    def on_startup(
        self, function: F, *, name: str = ..., priority: int = ..., timeout_s: float = STARTUP_TIMEOUT_S
    ) -> F: ...
    @overload
    def on_startup(
        self, *, name: str = ..., priority: int = ..., timeout_s: float = STARTUP_TIMEOUT_S
    ) -> Callable[[F], F]: ...
    def on_startup(
        self,
        function: Any = None,
        *,
        name: str = "",
        priority: int = Priority.NORMAL,
        timeout_s: float = STARTUP_TIMEOUT_S,
    ) -> Any:
        """`(gctx)`, before this process takes requests. A failure ends the start.

        Args:
            name: for logs and errors; the function's own by default.
            priority: higher runs first; see `Priority`.
            timeout_s: seconds it may take.
        Raises:
            RegistrationError: the function cannot be called like that, or it is too late.
        """
        return self._register("startup", function, name, priority, timeout_s)

    @overload
    def on_pre_shutdown(self, function: F, *, name: str = ..., priority: int = ..., timeout_s: float = ...) -> F: ...
    @overload
    def on_pre_shutdown(self, *, name: str = ..., priority: int = ..., timeout_s: float = ...) -> Callable[[F], F]: ...
    def on_pre_shutdown(
        self,
        function: Any = None,
        *,
        name: str = "",
        priority: int = Priority.NORMAL,
        timeout_s: float = SHUTDOWN_TIMEOUT_S,
    ) -> Any:
        """`(gctx)`, when this process begins to leave and requests still run."""
        return self._register("pre_shutdown", function, name, priority, timeout_s)

    @overload
    def on_shutdown(self, function: F, *, name: str = ..., priority: int = ..., timeout_s: float = ...) -> F: ...
    @overload
    def on_shutdown(self, *, name: str = ..., priority: int = ..., timeout_s: float = ...) -> Callable[[F], F]: ...
    def on_shutdown(
        self,
        function: Any = None,
        *,
        name: str = "",
        priority: int = Priority.NORMAL,
        timeout_s: float = SHUTDOWN_TIMEOUT_S,
    ) -> Any:
        """`(gctx)`, after the last request. A failure is logged and the next one runs.

        It also runs after a failed start, unless a start-up hook of the same name was never reached.
        May be registered by a start-up hook, and then exists only if that one ran.
        """
        return self._register("shutdown", function, name, priority, timeout_s)

    @overload
    def on_health_check(self, name: str, function: F, *, timeout_s: float = ...) -> F: ...
    @overload
    def on_health_check(self, name: str, *, timeout_s: float = ...) -> Callable[[F], F]: ...
    def on_health_check(self, name: str, function: Any = None, *, timeout_s: float = CALLBACK_TIMEOUT_S) -> Any:
        """`(gctx)`, returning "pass", "warn" or "fail", or a bool, or a pair of one of these and a message."""
        if not _is_name(name):
            raise RegistrationError(f"a health check needs a name, not {name!r}")
        return self._register("health_check", function, name, Priority.NORMAL, timeout_s)

    @overload
    def on_config_reload(self, function: F, *, name: str = ..., timeout_s: float = ...) -> F: ...
    @overload
    def on_config_reload(self, *, name: str = ..., timeout_s: float = ...) -> Callable[[F], F]: ...
    def on_config_reload(self, function: Any = None, *, name: str = "", timeout_s: float = CALLBACK_TIMEOUT_S) -> Any:
        """`(gctx, old, new)`, once `gctx.config` is the new configuration."""
        return self._register("config_reload", function, name, Priority.NORMAL, timeout_s)

    @overload
    def on_memory_pressure(self, function: F, *, name: str = ..., timeout_s: float = ...) -> F: ...
    @overload
    def on_memory_pressure(self, *, name: str = ..., timeout_s: float = ...) -> Callable[[F], F]: ...
    def on_memory_pressure(self, function: Any = None, *, name: str = "", timeout_s: float = CALLBACK_TIMEOUT_S) -> Any:
        """`(gctx, level)`, when the level becomes another one of "low", "medium" and "high"."""
        return self._register("memory_pressure", function, name, Priority.NORMAL, timeout_s)

    @overload
    def on_circuit_breaker_change(self, function: F, *, name: str = ..., timeout_s: float = ...) -> F: ...
    @overload
    def on_circuit_breaker_change(self, *, name: str = ..., timeout_s: float = ...) -> Callable[[F], F]: ...
    def on_circuit_breaker_change(
        self, function: Any = None, *, name: str = "", timeout_s: float = CALLBACK_TIMEOUT_S
    ) -> Any:
        """`(gctx, service, state)`, when a service's breaker becomes "open", "closed" or "half-open"."""
        return self._register("breaker", function, name, Priority.NORMAL, timeout_s)

    def _register(self, kind: _Kind, function: Any, name: str, priority: int, timeout_s: float) -> Any:
        what = kind.replace("_", " ")
        if function is None:
            return lambda decorated: self._register(kind, decorated, name, priority, timeout_s)
        if not callable(function):
            raise RegistrationError(f"a {what} hook must be a function, not {function!r}")
        name = name or str(getattr(function, "__name__", None) or type(function).__name__)
        what = f"{what} hook {name!r}"
        check_parameters(function, _PARAMETERS[kind], what)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise RegistrationError(f"{what}: priority must be a Priority or an integer, not {priority!r}")
        check_timeout(timeout_s, what)
        if (kind == "startup" and self._has_started) or (kind in ("pre_shutdown", "shutdown") and self._is_leaving):
            raise RegistrationError(f"{what}: too late, those hooks run already or have run")
        hooks = self._hooks[kind]
        if kind == "health_check" and (name in BUILT_IN or any(each.name == name for each in hooks)):
            raise RegistrationError(f"{what}: there is a health check of this name already")
        if len(hooks) >= MAX_HOOKS:
            raise RegistrationError(f"{what}: {MAX_HOOKS} are registered already; register once, not with each request")
        hooks.append(Limited(name, function, priority, timeout_s))
        hooks.sort(key=lambda each: -each.priority)  # stable: the order of registration stays
        return function

    # -- running --------------------------------------------------------------------------------

    def functions(self) -> list[tuple[str, Callable[..., Any]]]:
        """Everything that is registered, with a name for messages."""
        return [(f"{kind} {each.name}", each.function) for kind, hooks in self._hooks.items() for each in hooks]

    async def run_startup(self, gctx: GlobalContext) -> None:
        """Run the start-up hooks, once.

        Raises:
            StartupFailed: names the hook that failed; the shutdown hooks have run by then.
        """
        if self._has_started:
            return
        self._has_started = True
        for hook in list(self._hooks["startup"]):
            self._attempted.add(hook.name)
            hook.has_run = True
            try:
                await hook.run(gctx)
            except Exception as exc:
                self._skip("pre_shutdown")  # nothing was served that would have to be told
                await self.run_shutdown(gctx)
                raise StartupFailed(f"start-up hook {hook.name!r} failed: {_reason(exc)}", hook=hook.name) from exc

    async def run_pre_shutdown(self, gctx: GlobalContext) -> None:
        """Run the pre-shutdown hooks, each at most once; failures are logged."""
        await self._run_each("pre_shutdown", gctx)

    async def run_shutdown(self, gctx: GlobalContext) -> None:
        """Run the pre-shutdown hooks that have not run, then the shutdown hooks, each at most once."""
        await self.run_pre_shutdown(gctx)
        unreached = {hook.name for hook in self._hooks["startup"]} - self._attempted
        for hook in self._hooks["shutdown"]:
            hook.has_run = hook.has_run or hook.name in unreached
        await self._run_each("shutdown", gctx)
        self._is_leaving = True

    async def check_health(self, gctx: GlobalContext, facts: HealthFacts) -> HealthReport:
        """Run all health checks at once and judge them together with the facts. Takes 5 s at most by default."""
        checks = self._hooks["health_check"]
        results: list[CheckResult] = [CheckResult(hook.name, "fail") for hook in checks]

        async def check(place: int, hook: Limited) -> None:
            results[place] = await _checked(hook, gctx)

        async with anyio.create_task_group() as running:
            for place, hook in enumerate(checks[: len(results)]):
                running.start_soon(check, place, hook, name=hook.name)
        found = built_in_checks(facts) + results
        return HealthReport(overall(found), found, facts)

    async def reload_config(self, gctx: GlobalContext, config: Mapping[str, Any]) -> None:
        """Put a new configuration in place, then tell the callbacks; one that fails is logged.

        Raises:
            ConfigInvalid: it cannot be made read-only; the old one stays.
        """
        from gati_core.contexts._global import replace_config  # the global context holds a lifecycle

        old = replace_config(gctx, config)
        await self._call_each("config_reload", gctx, old, gctx.config)

    async def update_memory(self, gctx: GlobalContext, used: int | None, limit: int | None) -> MemoryLevel | None:
        """Note how much memory is used, in bytes, and tell the callbacks when that is another level.

        Returns:
            The level; None below 70 %, or when either number is not known.
        """
        level = None if used is None or limit is None else memory_pressure(used, limit)
        if level != self._memory_level:
            self._memory_level = level
            if level is None:
                log.info("memory_pressure_ended", used_bytes=used, limit_bytes=limit)
            else:
                log.warning("memory_pressure_changed", level=level, used_bytes=used, limit_bytes=limit)
                await self._call_each("memory_pressure", gctx, level)
        return level

    @property
    def abandoned(self) -> int:
        """Threads of plain functions that have not come back; while there are any, the interpreter does not end."""
        return sum(hook.threads for hooks in self._hooks.values() for hook in hooks)

    async def breaker_changed(self, gctx: GlobalContext, service: str, state: BreakerState) -> None:
        """Tell the callbacks that a service's circuit breaker has another state."""
        if state not in get_args(BreakerState):
            raise ValueError(f"a breaker is open, closed or half-open, not {state!r}")
        await self._call_each("breaker", gctx, service, state)

    async def _run_each(self, kind: _Kind, gctx: GlobalContext) -> None:
        # Looked up each time: a hook may register another one, which then runs as well.
        while hook := next((each for each in self._hooks[kind] if not each.has_run), None):
            hook.has_run = True  # before it runs: a second caller, or a cancellation, must not repeat it
            await self._call(kind, hook, gctx)

    async def _call_each(self, kind: _Kind, *arguments: Any) -> None:
        for hook in list(self._hooks[kind]):
            await self._call(kind, hook, *arguments)

    async def _call(self, kind: _Kind, hook: Limited, *arguments: Any) -> None:
        try:
            await hook.run(*arguments)
        except Exception as exc:  # one failure must not keep the others from running
            is_plain = isinstance(exc, NoAnswer)
            log.error(f"{kind}_hook_failed", hook=hook.name, error=_reason(exc), exc_info=None if is_plain else exc)

    def _skip(self, kind: _Kind) -> None:
        for hook in self._hooks[kind]:
            hook.has_run = True


async def _checked(hook: Limited, gctx: GlobalContext) -> CheckResult:
    began = time.monotonic()
    status: CheckStatus
    try:
        status, message = _verdict(await hook.run(gctx))
    except Exception as exc:  # a check that raises has found something
        status, message = "fail", _reason(exc)
    return CheckResult(hook.name, status, message[:_MAX_MESSAGE], round((time.monotonic() - began) * 1000, 3))


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != ""


def _verdict(answer: Any) -> tuple[CheckStatus, str]:
    message = ""
    if isinstance(answer, tuple) and len(answer) == 2:
        answer, message = answer[0], str(answer[1])
    if answer is True:
        return "pass", message
    if answer is False:
        return "fail", message
    if isinstance(answer, str) and answer in _VERDICTS:
        return _VERDICTS[answer], message
    return "fail", f"the check returned {answer!r:.100}, which is neither pass, warn, fail nor a bool"


def _reason(error: Exception) -> str:
    if isinstance(error, NoAnswer):
        return str(error)
    return f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]
