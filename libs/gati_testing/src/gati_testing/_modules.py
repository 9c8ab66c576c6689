"""Modules as a simulation hands them to handlers: their calls are counted, and take virtual time."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

# Python looks these up in the type, so they have to be there.
_SPECIAL = (
    *("__call__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__", "__iter__", "__next__"),
    *("__aiter__", "__anext__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__bool__", "__str__"),
)


class ModuleMetrics(Protocol):
    """What calls are counted in."""

    module_calls: int
    module_errors: int
    module_latency_s: float


def timed(module: Any, metrics: ModuleMetrics, latency_s: float) -> Any:
    """A stand-in for `module`: of the same type for whoever asks, with the same attributes.

    Args:
        latency_s: what every awaitable call takes before it is made.
    """
    special = {name: _forwarding(name) for name in _SPECIAL if hasattr(type(module), name)}
    return type("Timed", (_Timed,), special)(module, metrics, latency_s)


def _forwarding(name: str) -> Callable[..., Any]:
    def special(self: _Timed, *arguments: Any) -> Any:
        return getattr(object.__getattribute__(self, "_module"), name)(*arguments)

    return special


class _Timed:
    def __init__(self, module: Any, metrics: ModuleMetrics, latency_s: float) -> None:
        for name, value in (("_module", module), ("_metrics", metrics), ("_latency_s", latency_s)):
            object.__setattr__(self, name, value)
        for name, value in getattr(module, "__dict__", {}).items():
            if callable(value) and not name.startswith(
                "_"
            ):  # here, too, because a runtime-checkable Protocol looks into the instance
                self.__dict__.setdefault(name, self._counting(value))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        kind: type = object.__getattribute__(self, "_module").__class__
        return kind

    def __getattr__(self, name: str) -> Any:
        value = getattr(object.__getattribute__(self, "_module"), name)
        return self._counting(value) if callable(value) and not inspect.isclass(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_module"), name, value)
        self.__dict__.pop(name, None)

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        metrics, latency_s = self.__dict__["_metrics"], self.__dict__["_latency_s"]

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            metrics.module_calls += 1
            try:
                result = method(*args, **kwargs)
            except BaseException:
                metrics.module_errors += 1
                raise
            return _later(result, metrics, latency_s) if inspect.isawaitable(result) else result

        return call


async def _later(work: Awaitable[Any], metrics: ModuleMetrics, latency_s: float) -> Any:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        try:
            await asyncio.sleep(latency_s)
        except BaseException:
            if inspect.iscoroutine(work):
                work.close()  # it never began
            raise
        return await work
    except BaseException:
        metrics.module_errors += 1
        raise
    finally:
        metrics.module_latency_s += loop.time() - began
