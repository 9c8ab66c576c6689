"""Lifecycle events: what happened to one request, for listeners in process and the trace stream.

A request that nobody observes builds none of this: `Observers.emitter` returns None and every
emission is one comparison.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec
import structlog

from gati_core.errors import GatiError, described
from gati_core.wire import PROTOCOL, RequestDescriptor, StoredRun, TraceRecord

log = structlog.get_logger(__name__)

TRACE_FLAG = "trace"
"""In `x-gati-flags`: keep the events of this request in the trace stream."""
SNAPSHOT_FLAG = "snapshot"
"""In `x-gati-flags`: keep the request, its state and its events, where the worker's settings allow it."""
MAX_EVENTS = 10_000
"""Of one request; the rest is counted and not emitted."""

MAX_KEPT_EVENTS = 1000
"""In one stored run."""

EventType = Literal[
    "hook:start",
    "hook:end",
    "hook:error",
    "hook:retry",
    "handler:start",
    "handler:end",
    "handler:error",
    "validation:start",
    "validation:end",
    "validation:error",
    "compensation:start",
    "compensation:end",
    "compensation:error",
    "compensation:alert",
    "request:cancelled",
    "request:end",
]
Metadata = dict[str, str | int | float | bool]


class LifecycleEvent(msgspec.Struct, frozen=True, gc=False):
    """One event. `…:start` is followed by exactly one `…:end` or `…:error` of the same stage, nested."""

    type: EventType
    request_id: str
    handler: str
    seq: int
    """Counts the events of this request from 1."""
    at_us: int
    """Unix microseconds."""
    stage: str = ""
    """Id of the hook or action; for handlers their id; `request` or `response` for validation."""
    duration_us: int = -1
    """From the start of the stage; -1 where it does not apply."""
    error: str = ""
    metadata: Metadata = {}
    """`level`, `kind`, `attempt`, `max_attempts`, `phase`, `detached`, `by`, `status`."""


Listener = Callable[[LifecycleEvent], None]


class Emitter:
    """Emits the events of one observed request."""

    __slots__ = ("_dropped", "_handler", "_is_traced", "_observers", "_request_id", "_seq", "kept")

    def __init__(
        self, observers: Observers, descriptor: RequestDescriptor, handler: str, *, is_traced: bool, is_kept: bool
    ) -> None:
        self._observers = observers
        self._request_id = descriptor.request_id
        self._handler = handler
        self._is_traced = is_traced
        self._seq = 0
        self._dropped: Counter[tuple[str, str]] | None = None
        self.kept: list[TraceRecord] | None = [] if is_kept else None
        """The events so far, of a run that is to be stored."""

    def __call__(
        self,
        type: EventType,
        stage: str = "",
        *,
        began: float | None = None,
        error: BaseException | str = "",
        **metadata: str | int | float | bool,
    ) -> None:
        """Emit one event. `began` is the `time.perf_counter()` at which the stage started."""
        self._seq += 1
        if self._seq > MAX_EVENTS and self._is_dropped(type, stage):
            return
        if isinstance(error, BaseException):
            error = described(error)
        event = LifecycleEvent(
            type,
            self._request_id,
            self._handler,
            self._seq,
            time.time_ns() // 1000,
            stage,
            -1 if began is None else int((time.perf_counter() - began) * 1e6),
            error[:2000],
            metadata,
        )
        if self.kept is not None and len(self.kept) < MAX_KEPT_EVENTS:
            self.kept.append(self._observers.record(event))
        self._observers.tell(event, is_traced=self._is_traced)

    def _is_dropped(self, type: EventType, stage: str) -> bool:
        """Beyond the limit only what ends is told, and of that only what was told to have begun."""
        what, _, moment = type.partition(":")
        if moment == "start":
            self._dropped = self._dropped or Counter()
            self._dropped[what, stage] += 1
            return True
        if moment not in ("end", "error"):
            return True
        if self._dropped and self._dropped[what, stage]:
            self._dropped[what, stage] -= 1
            return True
        return False


class TraceSink(Protocol):
    """Where the records of traced requests go."""

    def __call__(self, record: TraceRecord) -> None:
        """Keep one record, without waiting; may raise a `GatiError`, which is counted."""


class RunSink(Protocol):
    """Where stored runs go."""

    def __call__(self, run: StoredRun) -> None:
        """Keep one run, without waiting; may raise a `GatiError`, which is logged."""


class Observers:
    """Listeners of one process, and its way to the trace stream.

    Args:
        keep: where runs with the flag `snapshot` are stored; nowhere without it.
        keeps_all: store every run, flag or not.
    """

    def __init__(
        self,
        *,
        instance: str = "",
        trace: TraceSink | None = None,
        keep: RunSink | None = None,
        keeps_all: bool = False,
    ) -> None:
        self.keep = keep
        self._keeps_all = keeps_all and keep is not None
        self._listeners: list[Listener] = []
        self._instance = instance
        self._trace = trace
        self.dropped = 0
        """Trace records that could not be published."""

    def listen(self, listener: Listener) -> None:
        """Call `listener(event)` for every event of every request, at once; it must be quick."""
        self._listeners = [*self._listeners, listener]  # one that is being walked through stays whole

    def forget(self, listener: Listener) -> None:
        """Stop calling it."""
        self._listeners = [each for each in self._listeners if each is not listener]

    def emitter(self, descriptor: RequestDescriptor, handler: str) -> Emitter | None:
        """What emits the events of this request; None when nobody would see them."""
        is_traced = bool(descriptor.flags) and TRACE_FLAG in descriptor.flags and self._trace is not None
        is_kept = self._keeps_all
        if descriptor.flags and not is_kept:
            is_kept = self.keep is not None and SNAPSHOT_FLAG in descriptor.flags
        if not is_traced and not is_kept and not self._listeners:
            return None
        return Emitter(self, descriptor, handler, is_traced=is_traced, is_kept=is_kept)

    def record(self, event: LifecycleEvent) -> TraceRecord:
        """An event as the trace stream keeps it."""
        return TraceRecord(
            PROTOCOL,
            event.request_id,
            "worker",
            self._instance,
            event.seq,
            event.at_us,
            event.type,
            event.stage,
            event.duration_us,
            event.error,
            event.metadata,
        )

    def tell(self, event: LifecycleEvent, *, is_traced: bool) -> None:
        """Hand one event to everybody; nobody's failure disturbs the request."""
        for listener in self._listeners:
            try:
                listener(event)
            except BaseException as exc:
                log.error("event_listener_failed", request_id=event.request_id, exc_info=exc)
        if is_traced and self._trace is not None:
            try:
                self._trace(self.record(event))
            except GatiError as exc:
                self.dropped += 1
                log.debug("trace_record_dropped", request_id=event.request_id, error=str(exc))
