"""An asyncio event loop whose time is virtual: an hour of sleeping takes no time at all.

The loop runs callbacks as every other loop does. Only where it would sleep until the next timer it
moves its clock to that timer instead. Three things are real and are waited for, with the clock
standing still: jobs in threads (`anyio.to_thread`, `asyncio.to_thread`, `run_in_executor`), open
sockets, and the pause between two calls from outside. A job in a thread that takes longer than the
next timer does not hold that timer up for ever: once as much real time has passed, it fires, and a
limit on a `def` handler works as it does in a worker.

What reads `time.time()` or `time.monotonic()` itself sees real time.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVarTuple, Unpack, cast

from anyio import CapacityLimiter
from anyio._backends._asyncio import AsyncIOBackend

Ts = TypeVarTuple("Ts")
Events = list[tuple[selectors.SelectorKey, int]]

_FIRST_INSTANT_S = 1000.0
"""Where the loop's clock begins: not at zero, which code may take for "never"."""
_GRACE_S = 0.25
"""Real seconds in which a thread that we do not know of may still wake the loop before it counts as stuck."""


class Referee(Protocol):
    """Who decides whether the clock may move; the loop asks."""

    def is_idle(self) -> bool:
        """Whether nobody outside waits for anything, so that time stands still."""
        ...

    def may_reach(self, instant: float) -> bool:
        """Whether the clock may go to this instant; if not, whoever went too far has been told."""
        ...

    def deadlocked(self) -> None:
        """Nothing can ever happen again, unless somebody is told."""
        ...


class _Job:
    """Work in a thread that the loop waits for. `calls_back` counts its calls into the loop, which it waits for."""

    __slots__ = ("calls_back",)

    def __init__(self) -> None:
        self.calls_back = 0


_current_job: ContextVar[_Job | None] = ContextVar("gati_testing_job", default=None)


class VirtualTimeEventLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self, referee: Referee) -> None:
        self._virtual_s = _FIRST_INSTANT_S
        self._real_since = time.monotonic()
        self._referee = referee
        self._jobs: set[_Job | asyncio.Future[Any]] = set()
        super().__init__(_JumpingSelector(self._idle))

    def time(self) -> float:
        """Virtual seconds; begins at an arbitrary instant, as every monotonic clock does."""
        return self._virtual_s

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_s - _FIRST_INSTANT_S

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        """As usual; the clock waits for the result, unless the waiting is cancelled."""
        future = super().run_in_executor(executor, func, *args)
        self._real_since = time.monotonic()
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future

    @contextmanager
    def waiting_for_thread(self) -> Iterator[_Job]:
        """The clock stands still inside the block."""
        job = _Job()
        self._real_since = time.monotonic()  # every job has as long as if it were the only one
        self._jobs.add(job)
        token = _current_job.set(job)
        try:
            yield job
        finally:
            _current_job.reset(token)
            self._jobs.discard(job)

    @property
    def awaits(self) -> str:
        """What is really waited for, in words; empty when nothing is."""
        parts = []
        if jobs := self._working():
            parts.append(f"{jobs} {'job' if jobs == 1 else 'jobs'} in threads")
        if sockets := self._open_sockets():
            parts.append(f"{sockets} open {'socket' if sockets == 1 else 'sockets'}")
        return " and ".join(parts)

    def _working(self) -> int:
        return sum(1 for job in self._jobs if not isinstance(job, _Job) or not job.calls_back)

    def _open_sockets(self) -> int:
        # One is the loop's own, by which other threads wake it.
        return len(cast(selectors.BaseSelector, self._selector).get_map()) - 1  # type: ignore[attr-defined]

    def _idle(self, select: Callable[[float | None], Events], timeout_s: float | None) -> Events:
        """Nothing is ready, and the next timer is `timeout_s` away: wait, or move the clock."""
        events = select(0)
        if events or self._ready:  # type: ignore[attr-defined]  # a thread may have been quicker than its wake-up
            return events
        if self._referee.is_idle():
            events = select(None)
            self._real_since = time.monotonic()
            return events
        if self._working() or self._open_sockets():
            return self._wait_really(select, timeout_s)
        if timeout_s is None:
            events = select(_GRACE_S)
            if not events:
                self._referee.deadlocked()
            return events
        self._move(timeout_s)
        return []

    def _wait_really(self, select: Callable[[float | None], Events], timeout_s: float | None) -> Events:
        if timeout_s is None:
            return select(None)
        events = select(max(0.0, timeout_s - (time.monotonic() - self._real_since)))
        if not events:
            self._move(timeout_s)
        return events

    def _move(self, by_s: float) -> None:
        if self._referee.may_reach(self._virtual_s + by_s):
            self._virtual_s += by_s
            self._real_since = time.monotonic()


class _JumpingSelector(selectors.DefaultSelector):
    """Asks the loop what to do where it would sleep."""

    def __init__(self, idle: Callable[[Callable[[float | None], Events], float | None], Events]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> Events:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        return self._idle(super().select, timeout)


# -- threads of anyio ---------------------------------------------------------------------------------
#
# anyio talks to its threads behind the loop's back. Both methods below stand in for anyio's own while
# a virtual loop runs; on every other loop they only pass the call on.

_run_in_thread = AsyncIOBackend.__dict__["run_sync_in_worker_thread"]
_run_from_thread = AsyncIOBackend.__dict__["run_async_from_thread"]


async def _tracked_run_in_thread(
    cls: type[AsyncIOBackend],
    func: Callable[..., Any],
    args: tuple[Any, ...],
    abandon_on_cancel: bool = False,
    limiter: CapacityLimiter | None = None,
) -> Any:
    run = _run_in_thread.__get__(None, cls)
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualTimeEventLoop):
        return await run(func, args, abandon_on_cancel, limiter)
    # The wait for a free thread passes in virtual time: whoever has the thread may be waiting for a timer.
    async with limiter or cls.current_default_thread_limiter():
        with loop.waiting_for_thread():
            return await run(func, args, abandon_on_cancel, CapacityLimiter(1))


def _tracked_run_from_thread(
    cls: type[AsyncIOBackend], func: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...], token: object
) -> Any:
    job = _current_job.get()
    run = _run_from_thread.__get__(None, cls)
    if job is None:
        return run(func, args, token)

    async def calling_back() -> Any:
        # In the loop's own thread: the job waits for us, so the clock must not wait for the job.
        job.calls_back += 1
        try:
            return await func(*args)
        finally:
            job.calls_back -= 1

    return run(calling_back, (), token)


_TRACKED = {
    "run_sync_in_worker_thread": classmethod(_tracked_run_in_thread),
    "run_async_from_thread": classmethod(_tracked_run_from_thread),
}
_UNTRACKED = {"run_sync_in_worker_thread": _run_in_thread, "run_async_from_thread": _run_from_thread}
_users = 0
_users_lock = threading.Lock()


@contextmanager
def tracked_threads() -> Iterator[None]:
    """Virtual loops know of the threads that anyio starts for them inside the block."""
    _count_users(1)
    try:
        yield
    finally:
        _count_users(-1)


def _count_users(change: int) -> None:
    global _users
    with _users_lock:
        _users += change
        for name, method in (_TRACKED if _users else _UNTRACKED).items():
            setattr(AsyncIOBackend, name, method)
