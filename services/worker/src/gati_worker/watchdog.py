"""Says who stopped the event loop of a child, while it stands still.

A handler that blocks keeps every other request of its process waiting, and no code on the loop can
report that. A thread can, as long as the block lets other threads run (a blocking call does, a
long-running C function such as a regular expression may not): the loop's tick feeds it, and when
the tick stays away it looks at the stack of the loop's thread. When nothing is blocked that costs
two wake-ups a second. The supervisor watches the same tick from outside, see `gati_worker.care`.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Protocol

import msgspec
import structlog

import gati_core
import gati_worker

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.1
_UNWRAP_LIMIT = 32
_STACK_LIMIT = 10_000
_NAMES_SHOWN = 3
_GIVE_UP_AFTER = 100
_PATHS = sysconfig.get_paths()
_FOREIGN = (
    *(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *(str(Path(each.__file__ or "-").parent) for each in (gati_core, gati_worker)),
)


class Sighting(msgspec.Struct, frozen=True):
    """What a stack says about who blocks. Lines are `file:line`; empty where unknown."""

    handler: str
    """The registered function nearest to the block, by its name in `known_code`."""
    line: str
    """The innermost line in the file of that function."""
    innermost: str
    """The innermost line at all, with its function."""


def known_code(functions: Iterable[tuple[str, Callable[..., Any]]]) -> dict[CodeType, str]:
    """Name the code objects of (name, callable) pairs, so that frames can be told by them.

    Partials, bound methods, callable objects and what `functools.wraps` wrapped are unwrapped; each
    layer with code of its own counts. Code that several share (a decorator's, or functions made by
    one factory) gets all their names.

    >>> def ping(): ...
    >>> list(known_code([("ping", functools.partial(ping))]).values())
    ['ping']
    """
    names: dict[CodeType, list[str]] = {}
    for name, function in functions:
        for code in _layers(function):
            sharers = names.setdefault(code, [])
            if name not in sharers:
                sharers.append(name)
    return {code: _joined(sharers) for code, sharers in names.items()}


def _layers(function: Any) -> list[CodeType]:
    found = []
    for _ in range(_UNWRAP_LIMIT):  # something may wrap itself
        if isinstance(function, functools.partial):
            function = function.func
            continue
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        wrapped = getattr(function, "__wrapped__", None)
        if isinstance(code, CodeType):
            found.append(code)
        elif wrapped is None and not isinstance(function, type):
            wrapped = type(function).__call__ if callable(function) else None
        if wrapped is None:
            break
        function = wrapped
    return found


def _joined(names: list[str]) -> str:
    shown = " or ".join(names[:_NAMES_SHOWN])
    return f"{shown} or {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown


def sight(frame: FrameType | None, known: Mapping[CodeType, str]) -> Sighting:
    """Read a stack, innermost frame first."""
    if frame is None:
        return Sighting("", "", "")
    innermost = f"{frame.f_code.co_name} ({_where(frame)})"
    deepest: dict[str, FrameType] = {}
    at: FrameType | None = frame
    for _ in range(_STACK_LIMIT):
        if at is None:
            break
        file = at.f_code.co_filename
        deepest.setdefault(file, at)
        name = known.get(at.f_code)
        if name is not None:
            return Sighting(name, _where(deepest[file]), innermost)
        at = at.f_back
    return Sighting(_running_handler(frame), _own_line(frame), innermost)


def _running_handler(frame: FrameType | None) -> str:
    """The handler whose request runs in this stack: what blocks is one of its hooks, callbacks or middlewares."""
    while frame is not None:
        plan = getattr(frame.f_locals.get("self"), "plan", None) or getattr(frame.f_locals.get("run"), "plan", None)
        name = getattr(getattr(plan, "call", None), "id", "")
        if isinstance(name, str) and name:
            return name
        frame = frame.f_back
    return ""


def _own_line(frame: FrameType | None) -> str:
    """The innermost line that is neither Python's, nor an installed package's, nor ours."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_FOREIGN) and not file.startswith("<"):
            return _where(frame)
        frame = frame.f_back
    return ""


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Watchdog:
    """The thread. Make it on the loop's thread, feed it by `beat`, end it by `close`.

    Args:
        known: from `known_code`.
        warn_s: seconds without a beat that count as a block.
    """

    def __init__(self, known: Mapping[CodeType, str], *, warn_s: float) -> None:
        self._known = known
        self._warn_s = warn_s
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._blocks = 0
        self._block_s = 0.0
        self._blocks_told = 0
        self._told_for = 0.0
        self._handler = ""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """The loop turns. Measures a block itself: exact, also where the thread could not run."""
        now = time.monotonic()
        if now - self._beat_at > self._warn_s:
            self._block_s = now - self._beat_at
            self._blocks += 1
        self._beat_at = now

    def close(self) -> None:
        """End the thread; waits a moment, so that it does not log into an interpreter that is leaving."""
        self._is_closing.set()
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        failures = 0
        wait_s = min(_LOOK_EVERY_S, self._warn_s)
        due_at = time.monotonic() + wait_s
        while failures < _GIVE_UP_AFTER and not self._is_closing.wait(wait_s):
            try:
                now = time.monotonic()
                wait_s = self._look(now, was_late=now - due_at > self._warn_s / 2)
            except Exception as exc:  # whatever it is, it must not be the end of the thread
                failures += 1
                wait_s = 1.0
                _try_to_say("watchdog_failed", repr(exc))
            due_at = time.monotonic() + wait_s

    def _look(self, now: float, *, was_late: bool) -> float:
        """Log what began or ended; returns the seconds until the next look."""
        if self._blocks != self._blocks_told:
            self._blocks_told = self._blocks
            log.info("loop_unblocked", blocked_s=round(self._block_s, 2), handler=self._handler)
            self._handler = ""
        beat_at = self._beat_at
        silent_s = now - beat_at
        if silent_s < self._warn_s:
            return max(self._warn_s - silent_s, _LOOK_EVERY_S)
        if self._told_for != beat_at:
            seen = sight(sys._current_frames().get(self._loop_thread), self._known)
            # When we slept too long ourselves, the whole process may have been stopped, and the loop
            # is about to turn again; unless its stack says otherwise.
            if seen.handler or not was_late:
                self._told_for = beat_at
                self._handler = seen.handler
                log.warning(
                    "loop_blocked",
                    handler=seen.handler,
                    line=seen.line,
                    innermost=seen.innermost,
                    blocked_s=round(silent_s, 2),
                )
        return _LOOK_EVERY_S


