"""Fakes for what a handler calls: modules whose calls are recorded, and modules that only answer."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Mapping
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

    >>> orders = create_mock_module({"create": lambda body: {"id": "o-1", **body}})
    >>> orders.create({"sku": "ada"})
    {'id': 'o-1', 'sku': 'ada'}
    >>> orders.calls["create"][0].args
    ({'sku': 'ada'},)
    """

    def __init__(self, methods: Mapping[str, Callable[..., Any]]) -> None:
        for name, method in methods.items():
            if not callable(method):
                raise TypeError(f"method {name!r} of a fake module must be callable, not {method!r}")
            if name in ("calls", "all_calls", "reset", "module") or name.startswith("__"):
                raise ValueError(f"a fake module cannot have a method named {name!r}")
        self._methods = dict(methods)
        self.calls: dict[str, list[Call]] = {name: [] for name in methods}
        """Calls by method, oldest first."""
        self.all_calls: list[Call] = []
        """All calls in their order."""

    @property
    def module(self) -> FakeModule:
        """What to hand to the harness: this object."""
        return self

    def reset(self) -> None:
        """Forget the calls."""
        for calls in self.calls.values():
            calls.clear()
        self.all_calls.clear()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        methods: dict[str, Callable[..., Any]] = self.__dict__.get("_methods", {})
        if name not in methods:
            known = ", ".join(sorted(methods)) or "none"
            raise AttributeError(f"the fake module has no method {name!r} (it has: {known})")
        method = methods[name]
        if inspect.iscoroutinefunction(method):

            async def call_later(*args: Any, **kwargs: Any) -> Any:
                call = self._record(name, args, kwargs)
                try:
                    call.result = await method(*args, **kwargs)
                except BaseException as exc:
                    call.error = exc
                    raise
                return call.result

            return call_later

        def call_now(*args: Any, **kwargs: Any) -> Any:
            call = self._record(name, args, kwargs)
            try:
                call.result = method(*args, **kwargs)
            except BaseException as exc:
                call.error = exc
                raise
            return call.result

        return call_now

    def _record(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        # Copied: a handler may go on to change what it passed.
        call = Call(method=name, args=_copied(args), kwargs=_copied(kwargs), timestamp=time.time())
        self.calls[name].append(call)
        self.all_calls.append(call)
        return call


def create_mock_module(methods: Mapping[str, Callable[..., Any]]) -> FakeModule:
    """A module with these functions, which records their calls."""
    return FakeModule(methods)


def create_stub_module(values: Mapping[str, Any]) -> FakeModule:
    """A module whose async methods return these values; one that is an exception is raised.

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

    return FakeModule({name: answering(value) for name, value in values.items()})


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # a connection, a lock: the thing itself is the best there is
        return value
