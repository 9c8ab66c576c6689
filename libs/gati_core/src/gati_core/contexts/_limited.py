"""A function of the author's that is called with a time limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from gati_core.contexts._hooks import is_async_callable
from gati_core.contexts._tasks import ENDS_PROGRAMS, contained_error


class NoAnswer(Exception):
    """The function did not come back: not in time, not from its last call, or by a cancellation of its own."""


class Limited:
    """One registered function of a process, plain or async."""

    __slots__ = ("_threads", "function", "has_run", "is_async", "name", "priority", "timeout_s")

    def __init__(self, name: str, function: Callable[..., Any], priority: int, timeout_s: float) -> None:
        self.name = name
        self.function = function
        self.priority = priority
        self.timeout_s = timeout_s
        self.is_async = is_async_callable(function)
        self.has_run = False
        self._threads: set[int] = set()

    @property
    def threads(self) -> int:
        """Threads that are in it now."""
        return len(self._threads)

    async def run(self, *arguments: Any) -> Any:
        """Call it: an async one here, a plain one in a thread that is left behind when it takes too long.

        Raises:
            NoAnswer: it did not come back.
        """
        if self._threads:
            # Otherwise a check that hangs would leave one more thread behind with every round.
            raise NoAnswer("its last call has not come back yet")
        with anyio.move_on_after(self.timeout_s) as scope:
            try:
                return await (self.function(*arguments) if self.is_async else self._in_thread(*arguments))
            except ENDS_PROGRAMS as exc:
                raise contained_error(exc) from exc
            except asyncio.CancelledError as exc:
                task = asyncio.current_task()
                if scope.cancel_called or task is None or task.cancelling():
                    raise
                raise NoAnswer("it was cancelled, and not by us") from exc
        raise NoAnswer(f"no answer within {self.timeout_s:g} s")

    async def _in_thread(self, *arguments: Any) -> Any:
        def call() -> Any:
            thread = threading.get_ident()
            self._threads.add(thread)
            try:
                return self.function(*arguments)
            finally:
                self._threads.discard(thread)

        # A limiter of its own: neither handlers nor other hooks that hang can make it wait.
        limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=limiter)
