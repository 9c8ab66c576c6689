"""Threads for `def` handlers and threaded hooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread


class HandlerThreads:
    """At most `size` functions at once, each in a thread of its own.

    Python cannot stop a thread. When the caller is cancelled the thread is abandoned: it runs on,
    nobody waits for it, and its slot is free for the next call. `abandoned` counts those that still
    run; whoever owns this replaces the process when there are too many.
    """

    def __init__(self, size: int) -> None:
        self._limiter = anyio.CapacityLimiter(size)
        self._jobs: dict[int, bool] = {}
        self._next = 0

    @property
    def running(self) -> int:
        """Calls that somebody waits for."""
        return len(self._jobs) - self.abandoned

    @property
    def abandoned(self) -> int:
        """Threads that nobody waits for any more and that have not returned."""
        return sum(self._jobs.values())

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it in a thread; what it raises is raised here."""
        self._next += 1
        job = self._next
        self._jobs[job] = False
        has_begun = False

        def call() -> Any:
            nonlocal has_begun
            has_begun = True
            try:
                return function(*arguments)
            except (StopIteration, GeneratorExit) as exc:
                # No future can carry them: the waiter would never wake, or be closed instead of woken.
                name = getattr(function, "__name__", "the function")
                raise RuntimeError(f"{name} raised {type(exc).__name__}") from exc
            finally:
                self._jobs.pop(job, None)

        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        except asyncio.CancelledError:
            if has_begun:
                if job in self._jobs:
                    self._jobs[job] = True
            else:
                self._jobs.pop(job, None)
            raise
