"""A virtual clock to use: an event loop in a thread of its own, called from tests of any kind."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
import warnings
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from types import FrameType
from typing import Any, Self, TypeVar

from gati_testing._virtual_clock import VirtualTimeEventLoop, tracked_threads

T = TypeVar("T")

STARTS_AT_S = 1_750_000_000.0
"""Unix time at which every virtual clock begins: 15 June 2025, 15:06:40 UTC."""
LIMIT_S = 86_400.0
"""Virtual seconds that one call may take: a day."""
REAL_LIMIT_S = 60.0
"""Real seconds that one call may take."""

_CLEAN_UP_S = 60.0
"""Virtual seconds left to a call that was cancelled."""
_LEAVE_S = 5.0


class VirtualTimeError(RuntimeError):
    """A call into a virtual loop cannot end. The message names the tasks and where they wait."""


class VirtualDeadlock(VirtualTimeError):
    """Nothing is ready, no timer is set and no thread works: nothing would ever happen again."""


class VirtualTimeLimit(VirtualTimeError):
    """A call took more virtual time than it may."""


class VirtualLoopStuck(VirtualTimeError):
    """A call took more real time than it may: something blocks the loop, or really waits."""


class _Call:
    __slots__ = ("error", "limit_at", "outcome", "task")

    def __init__(self, task: asyncio.Task[Any], outcome: Future[Any], limit_at: float) -> None:
        self.task = task
        self.outcome = outcome
        self.limit_at = limit_at
        self.error: VirtualTimeError | None = None


class VirtualLoop:
    """Runs coroutines in virtual time. Use it as a context manager, or `start` and `close` it.

    The clock moves only while a call runs, so a background task with a timer does not run away
    between two calls. Calls may overlap; what must happen in a fixed order belongs into one call.

    Args:
        starts_at_s: what `now` begins with, Unix seconds.
        limit_s: virtual seconds that one call may take.

    >>> with VirtualLoop() as loop:
    ...     loop.call(asyncio.sleep(3600, "an hour later"))
    ...     loop.now() - STARTS_AT_S
    'an hour later'
    3600.0
    """

    def __init__(self, *, starts_at_s: float = STARTS_AT_S, limit_s: float = LIMIT_S) -> None:
        self._starts_at_s = starts_at_s
        self._limit_s = limit_s
        self._calls: set[_Call] = set()
        self._loop = VirtualTimeEventLoop(self)
        self._closing = asyncio.Event()
        self._is_ending = False
        self._leaked: list[str] = []
        self._thread = threading.Thread(target=self._run, name="gati-virtual-loop", daemon=True)

    # -- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> list[str]:
        """Cancel what is left, wait for its end, close the loop.

        Returns:
            Where each task waited that was still there. Who owns background tasks ends them first.
        Raises:
            VirtualLoopStuck: something blocks the loop, so that it cannot be closed.
        """
        if self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._closing.set)
            except RuntimeError:
                pass  # closed in this very moment, by another thread
            self._thread.join(2 * _LEAVE_S + 1)
            if self._thread.is_alive():
                raise VirtualLoopStuck(f"the virtual loop cannot be closed\n{self._state()}")
        elif not self._loop.is_closed():
            self._loop.close()  # it was never started
        return self._leaked

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        leaked = self.close()
        if leaked:
            warnings.warn("tasks were left in the virtual loop:\n" + "\n".join(leaked), ResourceWarning, stacklevel=2)

    def _run(self) -> None:
        loop = self._loop
        with tracked_threads():
            main = loop.create_task(self._until_closing())
            while not main.done():
                try:
                    loop.run_until_complete(main)
                except (SystemExit, KeyboardInterrupt):
                    continue  # asyncio lets these through the loop; the call that raised it has it as well
            self._is_ending = True
            self._end_leftovers()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    async def _until_closing(self) -> None:
        await self._closing.wait()

    def _end_leftovers(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        if not tasks:
            return
        self._leaked = sorted(whereabouts(task) for task in tasks)
        for task in tasks:
            task.cancel()
        try:
            _, pending = self._loop.run_until_complete(asyncio.wait(tasks, timeout=_LEAVE_S))
        except (SystemExit, KeyboardInterrupt):
            pending = {task for task in tasks if not task.done()}
        for task in tasks - pending:
            if not task.cancelled():
                task.exception()  # asked for, so that nobody reports it as never retrieved
        for call in self._calls:
            call.outcome.set_exception(VirtualTimeError("the virtual loop was closed during the call"))

    # -- calls ----------------------------------------------------------------------------------

    def now(self) -> float:
        """The virtual wall clock, Unix seconds."""
        return self._starts_at_s + self._loop.elapsed_s

    def now_ms(self) -> int:
        """The virtual wall clock, Unix milliseconds."""
        return round(self.now() * 1000)

    def call(self, coro: Coroutine[Any, Any, T], *, within_s: float = REAL_LIMIT_S) -> T:
        """Run a coroutine to its end and return its result; blocks the calling thread, for moments only.

        Args:
            within_s: real seconds it may take.
        Raises:
            VirtualTimeError: it cannot end, or took too long; see the kinds of it.
        """
        outcome = self._submit(coro)
        try:
            wait([outcome], within_s)
        except BaseException:
            self._cancel(outcome)
            raise
        if not outcome.done():
            raise self._stuck(outcome, within_s)
        return outcome.result()

    async def acall(self, coro: Coroutine[Any, Any, T], *, within_s: float = REAL_LIMIT_S) -> T:
        """The same without blocking the caller's own event loop, so that calls can overlap."""
        outcome = self._submit(coro)
        future = asyncio.wrap_future(outcome)
        try:
            await asyncio.wait([future], timeout=within_s)
        except asyncio.CancelledError:
            self._cancel(outcome)
            raise
        finally:
            if not future.done():
                future.cancel()  # nobody will ask for what comes of it
        if future.cancelled():
            raise self._stuck(outcome, within_s)
        return future.result()

    def _submit(self, coro: Coroutine[Any, Any, T]) -> Future[T]:
        if not asyncio.iscoroutine(coro):
            raise TypeError(f"expected a coroutine, got {coro!r}")
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()  # from here on only we settle it
        problem = ""
        if threading.current_thread() is self._thread:
            problem = "already in the virtual loop: await the coroutine instead"
        elif not self._thread.is_alive():
            problem = "the virtual loop does not run"
        else:
            try:
                self._loop.call_soon_threadsafe(self._begin, coro, outcome)
            except RuntimeError:
                problem = "the virtual loop is closed"
        if problem:
            coro.close()
            raise RuntimeError(problem)
        return outcome

    def _begin(self, coro: Coroutine[Any, Any, Any], outcome: Future[Any]) -> None:
        call = _Call(self._loop.create_task(coro), outcome, self._loop.time() + self._limit_s)
        self._calls.add(call)
        call.task.add_done_callback(lambda _: self._finish(call))

    def _finish(self, call: _Call) -> None:
        if call not in self._calls:
            return  # given up meanwhile
        self._calls.discard(call)
        failure = None if call.task.cancelled() else call.task.exception()
        if call.error is not None:
            call.error.__cause__ = failure
            call.outcome.set_exception(call.error)
        elif call.task.cancelled():
            call.outcome.set_exception(VirtualTimeError("the call was cancelled from within the virtual loop"))
        elif failure is not None:
            call.outcome.set_exception(failure)
        else:
            call.outcome.set_result(call.task.result())

    def _cancel(self, outcome: Future[Any]) -> None:
        def cancel() -> None:
            for call in self._calls:
                if call.outcome is outcome:
                    call.task.cancel()

        try:
            self._loop.call_soon_threadsafe(cancel)
        except RuntimeError:
            pass  # closed: everything was cancelled

    def _stuck(self, outcome: Future[Any], within_s: float) -> VirtualLoopStuck:
        state = self._state()
        self._cancel(outcome)
        return VirtualLoopStuck(f"the call did not end within {within_s:g} real seconds\n{state}")

    # -- what the event loop asks ---------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether no call runs."""
        return not self._calls and not self._is_ending

    def may_reach(self, instant: float) -> bool:
        """Whether no call forbids this instant; those that do are cancelled."""
        over = [call for call in self._calls if instant > call.limit_at]
        for call in over:
            self._fail(
                call, VirtualTimeLimit(f"the call takes more than {self._limit_s:g} virtual seconds\n{self._state()}")
            )
        return not over

    def deadlocked(self) -> None:
        """Cancel every call: none of them can end by itself."""
        state = self._state()
        for call in self._calls:
            self._fail(call, VirtualDeadlock(f"nothing is ready, no timer is set, no thread works\n{state}"))

    def _fail(self, call: _Call, error: VirtualTimeError) -> None:
        if call.error is None:
            call.error = error
            call.limit_at += _CLEAN_UP_S
            self._loop.call_soon(call.task.cancel)
        else:
            # Cancelled before, and still there: its caller waits no longer, `close` reports the task.
            self._loop.call_soon(self._give_up, call)

    def _give_up(self, call: _Call) -> None:
        if call in self._calls:
            self._calls.discard(call)
            call.outcome.set_exception(call.error)

    def _state(self) -> str:
        """What everything waits for, in words; from any thread."""
        lines = [f"virtual time: {self._loop.elapsed_s:g} s since the start"]
        if awaits := self._loop.awaits:
            lines.append(f"really waited for: {awaits}")
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is not None and threading.current_thread() is not self._thread and not _is_waiting(frame):
            lines.append("the loop itself is busy:\n" + "".join(traceback.format_stack(frame)[-4:]).rstrip())
        lines += sorted(whereabouts(task) for task in asyncio.all_tasks(self._loop) if not _is_ours(task))
        return "\n".join(lines)


def whereabouts(task: asyncio.Task[Any]) -> str:
    """Name of a task, and the lines it waits at, the innermost last."""
    lines: list[tuple[bool, str]] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame, inner = None, None
        for prefix, next_one in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = frame or getattr(awaited, f"{prefix}_frame", None)
            inner = inner or getattr(awaited, next_one, None)
        if frame is not None:
            code = frame.f_code
            is_library = any(part in code.co_filename for part in ("site-packages", f"asyncio{_SEPARATOR}"))
            lines.append((is_library, f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"))
        awaited = inner
    own = [line for is_library, line in lines if not is_library] or [line for _, line in lines]
    return f"task {task.get_name()!r} waits at " + " > ".join(own[-3:] or ["its first line"])


_SEPARATOR = "/" if sys.platform != "win32" else "\\"


def _is_ours(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "") == VirtualLoop._until_closing.__qualname__


def _is_waiting(frame: FrameType) -> bool:
    return frame.f_code.co_name == "select"
