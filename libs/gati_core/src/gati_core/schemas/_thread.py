"""Blocking work on a database in a thread of its own, which can be told to stop.

A thread cannot be ended from outside. What can be done is done: the statement that runs is cancelled in the database,
the next one is not begun, and nothing is committed. Work that does not react is left alone: the caller is told, and
the process should end.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

_LOOK_EVERY_S = 0.25
GRACE_S = 5.0
"""Seconds that work may take to end once it was told to."""


class Stopped(Exception):
    """Raised in the thread where it must not go on; says why."""


class Abandoned(Exception):
    """The thread did not react; says what it was told."""


class Control:
    """What the thread and the event loop know of each other.

    Args:
        timeout_s: for each step.
        is_allowed: whether the work may go on; asked in both.
        on_step: told in the event loop of each step that begins.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        is_allowed: Callable[[], bool] = lambda: True,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.timeout_s = timeout_s
        self._is_allowed = is_allowed
        self._on_step = on_step
        self._loop = asyncio.get_running_loop()
        self._interrupts: list[Callable[[], None]] = []
        self.deadline = time.monotonic() + timeout_s
        self.step = ""
        self.is_running = False
        """Whether the thread has not ended."""
        self.reason = ""
        """Why it must stop; empty while it may go on."""

    # -- in the thread -----------------------------------------------------------------------------

    def begin(self, step: str) -> None:
        """A step begins; its time starts to run.

        Raises:
            Stopped: it must not.
        """
        self.check()
        self.step = step
        self.deadline = time.monotonic() + self.timeout_s
        self._call(self._on_step)

    def check(self) -> None:
        """Before whatever cannot be taken back.

        Raises:
            Stopped: it must not go on.
        """
        if not self.reason and not self._is_allowed():
            self.stop("the lock was lost")
        if self.reason:
            raise Stopped(self.reason)

    def add_interrupt(self, interrupt: Callable[[], None]) -> None:
        """`interrupt` makes a blocking call of this thread fail; it is called in another thread, perhaps often."""
        self._interrupts.append(interrupt)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits for this thread any more
            pass

    # -- in the event loop -------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """It must not go on; the first reason counts."""
        if not self.reason:
            self.reason = reason

    async def run(self, work: Callable[[], T], *, name: str) -> T:
        """Run `work` in a thread, and stop it when a step takes too long or it is no longer allowed.

        Returns:
            What it returned, also when it came too late to be stopped.
        Raises:
            Stopped: it was stopped, and has ended.
            Abandoned: it was told to stop, and runs on.
            Whatever `work` raises.
        """
        done: asyncio.Future[T] = self._loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            self.is_running = False
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]  # of T where there is no error

        def target() -> None:
            try:
                self._call(settle, work(), None)
            except BaseException as exc:
                # A future takes no StopIteration, and SystemExit would end the loop.
                is_plain = isinstance(exc, Exception) and not isinstance(exc, StopIteration)
                self._call(settle, None, exc if is_plain else Stopped(repr(exc)))

        # A daemon: work that hangs must not keep the interpreter from ending.
        self.is_running = True
        threading.Thread(target=target, name=name, daemon=True).start()
        try:
            await self._watch(done)
        except asyncio.CancelledError:
            self.stop("it was cancelled")
            await self._wind_down(done)
            raise
        if not done.done():
            await self._wind_down(done)
        if not done.done():
            done.cancel()
            log.error("schema_thread_abandoned", thread=name, step=self.step, reason=self.reason)
            raise Abandoned(self.reason)
        return done.result()

    async def _watch(self, done: asyncio.Future[Any]) -> None:
        while not self.reason:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                self.stop(f"it took more than {self.timeout_s:g} s")
                return
            await asyncio.wait([done], timeout=min(left_s, _LOOK_EVERY_S))
            if done.done():
                return
            if not self._is_allowed():
                self.stop("the lock was lost")

    async def _wind_down(self, done: asyncio.Future[Any]) -> None:
        until = time.monotonic() + GRACE_S
        interrupting: threading.Thread | None = None
        while not done.done() and time.monotonic() < until:
            # Again and again: a statement may begin right after it was asked to stop.
            if interrupting is None or not interrupting.is_alive():
                interrupting = threading.Thread(target=self._interrupt, name="schema interrupt", daemon=True)
                interrupting.start()
            await asyncio.wait([done], timeout=_LOOK_EVERY_S)
        if done.done() and not done.cancelled():
            done.exception()  # it was looked at

    def _interrupt(self) -> None:
        for each in list(self._interrupts):
            try:
                each()
            except Exception as exc:  # of a driver, or of a connection that is closed by now
                log.debug("schema_interrupt_failed", error=repr(exc))
