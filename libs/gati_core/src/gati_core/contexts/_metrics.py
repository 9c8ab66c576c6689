"""`gctx.metrics`: counters, gauges, histograms, spans and audit records, kept in this process.

Nothing here talks to a collector: an exporter reads `InProcessMetrics.snapshot()`.
"""

from __future__ import annotations

import inspect
import math
import re
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar, overload

import msgspec
import structlog

from gati_core.contexts._spans import Attribute, InProcessSpan, Span, SpanRecord, current_span
from gati_core.errors import MetricInvalid

T = TypeVar("T")
LabelValue = str | int
Labels = Mapping[str, LabelValue]
MetricKind = Literal["counter", "gauge", "histogram"]

MAX_SERIES = 2000
MAX_LABELS = 16
MAX_LABEL_CHARS = 256
MAX_SPANS = 1000
MAX_AUDITS = 1000
BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Upper bounds of a histogram's buckets, in seconds; a ninth takes what is above."""
OTHER = (("other", "true"),)
"""Labels of the series that takes what found no room for one of its own."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,99}")
_LEVELS = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "fatal": "critical",
    "critical": "critical",
}
_RESERVED = frozenset(("event", "level", "timestamp", "trace_id", "span_id"))
_log = structlog.get_logger("gati.handler")
_audit_log = structlog.get_logger("gati.audit")


class Metrics(Protocol):
    """What handlers see of metrics, whoever provides them.

    Names may be dotted: `gati.cache.hit` and `gati_cache_hit` are the same metric. Labels must be
    bounded: no user ids, no raw paths. Each method raises `MetricInvalid` for what no exporter
    could carry.
    """

    def increment_counter(self, name: str, labels: Labels | None = None, value: float = 1) -> None:
        """Add `value`, which is 0 or more, to a counter."""

    def set_gauge(self, name: str, value: float, labels: Labels | None = None) -> None:
        """Set a gauge."""

    def record_histogram(self, name: str, value: float, labels: Labels | None = None) -> None:
        """Put one observation, usually of seconds, into a histogram."""

    def counter(self, name: str, labels: Labels | None = None, value: float = 1) -> None:
        """`increment_counter`."""

    def gauge(self, name: str, value: float, labels: Labels | None = None) -> None:
        """`set_gauge`."""

    def histogram(self, name: str, value: float, labels: Labels | None = None) -> None:
        """`record_histogram`."""

    def create_span(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> Span:
        """Start a span: end it, or use it in a `with` statement, which also makes it the current one."""

    @overload
    async def with_span(
        self, name: str, fn: Callable[[Span], Awaitable[T]], attributes: Mapping[str, Attribute] | None = None
    ) -> T: ...
    @overload
    async def with_span(
        self, name: str, fn: Callable[[Span], T], attributes: Mapping[str, Attribute] | None = None
    ) -> T: ...
    async def with_span(self, name: str, fn: Callable[[Span], Any], attributes: Any = None) -> Any:
        """Call `fn(span)`, plain or async, inside a span; its result. The span always ends, with OK or ERROR."""

    def log_with_context(self, level: str, message: str, context: Mapping[str, Any] | None = None) -> None:
        """Log with the trace and span id of the current span; `level` is trace to fatal."""

    def record_audit(self, event: str, context: Mapping[str, Any] | None = None) -> None:
        """Record who did what: `action`, `result`, `user_id`, `resource`, … in `context`."""


class Series(msgspec.Struct, frozen=True):
    """One series as it is at the time of a snapshot."""

    name: str
    kind: MetricKind
    labels: dict[str, str]
    value: float
    """Of a counter or gauge; of a histogram the sum of what was observed."""
    count: int = 0
    """Observations of a histogram."""
    buckets: tuple[int, ...] = ()
    """Observations per bucket of `BUCKETS_S`, not cumulative; the last one counts what is above."""


class AuditRecord(msgspec.Struct, frozen=True):
    """One call of `record_audit`."""

    event: str
    context: dict[str, Any]


class MetricsSnapshot(msgspec.Struct, frozen=True):
    """Everything that `InProcessMetrics` holds."""

    series: list[Series]
    spans: list[SpanRecord]
    """Finished ones, oldest first; at most 1000."""
    audits: list[AuditRecord]
    overflowed: int
    """Updates that found no room for a series of their own."""

    def find(self, name: str, **labels: LabelValue) -> Series | None:
        """The series with exactly these labels."""
        wanted = {key: str(value) for key, value in labels.items()}
        return next((each for each in self.series if each.name == name and each.labels == wanted), None)

    def value(self, name: str, **labels: LabelValue) -> float:
        """Its value; 0 when there is no such series."""
        found = self.find(name, **labels)
        return found.value if found else 0


class _Series:
    __slots__ = ("buckets", "count", "kind", "labels", "name", "value")

    def __init__(self, name: str, kind: MetricKind, labels: tuple[tuple[str, str], ...]) -> None:
        self.name = name
        self.kind = kind
        self.labels = labels
        self.value: float = 0
        self.count = 0
        self.buckets = [0] * (len(BUCKETS_S) + 1) if kind == "histogram" else []


class InProcessMetrics:
    """The `Metrics` of a worker process: plain numbers, bounded, safe to use from threads.

    At most 2000 series: a further label set of a known metric goes to that metric's series
    `{other="true"}`, an unknown metric to `gati_metrics_other`; both are counted.
    """

    __slots__ = ("_audits", "_kinds", "_lock", "_overflowed", "_seen", "_series", "_spans")

    def __init__(self) -> None:
        self._series: dict[tuple[str, tuple[tuple[str, str], ...]], _Series] = {}
        self._kinds: dict[str, MetricKind] = {}
        # Names and labels as they were written, so that the usual call neither checks nor sorts them.
        self._seen: dict[MetricKind, dict[Any, _Series]] = {"counter": {}, "gauge": {}, "histogram": {}}
        self._spans: deque[SpanRecord] = deque(maxlen=MAX_SPANS)
        self._audits: deque[AuditRecord] = deque(maxlen=MAX_AUDITS)
        self._overflowed = 0
        # Reentrant: a finalizer that counts may run while this thread holds it.
        self._lock = threading.RLock()

    def increment_counter(self, name: str, labels: Labels | None = None, value: float = 1) -> None:
        """Add `value`, which is 0 or more, to a counter."""
        try:
            series = self._seen["counter"][(name, *labels.items()) if labels else name]
        except (KeyError, TypeError, AttributeError):
            series = self._find("counter", name, labels)
        if not 0 <= value < math.inf:
            raise MetricInvalid(f"counter {name}: an increment must be 0 or more and finite, not {value}")
        with self._lock:
            series.value += value

    def set_gauge(self, name: str, value: float, labels: Labels | None = None) -> None:
        """Set a gauge."""
        try:
            series = self._seen["gauge"][(name, *labels.items()) if labels else name]
        except (KeyError, TypeError, AttributeError):
            series = self._find("gauge", name, labels)
        if not -math.inf < value < math.inf:
            raise MetricInvalid(f"gauge {name}: a value must be finite, not {value}")
        series.value = value

    def record_histogram(self, name: str, value: float, labels: Labels | None = None) -> None:
        """Put one observation, usually of seconds, into a histogram."""
        try:
            series = self._seen["histogram"][(name, *labels.items()) if labels else name]
        except (KeyError, TypeError, AttributeError):
            series = self._find("histogram", name, labels)
        if not -math.inf < value < math.inf:
            raise MetricInvalid(f"histogram {name}: an observation must be finite, not {value}")
        bucket = bisect_left(BUCKETS_S, value)
        with self._lock:
            series.value += value
            series.count += 1
            series.buckets[bucket] += 1

    counter = increment_counter
    gauge = set_gauge
    histogram = record_histogram

    def create_span(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> Span:
        """Start a span: a child of the current one, or the first of a new trace."""
        return InProcessSpan(name, attributes, self._spans.append)

    async def with_span(
        self,
        name: str,
        fn: Callable[[Span], Any],
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Any:
        """Call `fn(span)`, plain or async, inside a span; its result. The span always ends, with OK or ERROR."""
        with self.create_span(name, attributes) as span:
            result = fn(span)
            return await result if inspect.isawaitable(result) else result

    def log_with_context(self, level: str, message: str, context: Mapping[str, Any] | None = None) -> None:
        """Log with the trace and span id of the current span; `level` is trace to fatal."""
        method = _LEVELS.get(level)
        if method is None:
            raise MetricInvalid(f"log level {level!r} is none of {', '.join(_LEVELS)}")
        getattr(_log, method)(message, **_fields(context))

    def record_audit(self, event: str, context: Mapping[str, Any] | None = None) -> None:
        """Record who did what; also counts `audit_events_total` by event, action and result."""
        if not _is_event(event):
            raise MetricInvalid(f"an audit event must be a non-empty string, not {event!r}")
        facts = dict(context or {})
        labels = {"event": event, "action": str(facts.get("action", "")), "result": str(facts.get("result", ""))}
        self.increment_counter("audit_events_total", labels)
        self._audits.append(AuditRecord(event, facts))
        _audit_log.info("audit_recorded", audit_event=event, **_fields(context))

    def snapshot(self) -> MetricsSnapshot:
        """A consistent copy of everything, for exporters and tests."""
        with self._lock:
            series = [
                Series(each.name, each.kind, dict(each.labels), each.value, each.count, tuple(each.buckets))
                for each in self._series.values()
            ]
            return MetricsSnapshot(series, list(self._spans), list(self._audits), self._overflowed)

    def _find(self, kind: MetricKind, raw_name: str, raw_labels: Labels | None) -> _Series:
        """The series of a name and labels that were not seen before as they are written here."""
        name = _checked_name(kind, raw_name)
        labels = _checked_labels(name, raw_labels)
        with self._lock:
            series = self._series.get((name, labels))
            if series is None:
                if self._kinds.get(name, kind) != kind:
                    raise MetricInvalid(f"metric {name} is a {self._kinds[name]} already, so it cannot be a {kind}")
                if len(self._series) < MAX_SERIES:
                    self._kinds[name] = kind
                    series = self._series[name, labels] = _Series(name, kind, labels)
                else:
                    return self._other(kind, name)
            elif series.kind != kind:
                raise MetricInvalid(f"metric {name} is a {series.kind} already, so it cannot be a {kind}")
            seen = self._seen[kind]
            if len(seen) >= 4 * MAX_SERIES:
                seen.clear()  # one label set may be written in many orders
            if all(len(value) < MAX_LABEL_CHARS for _, value in labels):  # a longer one may have been cut
                seen[(raw_name, *raw_labels.items()) if raw_labels else raw_name] = series
            return series

    def _other(self, kind: MetricKind, name: str) -> _Series:
        self._overflowed += 1
        if name not in self._kinds:
            name = f"gati_metrics_other_{kind}"
        series = self._series.get((name, OTHER))
        if series is None:
            # At most one per metric that has a series of its own, and three more.
            series = self._series[name, OTHER] = _Series(name, kind, OTHER)
        return series


def _checked_name(kind: str, name: object) -> str:
    text = name.replace(".", "_") if isinstance(name, str) else ""
    if _NAME.fullmatch(text) is None:
        raise MetricInvalid(f"{kind} name {name!r} must be 1 to 200 letters, digits, '_', '.', and start with a letter")
    return text


def _checked_labels(name: str, labels: object) -> tuple[tuple[str, str], ...]:
    if not labels:
        return ()
    if not isinstance(labels, Mapping):
        raise MetricInvalid(f"metric {name}: labels must be a mapping, not {type(labels).__name__}")
    if len(labels) > MAX_LABELS:
        raise MetricInvalid(f"metric {name}: {len(labels)} labels, of at most {MAX_LABELS}")
    for label, value in labels.items():
        if not isinstance(label, str) or _LABEL.fullmatch(label) is None:
            raise MetricInvalid(f"metric {name}: label name {label!r} must be letters, digits and '_'")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise MetricInvalid(f"metric {name}: label {label} must be a string or an integer, not {value!r}")
    return tuple(sorted((label, str(value)[:MAX_LABEL_CHARS]) for label, value in labels.items()))


def _is_event(event: object) -> bool:
    return isinstance(event, str) and event != ""


def _fields(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """Log fields of a context: names that a line has of its own get a prefix; ids of the current span."""
    fields = {(f"context_{key}" if key in _RESERVED else str(key)): each for key, each in (context or {}).items()}
    span = current_span()
    if span is not None:
        fields["trace_id"] = span.trace_id
        fields["span_id"] = span.span_id
    return fields