def _try_to_say(event: str, error: str) -> None:
    try:
        log.error(event, error=error)
    except Exception:  # noqa: S110 - the log may be what failed
        pass


class Heart(Protocol):
    """Where a heartbeat is noted for the supervisor: the ledger."""

    def beat(self) -> None:
        """The loop turns."""

    def rest(self) -> None:
        """No more beats will come."""


class Ticker(Protocol):
    """What calls its listeners every 50 ms: the connection."""

    def on_tick(self, listener: Callable[[float], None]) -> None:
        """Add a listener."""

    def off(self, listener: Callable[..., None]) -> None:
        """Remove it."""


@asynccontextmanager
async def open_watchdog(
    ticker: Ticker, heart: Heart, known: Mapping[CodeType, str], *, warn_s: float
) -> AsyncIterator[Watchdog]:
    """Watch this thread's loop, from inside by a `Watchdog` and from outside by the heartbeat.

    Not part of the runner's own tick: a child that drains can be blocked as well.
    """
    watchdog = Watchdog(known, warn_s=warn_s)

    def beat(_now: float) -> None:
        heart.beat()
        watchdog.beat()

    heart.beat()
    ticker.on_tick(beat)
    try:
        yield watchdog
    finally:
        ticker.off(beat)
        heart.rest()
        watchdog.close()
