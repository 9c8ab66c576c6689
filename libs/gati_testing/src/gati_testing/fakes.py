"""Fakes for what a handler calls: modules whose calls are recorded, and modules that only answer."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec


class Call(msgspec.Struct, kw_only=True):
    """One call of a fake module's method."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    error: BaseException | None = None
    timestamp: float = 0.0
    """Unix seconds, of the real clock."""


class FakeModule:
    """A module of plain or async functions, every call of which is recorded.

    Args:
        kind: the class that it passes for, where a handler asks for one: `gctx.get_module("orders", Orders)`.

    >>> orders = create_mock_module({"create": lambda body: {"id": "o-1", **body}})
    >>> orders.create({"sku": "ada"})
    {'id': 'o-1', 'sku': 'ada'}
    >>> orders.calls["create"][0].args
    ({'sku': 'ada'},)
    """

    def __init__(self, methods: Mapping[str, Callable[..., Any]], *, kind: type | None = None) -> None:
        self.calls: dict[str, list[Call]] = {name: [] for name in methods}
        """Calls by method, oldest first."""
        self.all_calls: list[Call] = []
        """All calls in their order."""
        self._kind = kind
        for name, method in methods.items():
            if not callable(method):
                raise TypeError(f"method {name!r} of a fake module must be callable, not {method!r}")
            if hasattr(self, name) or name.startswith("__"):
                raise ValueError(f"a fake module cannot have a method named {name!r}")
            # In the instance, where a runtime-checkable Protocol looks for it.
            self.__dict__[name] = self._spy(name, method)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self.__dict__.get("_kind") or FakeModule

    @property
    def module(self) -> FakeModule:
        """What to hand to the harness: this object."""
        return self

    def reset(self) -> None:
        """Forget the calls."""
        for calls in self.calls.values():
            calls.clear()
        self.all_calls.clear()

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(sorted(self.__dict__.get("calls", ()))) or "none"
        raise AttributeError(f"the fake module has no method {name!r} (it has: {known})")

    def _spy(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(method):

            async def spy_later(*args: Any, **kwargs: Any) -> Any:
                return await _later(self._record(name, args, kwargs), method(*args, **kwargs))

            return spy_later

        def spy(*args: Any, **kwargs: Any) -> Any:
            call = self._record(name, args, kwargs)
            try:
                result = method(*args, **kwargs)
            except BaseException as exc:
                call.error = exc
                raise
            if inspect.isawaitable(result):
                return _later(call, result)
            call.result = result
            return result

        return spy

    def _record(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        # Copied: a handler may go on to change what it passed.
        call = Call(method=method, args=_copied(args), kwargs=_copied(kwargs), timestamp=time.time())
        self.calls[method].append(call)
        self.all_calls.append(call)
        return call


async def _later(call: Call, work: Awaitable[Any]) -> Any:
    try:
        call.result = await work
    except BaseException as exc:
        call.error = exc
        raise
    return call.result


def create_mock_module(methods: Mapping[str, Callable[..., Any]], *, kind: type | None = None) -> FakeModule:
    """A module with these functions, which records their calls; see `FakeModule`."""
    return FakeModule(methods, kind=kind)


def create_stub_module(values: Mapping[str, Any], *, kind: type | None = None) -> FakeModule:
    """A module whose async methods return these values; one that is an exception is raised. It is a `FakeModule`.

    >>> stock = create_stub_module({"level": 7})
    >>> import asyncio
    >>> asyncio.run(stock.level("ada"))
    7
    """

    def answering(value: Any) -> Callable[..., Any]:
        async def method(*_args: Any, **_kwargs: Any) -> Any:
            if isinstance(value, BaseException) or (inspect.isclass(value) and issubclass(value, BaseException)):
                raise value
            return value

        return method

    return FakeModule({name: answering(value) for name, value in values.items()}, kind=kind)


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # a connection, a lock: the thing itself is the best there is
        return value
